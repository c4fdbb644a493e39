// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

// decisions is the table by field.
func decisions(t testing.TB) map[string]spec.Decision {
	t.Helper()
	table := make(map[string]spec.Decision)
	for _, d := range spec.Decisions() {
		if _, twice := table[d.Field]; twice {
			t.Errorf("%s is decided twice", d.Field)
		}
		if (d.Verdict == spec.Honoured) != (d.By != "") || d.Verdict != spec.Honoured && d.Why == "" {
			t.Errorf("%s: %s by %q because %q: want who honours it, or why it is not", d.Field, d.Verdict, d.By, d.Why)
		}
		table[d.Field] = d
	}
	return table
}

// walk calls fn for each field of a message that holds a value or that the table decides as a whole.
func walk(table map[string]spec.Decision, prefix string, m protoreflect.MessageDescriptor, fn func(path string)) {
	fields := m.Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		path := prefix + "." + string(f.Name())
		whole := table[path].Verdict == spec.Refused || table[path].Verdict == spec.Ignored
		if f.Kind() != protoreflect.MessageKind || f.IsMap() || whole || isWrapper(f.Message()) {
			fn(path)
			continue
		}
		walk(table, path, f.Message(), fn)
	}
}

// isWrapper is for Int64Value: a number that may be missing.
func isWrapper(m protoreflect.MessageDescriptor) bool { return m.Name() == "Int64Value" }

func roots() map[string]protoreflect.MessageDescriptor {
	return map[string]protoreflect.MessageDescriptor{
		"pod":       (&cri.PodSandboxConfig{}).ProtoReflect().Descriptor(),
		"container": (&cri.ContainerConfig{}).ProtoReflect().Descriptor(),
	}
}

// TestEveryFieldIsDecided fails where a new version of the CRI brings a field, and where the table has one
// that is gone.
func TestEveryFieldIsDecided(t *testing.T) {
	table := decisions(t)
	seen := make(map[string]bool)
	for prefix, m := range roots() {
		walk(table, prefix, m, func(path string) {
			seen[path] = true
			if _, ok := table[path]; !ok {
				t.Errorf("%s: nobody has decided: honoured, refused or ignored?", path)
			}
		})
	}
	for path := range table {
		if !seen[path] {
			t.Errorf("%s is in the table, but not in the CRI", path)
		}
	}
	if len(seen) < 90 {
		t.Errorf("only %d fields found", len(seen))
	}
}

// TestRefusedFields gives each refused field something to ask for.
func TestRefusedFields(t *testing.T) {
	for path, d := range decisions(t) {
		if d.Verdict != spec.Refused {
			continue
		}
		in := with(func(in *spec.Input) { in.Features.SELinux = true })
		set(t, &in, path)
		_, err := spec.Build(in)
		var fe *spec.FieldError
		if !errors.As(err, &fe) || !strings.HasPrefix(withoutIndices(fe.Field)+".", path+".") {
			t.Errorf("%s: Build = %v; want it refused by its name", path, err)
		}
		if strings.HasPrefix(path, "pod.") {
			if err := spec.CheckPod(in.Pod, in.Features); !errors.As(err, &fe) {
				t.Errorf("%s: CheckPod = %v; want it refused before a pod is made", path, err)
			}
		}
	}
}

// TestIgnoredFields: what is ignored, or honoured by others, changes nothing here.
func TestIgnoredFields(t *testing.T) {
	want := effect(with())
	for path, d := range decisions(t) {
		if d.Verdict == spec.Refused || strings.HasPrefix(d.By, "oci/spec") || strings.HasPrefix(d.Why, "resolv.conf; checked by") {
			continue
		}
		in := with()
		set(t, &in, path)
		if got := effect(in); got != want {
			t.Errorf("%s: the table says that nothing here reads it, but\n%s\ndiffers from\n%s", path, got, want)
		}
	}
}

