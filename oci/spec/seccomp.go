// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxProfile bounds a Localhost profile, in bytes. Docker's default one has 15,000.
const maxProfile = 1 << 20

// SeccompProfilePath is the file that a container names as its Localhost profile, which the caller
// reads into Input.SeccompProfile; "" if it names none.
func SeccompProfilePath(c *cri.ContainerConfig) string {
	s := c.GetLinux().GetSecurityContext()
	if s.GetPrivileged() {
		return ""
	}
	if kind, ref, err := seccompAsked(s); err == nil && kind == cri.SecurityProfile_Localhost {
		return ref
	}
	return ""
}

// seccompAsked reads the field, or where there is none the deprecated one. Neither means unconfined.
func seccompAsked(s *cri.LinuxContainerSecurityContext) (kind cri.SecurityProfile_ProfileType, ref string, err error) {
	const field = "container.linux.security_context."
	if p := s.GetSeccomp(); p != nil {
		kind, ref = p.GetProfileType(), p.GetLocalhostRef()
		switch kind {
		case cri.SecurityProfile_Localhost:
			return kind, ref, checkPath(field+"seccomp.localhost_ref", ref)
		case cri.SecurityProfile_RuntimeDefault, cri.SecurityProfile_Unconfined:
			if ref != "" {
				return 0, "", invalid(field+"seccomp.localhost_ref", "%.200q, but profile_type is %s", ref, kind)
			}
			return kind, "", nil
		default:
			return 0, "", invalid(field+"seccomp.profile_type", "%s: want RuntimeDefault, Unconfined or Localhost", kind)
		}
	}
	old := s.GetSeccompProfilePath() //nolint:staticcheck // deprecated, and still to be answered
	switch old {
	case "", "unconfined":
		return cri.SecurityProfile_Unconfined, "", nil
	case "runtime/default", "docker/default":
		return cri.SecurityProfile_RuntimeDefault, "", nil
	}
	ref, ok := strings.CutPrefix(old, "localhost/")
	if !ok {
		return 0, "", invalid(field+"seccomp_profile_path", "%.200q: want runtime/default, unconfined or localhost/…", old)
	}
	return cri.SecurityProfile_Localhost, ref, checkPath(field+"seccomp_profile_path", ref)
}

// seccomp decides on the filter. A privileged container has none, whatever it asks for.
func (b *builder) seccomp() error {
	const field = "container.linux.security_context.seccomp"
	if b.privileged {
		return nil
	}
	kind, ref, err := seccompAsked(b.security)
	if err != nil {
		return err
	}
	if kind == cri.SecurityProfile_Unconfined {
		return nil
	}
	if !b.Features.Seccomp {
		return unsupported(field, "%s: this kernel has no seccomp filters", kind)
	}
	profile := seccomp.DefaultProfile()
	if kind == cri.SecurityProfile_Localhost {
		if profile, err = parseProfile(b.SeccompProfile); err != nil {
			return invalid(field+".localhost_ref", "%s: %s", ref, err)
		}
	}
	b.spec.Linux.Seccomp, err = b.filter(profile)
	if err != nil {
		return invalid(field+".localhost_ref", "%s: %s", ref, err)
	}
	return nil
}

// profileError says what is wrong with a profile.
type profileError string

func (e profileError) Error() string { return string(e) }

// parseProfile reads a profile as docker and the OCI write them. One without a default action would be
// taken by libcontainer for no filter at all.
func parseProfile(text []byte) (*seccomp.Seccomp, error) {
	switch {
	case len(text) == 0:
		return nil, profileError("empty")
	case len(text) > maxProfile:
		return nil, profileError("larger than 1 MiB")
	}
	var p seccomp.Seccomp
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, err
	}
	if p.DefaultAction == "" {
		return nil, profileError("no defaultAction")
	}
	return &p, nil
}

// filter takes from a profile what holds for this node and this container. The module's own function
// for it asks the machine for its kernel and its architecture.
func (b *builder) filter(p *seccomp.Seccomp) (*specs.LinuxSeccomp, error) {
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, profileError("both architectures and archMap")
	}
	out := p.LinuxSeccomp
	for _, a := range p.ArchMap {
		if a.Arch == seccompArch(b.Features.Arch) {
			out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
			break
		}
	}
	for _, call := range p.Syscalls {
		if call == nil {
			return nil, profileError("syscalls: null")
		}
		rule := call.LinuxSyscall
		if old := call.Name; old != "" { //nolint:staticcheck // deprecated, and still in people's profiles
			if len(rule.Names) > 0 {
				return nil, profileError("both name and names: " + old)
			}
			rule.Names = []string{old}
		}
		if b.excluded(call.Excludes) || !b.included(call.Includes) {
			continue
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return &out, nil
}

// excluded says whether any of the conditions holds.
func (b *builder) excluded(f *seccomp.Filter) bool {
	if f == nil {
		return false
	}
	return slices.Contains(f.Arches, b.Features.Arch) ||
		slices.ContainsFunc(f.Caps, b.hasCapability) ||
		f.MinKernel != nil && b.kernelAtLeast(*f.MinKernel)
}

// included says whether all of the conditions hold.
func (b *builder) included(f *seccomp.Filter) bool {
	if f == nil {
		return true
	}
	lacks := func(c string) bool { return !b.hasCapability(c) }
	return (len(f.Arches) == 0 || slices.Contains(f.Arches, b.Features.Arch)) &&
		!slices.ContainsFunc(f.Caps, lacks) &&
		(f.MinKernel == nil || b.kernelAtLeast(*f.MinKernel))
}

func (b *builder) hasCapability(name string) bool {
	return slices.Contains(b.spec.Process.Capabilities.Bounding, name)
}

func (b *builder) kernelAtLeast(v seccomp.KernelVersion) bool {
	return b.Features.Kernel.AtLeast(int(v.Kernel), int(v.Major)) // each is below 256
}

// seccompArch is libseccomp's name for a GOARCH; "" for one that berth is not built for.
func seccompArch(goarch string) specs.Arch {
	switch goarch {
	case "amd64":
		return specs.ArchX86_64
	case "arm64":
		return specs.ArchAARCH64
	case "riscv64":
		return specs.ArchRISCV64
	case "s390x":
		return specs.ArchS390X
	case "ppc64le":
		return specs.ArchPPC64LE
	}
	return ""
}
