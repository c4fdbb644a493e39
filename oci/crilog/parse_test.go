// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/crilog"
)

// A kubeletRecord is what a kubelet makes of a line.
type kubeletRecord struct {
	time    time.Time
	stream  string
	partial bool
	log     []byte // with the LF of a full record, as it is printed
}

// kubeletParse follows the rules of k8s.io/cri-client/pkg/logs, parseCRILog:
// line is one line of the log with its LF.
func kubeletParse(line []byte) (kubeletRecord, error) {
	var r kubeletRecord
	fields := bytes.SplitN(line, []byte(" "), 4)
	if len(fields) < 4 {
		return r, fmt.Errorf("%d fields", len(fields))
	}
	var err error
	if r.time, err = time.Parse("2006-01-02T15:04:05.999999999Z07:00", string(fields[0])); err != nil {
		return r, err
	}
	r.stream = string(fields[1])
	if r.stream != "stdout" && r.stream != "stderr" {
		return r, fmt.Errorf("stream %q", r.stream)
	}
	r.partial = string(bytes.Split(fields[2], []byte(":"))[0]) == "P"
	r.log = fields[3]
	if r.partial {
		r.log = bytes.TrimSuffix(r.log, []byte("\n"))
	}
	return r, nil
}

// checkKubelet fails if a kubelet does not read line as rec.
func checkKubelet(t testing.TB, line []byte, rec crilog.Record) {
	t.Helper()
	k, err := kubeletParse(line)
	if err != nil {
		t.Fatalf("kubelet refuses %q: %v", line, err)
	}
	log := rec.Content
	if !rec.Partial {
		log = append(bytes.Clone(log), '\n')
	}
	if !k.time.Equal(rec.Time) || k.stream != string(rec.Stream) || k.partial != rec.Partial || !bytes.Equal(k.log, log) {
		t.Fatalf("%q: kubelet reads %+v, we read %+v", line, k, rec)
	}
}

func TestParse(t *testing.T) {
	at := time.Date(2016, time.October, 6, 0, 17, 9, 669794202, time.UTC)
	for _, tt := range []struct {
		line string
		want crilog.Record
	}{
		{"2016-10-06T00:17:09.669794202Z stdout P log content 1\n", crilog.Record{Time: at, Stream: crilog.Stdout, Partial: true, Content: []byte("log content 1")}},
		{"2016-10-06T00:17:09.669794202Z stderr F log content 2\n", crilog.Record{Time: at, Stream: crilog.Stderr, Content: []byte("log content 2")}},
		{"2016-10-06T00:17:09.669794202Z stdout F \n", crilog.Record{Time: at, Stream: crilog.Stdout}},
		{"2016-10-06T00:17:09.669794202Z stdout F  a \n", crilog.Record{Time: at, Stream: crilog.Stdout, Content: []byte(" a ")}},
		{"2016-10-06T00:17:09.669794202Z stdout F a\r\n", crilog.Record{Time: at, Stream: crilog.Stdout, Content: []byte("a\r")}},
		{"2016-10-06T00:17:09.669794202Z stdout F:x:y a\n", crilog.Record{Time: at, Stream: crilog.Stdout, Content: []byte("a")}},
		{"2016-10-06T00:17:09.669794202Z stdout P: a\n", crilog.Record{Time: at, Stream: crilog.Stdout, Partial: true, Content: []byte("a")}},
		{"2016-10-06T02:17:09.669794202+02:00 stdout F a\n", crilog.Record{Time: at, Stream: crilog.Stdout, Content: []byte("a")}},
		{"2016-10-06T00:17:09.6Z stdout F a\n", crilog.Record{Time: at.Truncate(100 * time.Millisecond), Stream: crilog.Stdout, Content: []byte("a")}},
		{"2016-10-06T00:17:09Z stdout F a\n", crilog.Record{Time: at.Truncate(time.Second), Stream: crilog.Stdout, Content: []byte("a")}},
	} {
		for _, line := range []string{tt.line, tt.line[:len(tt.line)-1]} {
			have, err := crilog.Parse([]byte(line))
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if have.Time != tt.want.Time || have.Stream != tt.want.Stream || have.Partial != tt.want.Partial || !bytes.Equal(have.Content, tt.want.Content) {
				t.Errorf("%q:\nhave %+v\nwant %+v", line, have, tt.want)
			}
		}
		checkKubelet(t, []byte(tt.line), tt.want)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"empty":                "",
		"LF":                   "\n",
		"text":                 "panic: oops",
		"time only":            "2016-10-06T00:17:09Z\n",
		"bad time":             "2016-13-06T00:17:09Z stdout F a\n",
		"no zone":              "2016-10-06T00:17:09 stdout F a\n",
		"year -1 in UTC":       "0000-01-01T00:00:00+01:00 stdout F a\n",
		"year 10000 in UTC":    "9999-12-31T23:59:59-01:00 stdout F a\n",
		"no stream":            "2016-10-06T00:17:09Z stdout\n",
		"unknown stream":       "2016-10-06T00:17:09Z stdin F a\n",
		"empty stream":         "2016-10-06T00:17:09Z  F a\n",
		"no tag":               "2016-10-06T00:17:09Z stdout F\n",
		"empty tag":            "2016-10-06T00:17:09Z stdout  a\n",
		"unknown tag":          "2016-10-06T00:17:09Z stdout X a\n",
		"tag too long":         "2016-10-06T00:17:09Z stdout FP a\n",
		"unknown before known": "2016-10-06T00:17:09Z stdout X:F a\n",
		"two lines":            "2016-10-06T00:17:09Z stdout F a\nb\n",
		"two LFs":              "2016-10-06T00:17:09Z stdout F a\n\n",
		"a space before":       " 2016-10-06T00:17:09Z stdout F a\n",
	} {
		t.Run(name, func(t *testing.T) {
			rec, err := crilog.Parse([]byte(line))
			if !errors.Is(err, crilog.ErrRecord) {
				t.Errorf("%q: record %+v, error %v, want ErrRecord", line, rec, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2016-10-06T00:17:09.669794202Z stdout P log content 1\n"))
	f.Add([]byte("2016-10-06T00:17:09.669794202Z stderr F \x00\xff\r\n"))
	f.Add([]byte("2016-10-06T02:17:09.1+02:00 stderr F:a:b  x"))
	f.Add([]byte("0000-01-01T00:00:00+01:00 stdout F a"))
	f.Add([]byte("2016-10-06T00:17:09,5Z stdout P: a\n"))
	f.Add([]byte("a b c d\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		rec, err := crilog.Parse(line)
		if err != nil {
			if !errors.Is(err, crilog.ErrRecord) {
				t.Fatalf("%q: %v is not ErrRecord", line, err)
			}
			return
		}
		checkKubelet(t, append(bytes.TrimSuffix(bytes.Clone(line), []byte("\n")), '\n'), rec)

		printed := rec.AppendTo(nil)
		again, err := crilog.Parse(printed)
		if err != nil {
			t.Fatalf("%q reprints as %q: %v", line, printed, err)
		}
		if again.Time != rec.Time || again.Stream != rec.Stream || again.Partial != rec.Partial || !bytes.Equal(again.Content, rec.Content) {
			t.Fatalf("%q reprints as %q: %+v, then %+v", line, printed, rec, again)
		}
		if twice := again.AppendTo(nil); !bytes.Equal(twice, printed) {
			t.Fatalf("%q reprints as %q, then as %q", line, printed, twice)
		}
	})
}