// TestHonouredFields: each field that is honoured here makes a difference, by the value given here or by
// what set gives it.
func TestHonouredFields(t *testing.T) {
	device := func(d *cri.Device) func(*spec.Input) {
		return func(in *spec.Input) {
			in.Container.Devices = []*cri.Device{d}
			in.Devices = map[string][]spec.HostDevice{"/dev/a": {{Path: "/dev/a", Type: "c"}}, "/dev/b": {{Path: "/dev/b", Type: "b"}}}
		}
	}
	volume := func(m *cri.Mount) func(*spec.Input) {
		return func(in *spec.Input) { in.Container.Mounts = []*cri.Mount{m} }
	}
	huge := func(h *cri.HugepageLimit) func(*spec.Input) {
		return func(in *spec.Input) { resources(in).HugepageLimits = []*cri.HugepageLimit{h} }
	}
	limited := func(in *spec.Input) { resources(in).MemoryLimitInBytes = 1 << 20 }
	seccomp := func(p *cri.SecurityProfile) func(*spec.Input) {
		return func(in *spec.Input) { security(in).Seccomp = p }
	}
	user := func(in *spec.Input) { security(in).RunAsUser = &cri.Int64Value{Value: 7} }
	target := func(id string) func(*spec.Input) {
		return func(in *spec.Input) {
			security(in).NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: id}
		}
	}
	nodeAll := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	const sc, mounts, res = "container.linux.security_context.", "container.mounts.", "container.linux.resources."
	type pair [2]func(*spec.Input) // without the field, or with another value; and with it
	nothing := func(*spec.Input) {}
	pairs := map[string]pair{
		"pod.linux.security_context.privileged":                 {privileged, func(in *spec.Input) { security(in).Privileged = true }},
		"pod.linux.security_context.supplemental_groups_policy": {nothing, func(in *spec.Input) { podSecurity(in).SupplementalGroupsPolicy = 2 }},
		"pod.linux.security_context.namespace_options.network":  {nothing, func(in *spec.Input) { modes(in, &cri.NamespaceOption{Pid: 1, Network: 2}, nil) }},
		"pod.linux.security_context.namespace_options.ipc":      {nothing, func(in *spec.Input) { modes(in, &cri.NamespaceOption{Pid: 1, Ipc: 2}, nil) }},
		"pod.linux.security_context.namespace_options.pid":      {nothing, func(in *spec.Input) { modes(in, &cri.NamespaceOption{Pid: 2}, nil) }},
		"container.working_dir":                                 {nothing, func(in *spec.Input) { in.Container.WorkingDir = "/w" }},
		mounts + "container_path":                               {volume(&cri.Mount{ContainerPath: "/a", HostPath: "/h"}), volume(&cri.Mount{ContainerPath: "/b", HostPath: "/h"})},
		mounts + "host_path":                                    {volume(&cri.Mount{ContainerPath: "/a", HostPath: "/h"}), volume(&cri.Mount{ContainerPath: "/a", HostPath: "/i"})},
		mounts + "readonly":                                     {volume(&cri.Mount{ContainerPath: "/a", HostPath: "/h"}), volume(&cri.Mount{ContainerPath: "/a", HostPath: "/h", Readonly: true})},
		mounts + "propagation":                                  {volume(&cri.Mount{ContainerPath: "/a", HostPath: "/h"}), volume(&cri.Mount{ContainerPath: "/a", HostPath: "/h", Propagation: 1})},
		"container.devices.container_path":                      {device(&cri.Device{HostPath: "/dev/a", ContainerPath: "/x", Permissions: "r"}), device(&cri.Device{HostPath: "/dev/a", ContainerPath: "/y", Permissions: "r"})},
		"container.devices.host_path":                           {device(&cri.Device{HostPath: "/dev/a", ContainerPath: "/x", Permissions: "r"}), device(&cri.Device{HostPath: "/dev/b", ContainerPath: "/x", Permissions: "r"})},
		"container.devices.permissions":                         {device(&cri.Device{HostPath: "/dev/a", ContainerPath: "/x", Permissions: "r"}), device(&cri.Device{HostPath: "/dev/a", ContainerPath: "/x", Permissions: "rw"})},
		"container.envs.value":                                  {func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{Key: "K"}} }, func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{Key: "K", Value: []byte{255}}} }},
		res + "cpu_period":                                      {nothing, func(in *spec.Input) { resources(in).CpuPeriod = 1000 }},
		res + "cpu_quota":                                       {nothing, func(in *spec.Input) { resources(in).CpuQuota = -1 }},
		res + "cpu_shares":                                      {nothing, func(in *spec.Input) { resources(in).CpuShares = 3 }},
		res + "cpuset_cpus":                                     {nothing, func(in *spec.Input) { resources(in).CpusetCpus = "0" }},
		res + "cpuset_mems":                                     {nothing, func(in *spec.Input) { resources(in).CpusetMems = "0" }},
		res + "hugepage_limits.page_size":                       {huge(&cri.HugepageLimit{PageSize: "2MB", Limit: 1}), huge(&cri.HugepageLimit{PageSize: "1GB", Limit: 1})},
		res + "hugepage_limits.limit":                           {huge(&cri.HugepageLimit{PageSize: "2MB", Limit: 1}), huge(&cri.HugepageLimit{PageSize: "2MB", Limit: 2})},
		res + "unified":                                         {nothing, func(in *spec.Input) { resources(in).Unified = map[string]string{"memory.low": "1"} }},
		res + "memory_swap_limit_in_bytes":                      {limited, func(in *spec.Input) { limited(in); resources(in).MemorySwapLimitInBytes = 2 << 20 }},
		sc + "capabilities.add_capabilities":                    {nothing, func(in *spec.Input) { security(in).Capabilities = &cri.Capability{AddCapabilities: []string{"BPF"}} }},
		sc + "capabilities.drop_capabilities":                   {nothing, func(in *spec.Input) { security(in).Capabilities = &cri.Capability{DropCapabilities: []string{"KILL"}} }},
		sc + "capabilities.add_ambient_capabilities": {nothing, func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"KILL"}}
		}},
		sc + "privileged":                  {func(in *spec.Input) { podSecurity(in).Privileged = true }, privileged},
		sc + "namespace_options.network":   {func(in *spec.Input) { modes(in, nodeAll, nil) }, func(in *spec.Input) { modes(in, nodeAll, &cri.NamespaceOption{Network: 3}) }},
		sc + "namespace_options.ipc":       {func(in *spec.Input) { modes(in, nodeAll, nil) }, func(in *spec.Input) { modes(in, nodeAll, &cri.NamespaceOption{Ipc: 3}) }},
		sc + "namespace_options.pid":       {func(in *spec.Input) { modes(in, nodeAll, nil) }, func(in *spec.Input) { modes(in, nodeAll, &cri.NamespaceOption{Pid: 1}) }},
		sc + "namespace_options.target_id": {target("a"), target("b")},
		sc + "run_as_group":                {user, func(in *spec.Input) { user(in); security(in).RunAsGroup = &cri.Int64Value{Value: 8} }},
		sc + "run_as_username":             {nothing, func(in *spec.Input) { security(in).RunAsUsername = "app" }},
		sc + "supplemental_groups_policy":  {nothing, func(in *spec.Input) { security(in).SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict }},
		sc + "masked_paths":                {nothing, func(in *spec.Input) { security(in).MaskedPaths = nil }},
		sc + "readonly_paths":              {nothing, func(in *spec.Input) { security(in).ReadonlyPaths = nil }},
		sc + "seccomp.profile_type":        {seccomp(&cri.SecurityProfile{ProfileType: 1}), seccomp(&cri.SecurityProfile{ProfileType: 0})},
		sc + "seccomp.localhost_ref":       {seccomp(&cri.SecurityProfile{ProfileType: 2, LocalhostRef: "/a"}), seccomp(&cri.SecurityProfile{ProfileType: 2, LocalhostRef: "/b"})},
		sc + "seccomp_profile_path":        {nothing, func(in *spec.Input) { security(in).SeccompProfilePath = "runtime/default" }}, //nolint:staticcheck // deprecated, and still to be answered
	}
	for path, d := range decisions(t) {
		if !strings.HasPrefix(d.By, "oci/spec") {
			continue
		}
		p, ok := pairs[path]
		delete(pairs, path)
		if !ok {
			p = pair{nothing, func(in *spec.Input) { set(t, in, path) }}
		}
		if effect(with(p[0])) == effect(with(p[1])) {
			t.Errorf("%s makes no difference", path)
		}
	}
	for path := range maps.Keys(pairs) {
		t.Errorf("%s is tested, but not honoured by this package", path)
	}
}

