// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"runtime"
	"strconv"
	"strings"
)

// A Platform is what an image is built for, in the words of the image specification (image-index.md).
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// Machine is the platform of this machine: arm64 is v8 and arm is v7, which are the least that Kubernetes
// nodes have. For amd64 no variant is assumed beyond the first.
func Machine() Platform {
	return Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}.normal()
}

// String is "OS/ARCHITECTURE/VARIANT", without what is empty at the end.
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// normal writes a platform in one way, as indexes do not.
func (p Platform) normal() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i686":
		p.Architecture, p.Variant = "386", ""
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	p.Variant = strings.TrimSuffix(p.Variant, ".0")
	if p.Variant != "" && p.Variant[0] >= '0' && p.Variant[0] <= '9' {
		p.Variant = "v" + p.Variant
	}
	switch {
	case p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm64" && p.Variant == "":
		p.Variant = "v8"
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// choices are the platforms whose images run on p, the best first: the order in which the other runtimes
// look for them.
func (p Platform) choices() []Platform {
	p = p.normal()
	out := []Platform{p}
	add := func(architecture, variant string) {
		out = append(out, Platform{OS: p.OS, Architecture: architecture, Variant: variant})
	}
	major, minor := version(p.Variant)
	switch p.Architecture {
	case "amd64":
		for major--; major > 1; major-- {
			add("amd64", "v"+strconv.Itoa(major))
		}
		if p.Variant != "" {
			add("amd64", "")
		}
		add("386", "")
	case "arm":
		for major--; major >= 5; major-- {
			add("arm", "v"+strconv.Itoa(major))
		}
	case "arm64":
		for ; major >= 8; major-- {
			for m := minor; m >= 0; m-- {
				if v := armVariant(major, m); v != p.Variant {
					add("arm64", v)
				}
			}
			minor += 5 // each v9.N has what v8.(N+5) has
		}
		for v := 8; v >= 5; v-- {
			add("arm", "v"+strconv.Itoa(v))
		}
	}
	return out
}

func armVariant(major, minor int) string {
	if minor == 0 {
		return "v" + strconv.Itoa(major)
	}
	return "v" + strconv.Itoa(major) + "." + strconv.Itoa(minor)
}

// version reads "v8.2". What is not of that form is 0.
func version(variant string) (major, minor int) {
	const most = 99 // there is no such processor, and the list of choices is to stay short
	a, b, dotted := strings.Cut(strings.TrimPrefix(variant, "v"), ".")
	major, err := strconv.Atoi(a)
	if err != nil || major < 0 || major > most {
		return 0, 0
	}
	if dotted {
		if minor, err = strconv.Atoi(b); err != nil || minor < 0 || minor > most {
			return 0, 0
		}
	}
	return major, minor
}
