// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ErrOption says that an option is malformed: a bad pattern, or a relative folder.
var ErrOption = errors.New("bad option")

// defaultGrace is far above what a loaded kernel needs (a network namespace: tens of milliseconds, a
// hundred of them at once: seconds), since only a test that leaks pays for it.
const defaultGrace = 10 * time.Second

// Option names things that are the test's own. Without any option Check sees the descendants of the
// test process.
type Option func(*scope)

// scope is what belongs to the test. Folders are absolute and cleaned.
type scope struct {
	under       []string
	mounts      []string
	files       []string
	cgroups     []string
	netns       []string
	links       []string
	rules       []string
	watchLinks  bool
	watchRules  bool
	ownRoutines bool
	ownFiles    bool
	grace       time.Duration
}

// Under names folders of the test. Processes that run a program from there or mention it in an
// argument, and mounts at, below or made of it are the test's own. Files below it are not looked
// at: see Files.
func Under(folders ...string) Option {
	return func(sc *scope) { sc.under = append(sc.under, folders...) }
}

// Mounts names folders where every new mount is the test's own; "/" stands for all.
func Mounts(folders ...string) Option {
	return func(sc *scope) { sc.mounts = append(sc.mounts, folders...) }
}

// Files names folders below which no new file, folder, socket or link may stay. Where a whole tree
// is new, its topmost folder is reported.
func Files(folders ...string) Option {
	return func(sc *scope) { sc.files = append(sc.files, folders...) }
}

// Cgroups names cgroups in path.Match syntax. A pattern that begins with a slash is a path from the
// root of the hierarchy, and means that cgroup and all below it; any other is one component that may
// stand at any depth ("berth-test-*", which also finds the slice or scope that systemd nests). The
// processes in such a cgroup are the test's own too.
func Cgroups(patterns ...string) Option {
	return func(sc *scope) { sc.cgroups = append(sc.cgroups, patterns...) }
}

// NetNS names pinned network namespaces in filepath.Match syntax: paths, or names in /run/netns.
func NetNS(patterns ...string) Option {
	return func(sc *scope) { sc.netns = append(sc.netns, patterns...) }
}

// Links names network links (veths, bridges) in path.Match syntax; without a pattern, all of them.
func Links(patterns ...string) Option {
	return func(sc *scope) {
		sc.watchLinks = true
		sc.links = append(sc.links, patterns...)
	}
}

// Iptables asks for iptables rules and chains, IPv4 and, where the machine has it, IPv6. Those
// that contain one of the words are the test's own; without a word, all of them.
func Iptables(words ...string) Option {
	return func(sc *scope) {
		sc.watchRules = true
		sc.rules = append(sc.rules, words...)
	}
}

// Goroutines asks for goroutines of the test process.
func Goroutines() Option { return func(sc *scope) { sc.ownRoutines = true } }

// Descriptors asks for file descriptors of the test process.
func Descriptors() Option { return func(sc *scope) { sc.ownFiles = true } }

// Grace sets how long the kernel is given to take things down; 10 s unless told.
func Grace(d time.Duration) Option { return func(sc *scope) { sc.grace = d } }

func (sc *scope) kinds() []kind {
	list := []kind{{name: "process", look: processes}}
	add := func(wanted bool, k kind) {
		if wanted {
			list = append(list, k)
		}
	}
	add(len(sc.under)+len(sc.mounts) > 0, kind{name: "mount", look: mounts})
	add(len(sc.netns) > 0, kind{name: "netns", look: pinnedNetNS})
	add(len(sc.cgroups) > 0, kind{name: "cgroup", look: cgroups})
	add(sc.watchLinks, kind{name: "link", look: links})
	add(sc.watchRules, kind{name: "rule", look: rules})
	add(len(sc.files) > 0, kind{name: "file", look: files, nested: true})
	add(sc.ownRoutines, kind{name: "goroutine", look: goroutines})
	add(sc.ownFiles, kind{name: "descriptor", look: descriptors})
	return list
}

func newScope(opts []Option) (*scope, error) {
	sc := &scope{grace: defaultGrace}
	for _, o := range opts {
		o(sc)
	}
	for _, folders := range []*[]string{&sc.under, &sc.mounts, &sc.files} {
		for i, f := range *folders {
			if !filepath.IsAbs(f) {
				return nil, fmt.Errorf("%w: folder %q is not absolute", ErrOption, f)
			}
			(*folders)[i] = filepath.Clean(f)
		}
	}
	// The kernel shows resolved paths (exe, mountinfo); arguments show what was typed. Watch both.
	for _, folders := range []*[]string{&sc.under, &sc.mounts} {
		for _, f := range slices.Clone(*folders) {
			if resolved, err := filepath.EvalSymlinks(f); err == nil && resolved != f {
				*folders = append(*folders, resolved)
			}
		}
	}
	for i, p := range sc.netns {
		if !strings.Contains(p, "/") {
			sc.netns[i] = "/run/netns/" + p
		}
	}
	for _, p := range slices.Concat(sc.cgroups, sc.netns, sc.links) {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("%w: pattern %q: %w", ErrOption, p, err)
		}
	}
	for _, p := range sc.cgroups {
		if p = strings.Trim(p, "/"); p == "" {
			return nil, fmt.Errorf("%w: the root cgroup is nobody's own", ErrOption)
		}
	}
	return sc, nil
}

// below reports whether p is folder or lies below it.
func below(p, folder string) bool {
	rest, ok := strings.CutPrefix(p, folder)
	return ok && (rest == "" || rest[0] == '/' || folder == "/")
}

// mentions reports whether text names folder or something below it, as a path of its own: preceded by
// nothing that could be part of a longer path, and followed by its end. Text is a command line
// argument or a mount option ("lowerdir=/a:/b", "--root=/a/state").
func mentions(text, folder string) bool {
	for at := 0; ; at++ {
		i := strings.Index(text[at:], folder)
		if i < 0 {
			return false
		}
		at += i
		startsThere := at == 0 || !pathByte(text[at-1])
		end := at + len(folder)
		if startsThere && (end == len(text) || text[end] == '/' || !pathByte(text[end])) {
			return true
		}
	}
}

// pathByte reports whether c commonly continues a path.
func pathByte(c byte) bool {
	return c == '/' || c == '.' || c == '-' || c == '_' || c >= 0x80 ||
		'0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// matchAny reports whether name matches one of the patterns, which newScope has checked.
func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, name)
		return ok
	})
}