// effect is all that this package makes of an input.
func effect(in spec.Input) string {
	var out []any
	add := func(v any, err error) { out = append(out, v, fmt.Sprint(err)) }
	add(nil, spec.CheckPod(in.Pod, in.Features))
	user, err := spec.ResolveUser(security(&in), in.Image.User,
		strings.NewReader("root:x:0:0::/root:\napp:x:100:101::/app:\n"), strings.NewReader("wheel:x:10:root,app\n"))
	add(user, err)
	s, err := spec.Build(in)
	add(s, err)
	if s != nil {
		for _, kv := range s.Process.Env {
			add([]byte(kv), nil) // JSON cannot tell bytes that are no text from one another
		}
	}
	sig, err := spec.StopSignal(in.Container.GetStopSignal(), in.Image.StopSignal)
	add(sig, err)
	r, err := spec.Resources(resources(&in), in.Features)
	add(r, err)
	add(spec.SeccompProfilePath(in.Container), nil)
	add(spec.PodNamespaces(in.Pod), nil)
	b, err := json.MarshalIndent(out, "", " ")
	return fmt.Sprintf("%s %v", b, err)
}

// set gives the field at path, and nothing else in what leads to it, a value that asks for something.
func set(t testing.TB, in *spec.Input, path string) {
	t.Helper()
	prefix, rest, _ := strings.Cut(path, ".")
	m := proto.Message(in.Pod)
	if prefix == "container" {
		m = in.Container
	}
	r := m.ProtoReflect()
	names := strings.Split(rest, ".")
	for i, name := range names {
		f := r.Descriptor().Fields().ByName(protoreflect.Name(name))
		if f == nil {
			t.Fatalf("%s: no field %s", path, name)
		}
		if i == len(names)-1 {
			fill(r, f)
			return
		}
		if f.IsList() {
			r = r.Mutable(f).List().AppendMutable().Message()
		} else {
			r = r.Mutable(f).Message()
		}
	}
}

func fill(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
	case f.IsList() && f.Kind() == protoreflect.MessageKind:
		fillAll(m.Mutable(f).List().AppendMutable().Message())
	case f.IsList():
		m.Mutable(f).List().Append(scalar(f))
	case f.Kind() == protoreflect.MessageKind:
		fillAll(m.Mutable(f).Message())
	default:
		m.Set(f, scalar(f))
	}
}

func fillAll(m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		fill(m, m.Descriptor().Fields().Get(i))
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(2)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(5)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(5)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(5)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(5)
	}
	panic("no sample for a field of kind " + f.Kind().String())
}

// withoutIndices turns container.mounts[2].image into container.mounts.image.
func withoutIndices(field string) string {
	var b strings.Builder
	depth := 0
	for _, c := range field {
		switch {
		case c == '[':
			depth++
		case c == ']':
			depth--
		case depth == 0:
			b.WriteRune(c)
		}
	}
	return b.String()
}
