// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

func text(t testing.TB, s *specs.Spec) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// snapshot writes all of an input down.
func snapshot(t testing.TB, in spec.Input) []byte {
	t.Helper()
	pod, err := proto.MarshalOptions{Deterministic: true}.Marshal(in.Pod)
	if err != nil {
		t.Fatal(err)
	}
	container, err := proto.MarshalOptions{Deterministic: true}.Marshal(in.Container)
	if err != nil {
		t.Fatal(err)
	}
	in.Pod, in.Container = nil, nil
	rest, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Join([][]byte{pod, container, rest}, []byte{0})
}

// pureCases has besides the golden ones what could lead to shared memory: lists with room at their end,
// lists that are taken as they are, a profile from outside.
func pureCases() map[string]spec.Input {
	cases := goldenCases()
	cases["localhost"] = with(func(in *spec.Input) {
		in.Container.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b")}}
		security(in).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
		in.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ptrace"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`)
	})
	cases["lists"] = with(func(in *spec.Input) {
		in.Image.Cmd, in.Image.Entrypoint = nil, append(make([]string, 0, 8), "/entry")
		in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 1}, {Type: "RLIMIT_CORE"}}
	})
	cases["room"] = with(func(in *spec.Input) {
		in.Image.Entrypoint = append(make([]string, 0, 8), "/entry")
		in.Rlimits = append(make([]specs.POSIXRlimit, 0, 8), specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 1})
	})
	return cases
}

// Two builds give the same, and the input stays as it was, even when the first spec is overwritten: the
// executor, or a plugin, may change what it was given.
func TestBuildIsPure(t *testing.T) {
	for name, in := range pureCases() {
		t.Run(name, func(t *testing.T) {
			before := snapshot(t, in)
			first, second := build(t, in), build(t, in)
			if !reflect.DeepEqual(first, second) {
				t.Error("two builds differ")
			}
			want := text(t, second)
			scribble(reflect.ValueOf(first))
			if !bytes.Equal(snapshot(t, in), before) {
				t.Error("to change the spec is to change the input")
			}
			if text(t, second) != want {
				t.Error("two specs share memory")
			}
			if got := text(t, build(t, in)); got != want {
				t.Error("a third build differs")
			}
		})
	}
}

// scribble overwrites all that can be reached.
func scribble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			scribble(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			scribble(v.Field(i))
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			scribble(v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			v.SetMapIndex(k, reflect.Zero(v.Type().Elem()))
		}
	case reflect.String:
		v.SetString("scribble")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(99)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(99)
	}
}

// A privileged container leaves nothing to one that is built after it, and an unprivileged one has
// nothing of what privileges are made of, whatever lies ready in the input.
func TestPrivilegesDoNotLeak(t *testing.T) {
	want := text(t, build(t, with()))
	p := build(t, with(privileged))
	scribble(reflect.ValueOf(p))
	if got := text(t, build(t, with())); got != want {
		t.Errorf("after a privileged one the spec is\n%s\nbefore it was\n%s", got, want)
	}
	for name, in := range pureCases() {
		s := build(t, in)
		if security(&in).GetPrivileged() {
			if s.Linux.Seccomp != nil || s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil {
				t.Errorf("%s: a privileged container is confined", name)
			}
			continue
		}
		for _, d := range s.Linux.Devices {
			if d.Path == "/dev/vda" {
				t.Errorf("%s: a device of the host", name)
			}
		}
		if rules := s.Linux.Resources.Devices; rules[0].Allow || rules[0].Access != "rwm" || rules[0].Type != "" {
			t.Errorf("%s: the first rule for devices is %+v; want that all are denied", name, rules[0])
		}
		for _, r := range s.Linux.Resources.Devices {
			if r.Allow && (r.Major == nil || r.Minor == nil || r.Type == "") {
				t.Errorf("%s: rule %+v allows more than one device", name, r)
			}
		}
		for _, m := range s.Mounts {
			if m.Type == "sysfs" || m.Type == "cgroup" {
				if m.Options[len(m.Options)-1] != "ro" {
					t.Errorf("%s: %s is writable", name, m.Destination)
				}
			}
		}
		if len(s.Linux.MaskedPaths) != len(security(&in).GetMaskedPaths()) {
			t.Errorf("%s: masked paths %q; want them as received", name, s.Linux.MaskedPaths)
		}
		for _, c := range s.Process.Capabilities.Bounding {
			if c == "CAP_SYS_ADMIN" {
				t.Errorf("%s: CAP_SYS_ADMIN", name)
			}
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	cases := goldenCases()
	for _, name := range []string{"plain", "volumes", "restricted", "privileged"} {
		in := cases[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := spec.Build(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
