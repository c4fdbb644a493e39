// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

func profile(kind cri.SecurityProfile_ProfileType, ref, content string) func(*spec.Input) {
	return func(in *spec.Input) {
		security(in).Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		in.SeccompProfile = []byte(content)
	}
}

// On this machine the filter is what the profile's own module makes of it, which asks the machine.
func TestSeccompAsTheModuleHasIt(t *testing.T) {
	features, err := spec.Probe()
	if err != nil {
		t.Fatal(err)
	}
	features.Seccomp = true // what is compared is no filter that is loaded
	const conditional = `{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
		"archMap": [{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}, {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
		"syscalls": [
			{"name": "read", "action": "SCMP_ACT_ALLOW"},
			{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
			{"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
			{"names": ["c"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}},
			{"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_KILL"]}},
			{"names": ["e"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}},
			{"names": ["f"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
			{"names": ["g"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
			{"names": ["h"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}], "comment": "x"}
		]}`
	for name, caps := range map[string]*cri.Capability{
		"default":   nil,
		"none":      {DropCapabilities: []string{"ALL"}},
		"admin":     {AddCapabilities: []string{"SYS_ADMIN"}},
		"a few":     {AddCapabilities: []string{"SYS_PTRACE", "BPF", "SYSLOG", "SYS_TIME", "PERFMON"}},
		"no chroot": {DropCapabilities: []string{"SYS_CHROOT"}},
	} {
		for kind, tc := range map[string]struct {
			change func(*spec.Input)
			want   func(*specs.Spec) (*specs.LinuxSeccomp, error)
		}{
			"default":   {profile(cri.SecurityProfile_RuntimeDefault, "", ""), seccomp.GetDefaultProfile},
			"localhost": {profile(cri.SecurityProfile_Localhost, "/p", conditional), func(s *specs.Spec) (*specs.LinuxSeccomp, error) { return seccomp.LoadProfile(conditional, s) }},
		} {
			s := build(t, with(tc.change, func(in *spec.Input) {
				in.Features = features
				security(in).Capabilities = caps
			}))
			want, err := tc.want(s)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(s.Linux.Seccomp, want) {
				t.Errorf("%s profile, %s capabilities:\n%+v\nwant\n%+v", kind, name, s.Linux.Seccomp, want)
			}
		}
	}
}

func TestSeccompDependsOnFeatures(t *testing.T) {
	filter := func(f spec.Features) *specs.LinuxSeccomp {
		return build(t, with(profile(cri.SecurityProfile_RuntimeDefault, "", ""), func(in *spec.Input) { in.Features = f })).Linux.Seccomp
	}
	x86 := filter(node())
	if want := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}; !slices.Equal(x86.Architectures, want) {
		t.Errorf("amd64: architectures %q; want %q", x86.Architectures, want)
	}
	arm := node()
	arm.Arch = "arm64"
	if got, want := filter(arm).Architectures, []specs.Arch{specs.ArchAARCH64, specs.ArchARM}; !slices.Equal(got, want) {
		t.Errorf("arm64: architectures %q; want %q", got, want)
	}
	old := node()
	old.Kernel = spec.Kernel{Major: 4, Minor: 7}
	if !allows(x86, "ptrace") || allows(filter(old), "ptrace") {
		t.Error("ptrace is to be allowed since Linux 4.8, where it cannot go around the filter")
	}
	// A socket of the kernel's crypto API has been a way out (containerd#13409).
	for _, family := range []uint64{unix.AF_ALG, unix.AF_VSOCK} {
		if allowsSocket(x86, family) {
			t.Errorf("socket(%d) is allowed", family)
		}
	}
	if !allowsSocket(x86, unix.AF_INET) || !allowsSocket(x86, unix.AF_UNIX) {
		t.Error("plain sockets are not allowed")
	}
}

func allows(s *specs.LinuxSeccomp, name string) bool {
	return slices.ContainsFunc(s.Syscalls, func(c specs.LinuxSyscall) bool {
		return c.Action == specs.ActAllow && len(c.Args) == 0 && slices.Contains(c.Names, name)
	})
}

func allowsSocket(s *specs.LinuxSeccomp, family uint64) bool {
	return slices.ContainsFunc(s.Syscalls, func(c specs.LinuxSyscall) bool {
		if c.Action != specs.ActAllow || !slices.Contains(c.Names, "socket") {
			return false
		}
		return !slices.ContainsFunc(c.Args, func(a specs.LinuxSeccompArg) bool {
			return a.Op == specs.OpLessThan && family >= a.Value || a.Op == specs.OpGreaterThan && family <= a.Value || a.Op == specs.OpEqualTo && family != a.Value
		})
	})
}

