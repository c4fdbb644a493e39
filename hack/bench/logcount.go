// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
)

var errNoLog = errors.New("the log has no first line")

// logCount is what a log file in the format of CRI holds of lines that are all the same.
type logCount struct {
	first time.Time // stamp of the first line
	whole int       // lines as they were written
	torn  int       // lines that stand in pieces (tag P), though each is far below the limit of 16 KiB
	other int       // anything else
}

// countLog reads a log file: first one line of any text, then as often as it comes the line want.
// The format is `TIME stdout|stderr F|P TEXT` (kubernetes/design-proposals-archive,
// node/kubelet-cri-logging.md).
func countLog(r io.Reader, want string) (logCount, error) {
	var (
		c      logCount
		joined []byte // pieces of a torn line so far
		in     = bufio.NewReaderSize(r, 1<<20)
	)
	head, err := in.ReadSlice('\n')
	if err != nil {
		return c, errNoLog
	}
	stamp, _, _ := bytes.Cut(head, []byte(" "))
	if c.first, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return c, fmt.Errorf("%w: %w", errNoLog, err)
	}
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 || len(joined) > 0 {
				c.other++
			}
			return c, nil
		}
		if err != nil {
			return c, err
		}
		fields := bytes.SplitN(line[:len(line)-1], []byte(" "), 4)
		switch {
		case len(fields) < 4:
			c.other++
		case string(fields[2]) == "P":
			joined = append(joined, fields[3]...)
		case len(joined) > 0:
			joined = append(joined, fields[3]...)
			if string(joined) == want {
				c.torn++
			} else {
				c.other++
			}
			joined = joined[:0]
		case string(fields[3]) == want:
			c.whole++
		default:
			c.other++
		}
	}
}
