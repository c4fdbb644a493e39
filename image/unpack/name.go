// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"fmt"
	"strings"
)

const (
	maxPath  = 4095 // PATH_MAX without the NUL: nobody could open what is longer
	maxName  = 255
	maxDepth = 512 // a tree is removed with a descriptor for each of its levels

	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// clean returns a name of the archive as a path below the root: "" for the root
// itself, else without "", "." and a slash at either end. It refuses what doc.go says.
func clean(name string) (string, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("%w: it is empty", ErrName)
	case len(name) > maxPath:
		return "", fmt.Errorf("%w: it has %d bytes", ErrName, len(name))
	case strings.IndexByte(name, 0) >= 0:
		return "", fmt.Errorf("%w: it has a NUL", ErrName)
	}
	plain, depth := true, 0
	for part := range strings.SplitSeq(name, "/") {
		depth++
		switch {
		case part == "" || part == ".":
			plain = false
			depth--
		case part == "..":
			return "", fmt.Errorf("%w: it has a \"..\"", ErrName)
		case len(part) > maxName:
			return "", fmt.Errorf("%w: a part of it has %d bytes", ErrName, len(part))
		}
	}
	if depth > maxDepth {
		return "", fmt.Errorf("%w: it is %d folders deep", ErrName, depth)
	}
	if plain {
		return name, nil
	}
	var b strings.Builder
	for part := range strings.SplitSeq(name, "/") {
		if part != "" && part != "." {
			if b.Len() > 0 {
				b.WriteByte('/')
			}
			b.WriteString(part)
		}
	}
	return b.String(), nil
}

// split returns the parent and the last name of a clean path.
func split(path string) (parent, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func join(parent, base string) string {
	if parent == "" {
		return base
	}
	return parent + "/" + base
}

// A meaning is what the name of an entry stands for.
type meaning int

const (
	aNode     meaning = iota
	aWhiteout         // base is what it hides
	anOpaque
	nothing // to be skipped
)

// mean tells what a clean path stands for, and returns the last name that it is about.
func mean(path string) (m meaning, parent, base string, err error) {
	parent, base = split(path)
	if !strings.Contains(path, whiteoutPrefix) {
		return aNode, parent, base, nil
	}
	if base == opaqueName && !hidden(parent) {
		return anOpaque, parent, "", nil
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(part, aufsPrefix) {
			return nothing, "", "", nil
		}
	}
	if hidden(parent) {
		return 0, "", "", fmt.Errorf("%w: it is below a whiteout", ErrName)
	}
	base, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return aNode, parent, base, nil
	}
	if base == "" || base == "." || base == ".." {
		return 0, "", "", fmt.Errorf("%w: it hides %q", ErrName, base)
	}
	return aWhiteout, parent, base, nil
}

// hidden says whether a part of a path is a whiteout's name.
func hidden(path string) bool {
	return strings.HasPrefix(path, whiteoutPrefix) || strings.Contains(path, "/"+whiteoutPrefix)
}