func TestSeccompKinds(t *testing.T) {
	const ok = `{"defaultAction":"SCMP_ACT_ALLOW"}`
	deprecated := func(s string) func(*spec.Input) {
		return func(in *spec.Input) {
			security(in).SeccompProfilePath = s //nolint:staticcheck // deprecated, and still to be answered
			in.SeccompProfile = []byte(ok)
		}
	}
	none := func(in *spec.Input) { in.Features.Seccomp = false }
	const field = "container.linux.security_context.seccomp"
	for name, tc := range map[string]struct {
		change   []func(*spec.Input)
		filtered bool
		path     string
		field    string
	}{
		"unset":                          {nil, false, "", ""},
		"unconfined":                     {[]func(*spec.Input){profile(1, "", "")}, false, "", ""},
		"default":                        {[]func(*spec.Input){profile(0, "", "")}, true, "", ""},
		"localhost":                      {[]func(*spec.Input){profile(2, "/p.json", ok)}, true, "/p.json", ""},
		"privileged":                     {[]func(*spec.Input){privileged, profile(2, "/p.json", "")}, false, "", ""},
		"deprecated: default":            {[]func(*spec.Input){deprecated("runtime/default")}, true, "", ""},
		"deprecated: docker's default":   {[]func(*spec.Input){deprecated("docker/default")}, true, "", ""},
		"deprecated: unconfined":         {[]func(*spec.Input){deprecated("unconfined")}, false, "", ""},
		"deprecated: localhost":          {[]func(*spec.Input){deprecated("localhost//a/b")}, true, "/a/b", ""},
		"the new field counts":           {[]func(*spec.Input){deprecated("runtime/default"), profile(1, "", ok)}, false, "", ""},
		"deprecated: nonsense":           {[]func(*spec.Input){deprecated("none")}, false, "", field + "_profile_path"},
		"deprecated: localhost/relative": {[]func(*spec.Input){deprecated("localhost/a")}, false, "", field + "_profile_path"},
		"localhost without path":         {[]func(*spec.Input){profile(2, "", ok)}, false, "", field + ".localhost_ref"},
		"localhost, relative":            {[]func(*spec.Input){profile(2, "p.json", ok)}, false, "", field + ".localhost_ref"},
		"default with a path":            {[]func(*spec.Input){profile(0, "/p.json", ok)}, false, "", field + ".localhost_ref"},
		"no such kind":                   {[]func(*spec.Input){profile(3, "", ok)}, false, "", field + ".profile_type"},
		"no content":                     {[]func(*spec.Input){profile(2, "/p", "")}, false, "/p", field + ".localhost_ref"},
		"no JSON":                        {[]func(*spec.Input){profile(2, "/p", "{")}, false, "/p", field + ".localhost_ref"},
		"nothing in it":                  {[]func(*spec.Input){profile(2, "/p", "{}")}, false, "/p", field + ".localhost_ref"},
		"null":                           {[]func(*spec.Input){profile(2, "/p", "null")}, false, "/p", field + ".localhost_ref"},
		"a null rule":                    {[]func(*spec.Input){profile(2, "/p", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`)}, false, "/p", field + ".localhost_ref"},
		"no default action":              {[]func(*spec.Input){profile(2, "/p", `{"syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW"}]}`)}, false, "/p", field + ".localhost_ref"},
		"two lists of architectures":     {[]func(*spec.Input){profile(2, "/p", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_ARM"],"archMap":[{"architecture":"SCMP_ARCH_ARM"}]}`)}, false, "/p", field + ".localhost_ref"},
		"two kinds of names":             {[]func(*spec.Input){profile(2, "/p", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_LOG"}]}`)}, false, "/p", field + ".localhost_ref"},
		"far too large":                  {[]func(*spec.Input){profile(2, "/p", ok+strings.Repeat(" ", 1<<20))}, false, "/p", field + ".localhost_ref"},
	} {
		t.Run(name, func(t *testing.T) {
			in := with(tc.change...)
			if got := spec.SeccompProfilePath(in.Container); got != tc.path {
				t.Errorf("SeccompProfilePath = %q; want %q", got, tc.path)
			}
			s, err := spec.Build(in)
			if tc.field != "" {
				refused(t, err, tc.field, spec.ErrInvalid)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Linux.Seccomp != nil; got != tc.filtered {
				t.Errorf("filtered %v; want %v", got, tc.filtered)
			}
			_, err = spec.Build(with(append(tc.change, none)...))
			if tc.filtered {
				refused(t, err, field, spec.ErrUnsupported)
			} else if err != nil {
				t.Errorf("without filters in the kernel: %v", err)
			}
		})
	}
}

// FuzzSeccompProfile: whatever the file has, there is an error or a filter that has a default action.
func FuzzSeccompProfile(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"defaultAction":"SCMP_ACT_ALLOW"}`, `{"defaultAction":"x","syscalls":[{"name":"a"},null]}`, `{"defaultAction":"x","archMap":[{}]}`} {
		f.Add(s)
	}
	if b, err := os.ReadFile("testdata/restricted.json"); err == nil {
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, content string) {
		s, err := spec.Build(with(profile(cri.SecurityProfile_Localhost, "/p", content)))
		if err == nil && (s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction == "") {
			t.Errorf("%q gives no filter", content)
		}
	})
}
