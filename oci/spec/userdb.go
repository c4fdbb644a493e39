// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// An image brings its passwd and group files, and may bring ones that are there to be read (see
// CVE-2026-47262, CVE-2025-4437). A file is read line by line up to these bounds; past them it is
// refused, and not cut off, since what was cut off might have been the line that counts.
const (
	maxUserFile = 4 << 20 // bytes
	maxUserLine = 256 << 10
)

// eachLine calls fn for each line with its fields, until fn returns true. Lines that are comments, or
// that refer to NIS, are left out.
func eachLine(file string, r io.Reader, fn func(fields []string) (enough bool)) error {
	if r == nil {
		return nil
	}
	limited := &io.LimitedReader{R: r, N: maxUserFile + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 4096), maxUserLine)
	for lines.Scan() {
		if limited.N <= 0 {
			break
		}
		line := lines.Text()
		if line == "" || line[0] == '#' || line[0] == '+' || line[0] == '-' {
			continue
		}
		// Both files have fewer fields; a hostile line has as many as it has bytes.
		if fn(strings.SplitN(line, ":", 8)) {
			return nil
		}
	}
	if limited.N <= 0 {
		return invalid("image:"+file, "larger than %d bytes", maxUserFile)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return invalid("image:"+file, "a line is longer than %d bytes", maxUserLine)
	} else if err != nil {
		return fmt.Errorf("image:%s: %w", file, err)
	}
	return nil
}

// passwdEntry is a line of passwd(5).
type passwdEntry struct {
	name, home string
	uid, gid   uint32
}

// findUser returns the first entry of that name or, given a number, of that uid. A line that is not as
// passwd(5) has it is no entry.
func findUser(passwd io.Reader, want account) (entry passwdEntry, found bool, err error) {
	err = eachLine("/etc/passwd", passwd, func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		uid, ok := parseID(f[2])
		gid, alsoOK := parseID(f[3])
		if !ok || !alsoOK {
			return false
		}
		if want.isName && f[0] != want.name || !want.isName && uid != want.id {
			return false
		}
		entry, found = passwdEntry{name: f[0], uid: uid, gid: gid}, true
		if len(f) > 5 {
			entry.home = f[5]
		}
		return true
	})
	return entry, found, err
}

// groupAnswers is what was to be found in group(5).
type groupAnswers struct {
	named    bool // the primary group that was given by name is there
	gid      uint32
	memberOf []uint32
}

// findGroups looks for the primary group, if it was given by name, and for the groups that list member,
// if it has a name and they are wanted.
func findGroups(group io.Reader, primary *account, member string, members bool) (groupAnswers, error) {
	var a groupAnswers
	byName := primary != nil && primary.isName
	members = members && member != ""
	if !byName && !members {
		return a, nil // an image whose file cannot be read is no matter then
	}
	err := eachLine("/etc/group", group, func(f []string) bool {
		if len(f) < 3 {
			return false
		}
		gid, ok := parseID(f[2])
		if !ok {
			return false
		}
		if byName && !a.named && f[0] == primary.name {
			a.named, a.gid = true, gid
		}
		if members && len(f) > 3 && len(a.memberOf) <= maxGroups && lists(f[3], member) {
			a.memberOf = append(a.memberOf, gid)
		}
		return false
	})
	return a, err
}

// lists says whether name is one of the names between commas.
func lists(names, name string) bool {
	for n := range strings.SplitSeq(names, ",") {
		if n == name {
			return true
		}
	}
	return false
}

// parseID reads a uid or a gid: decimal digits, 0 to maxID.
func parseID(s string) (uint32, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxID {
		return 0, false
	}
	return uint32(n), true
}
