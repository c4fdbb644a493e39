// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

func mount(m *cri.Mount) func(*spec.Input) {
	return func(in *spec.Input) { in.Container.Mounts = []*cri.Mount{{ContainerPath: "/ok", HostPath: "/ok"}, m} }
}

func device(d *cri.Device, found ...spec.HostDevice) func(*spec.Input) {
	return func(in *spec.Input) {
		in.Container.Devices = []*cri.Device{d}
		in.Devices = map[string][]spec.HostDevice{d.HostPath: found}
	}
}

// Each is refused, by the name of its field.
func TestRefused(t *testing.T) {
	const sc = "container.linux.security_context."
	null := spec.HostDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}
	userns := func(u *cri.UserNamespace) *cri.NamespaceOption {
		return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: u}
	}
	for name, tc := range map[string]struct {
		change func(*spec.Input)
		field  string
		kind   error
	}{
		"no pod":       {func(in *spec.Input) { in.Pod = nil }, "pod", spec.ErrInvalid},
		"no container": {func(in *spec.Input) { in.Container = nil }, "container", spec.ErrInvalid},

		"host name of 65 bytes": {func(in *spec.Input) { in.Pod.Hostname = strings.Repeat("x", 65) }, "pod.hostname", spec.ErrInvalid},
		"newline in host name":  {func(in *spec.Input) { in.Pod.Hostname = "a\nb" }, "pod.hostname", spec.ErrInvalid},
		"newline in a server": {func(in *spec.Input) {
			in.Pod.DnsConfig = &cri.DNSConfig{Servers: []string{"1.1.1.1", "8.8.8.8\n"}}
		}, "pod.dns_config.servers[1]", spec.ErrInvalid},
		"space in a search path": {func(in *spec.Input) { in.Pod.DnsConfig = &cri.DNSConfig{Searches: []string{"a b"}} }, "pod.dns_config.searches[0]", spec.ErrInvalid},
		"empty option":           {func(in *spec.Input) { in.Pod.DnsConfig = &cri.DNSConfig{Options: []string{""}} }, "pod.dns_config.options[0]", spec.ErrInvalid},
		"group without user":     {func(in *spec.Input) { podSecurity(in).RunAsGroup = &cri.Int64Value{} }, "pod.linux.security_context.run_as_group", spec.ErrInvalid},
		"policy of the pod":      {func(in *spec.Input) { podSecurity(in).SupplementalGroupsPolicy = 7 }, "pod.linux.security_context.supplemental_groups_policy", spec.ErrInvalid},
		"Windows pod": {func(in *spec.Input) {
			in.Pod.Windows = &cri.WindowsPodSandboxConfig{SecurityContext: &cri.WindowsSandboxSecurityContext{HostProcess: true}}
		}, "pod.windows", spec.ErrUnsupported},
		"Windows container": {func(in *spec.Input) {
			in.Container.Windows = &cri.WindowsContainerConfig{Resources: &cri.WindowsContainerResources{CpuCount: 1}}
		}, "container.windows", spec.ErrUnsupported},

		"user namespace of the pod":       {func(in *spec.Input) { modes(in, userns(&cri.UserNamespace{}), nil) }, "pod.linux.security_context.namespace_options.userns_options", spec.ErrUnsupported},
		"user namespace of the container": {func(in *spec.Input) { security(in).NamespaceOptions = userns(&cri.UserNamespace{}) }, sc + "namespace_options.userns_options", spec.ErrUnsupported},
		"node's user namespace, mapped": {func(in *spec.Input) {
			modes(in, userns(&cri.UserNamespace{Mode: cri.NamespaceMode_NODE, Uids: []*cri.IDMapping{{Length: 1}}}), nil)
		}, "pod.linux.security_context.namespace_options.userns_options", spec.ErrInvalid},
		"a container's user namespace": {func(in *spec.Input) { modes(in, userns(&cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER}), nil) }, "pod.linux.security_context.namespace_options.userns_options.mode", spec.ErrInvalid},

		"privileged in a pod that is not": {func(in *spec.Input) { security(in).Privileged = true }, sc + "privileged", spec.ErrInvalid},
		"AppArmor default":                {func(in *spec.Input) { security(in).Apparmor = &cri.SecurityProfile{} }, sc + "apparmor", spec.ErrUnsupported},
		"AppArmor, deprecated":            {func(in *spec.Input) { security(in).ApparmorProfile = "runtime/default" }, sc + "apparmor_profile", spec.ErrUnsupported}, //nolint:staticcheck // deprecated, and still to be answered
		"SELinux": {func(in *spec.Input) {
			in.Features.SELinux = true
			security(in).SelinuxOptions = &cri.SELinuxOption{Type: "spc_t"}
		}, sc + "selinux_options", spec.ErrUnsupported},
		"SELinux of the pod": {func(in *spec.Input) {
			in.Features.SELinux = true
			podSecurity(in).SelinuxOptions = &cri.SELinuxOption{Level: "s0"}
		}, "pod.linux.security_context.selinux_options", spec.ErrUnsupported},

		"CDI": {func(in *spec.Input) { in.Container.CDIDevices = []*cri.CDIDevice{{Name: "v.com/gpu=0"}} }, "container.CDI_devices", spec.ErrUnsupported},

		"zero byte in an argument":    {func(in *spec.Input) { in.Container.Args = []string{"a\x00b"} }, "container.command", spec.ErrInvalid},
		"relative working folder":     {func(in *spec.Input) { in.Container.WorkingDir = "srv" }, "container.working_dir", spec.ErrInvalid},
		"zero byte in the image's":    {func(in *spec.Input) { in.Image.WorkingDir = "/a\x00" }, "image.config.WorkingDir", spec.ErrInvalid},
		"variable without name":       {func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{}} }, "container.envs[0].key", spec.ErrInvalid},
		"variable named a=b":          {func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{Key: "a=b"}} }, "container.envs[0].key", spec.ErrInvalid},
		"zero byte in a value":        {func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{Key: "a", Value: []byte("secret\x00")}} }, "container.envs[0].value", spec.ErrInvalid},
		"stop signal":                 {func(in *spec.Input) { in.Container.StopSignal = 1000 }, "container.stop_signal", spec.ErrInvalid},
		"image's stop signal":         {func(in *spec.Input) { in.Image.StopSignal = "SIGNONE" }, "image.config.StopSignal", spec.ErrInvalid},
		"limit without RLIMIT_":       {func(in *spec.Input) { in.Rlimits = []specs.POSIXRlimit{{Type: "NOFILE"}} }, `configuration: limit "NOFILE"`, spec.ErrInvalid},
		"limit, soft above hard":      {func(in *spec.Input) { in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} }, `configuration: limit "RLIMIT_CORE"`, spec.ErrInvalid},
		"limit twice":                 {func(in *spec.Input) { in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}} }, `configuration: limit "RLIMIT_CORE"`, spec.ErrInvalid},
		"masked path that is no path": {func(in *spec.Input) { security(in).MaskedPaths = []string{"/ok", "proc"} }, sc + "masked_paths[1]", spec.ErrInvalid},
		"readonly path with zero":     {func(in *spec.Input) { security(in).ReadonlyPaths = []string{"/a\x00"} }, sc + "readonly_paths[0]", spec.ErrInvalid},

		"mount of an image":        {mount(&cri.Mount{ContainerPath: "/a", Image: &cri.ImageSpec{}}), "container.mounts[1].image", spec.ErrUnsupported},
		"sub path of no image":     {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", ImageSubPath: "x"}), "container.mounts[1].image_sub_path", spec.ErrInvalid},
		"mapped uids":              {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", UidMappings: []*cri.IDMapping{{}}}), "container.mounts[1].uidMappings", spec.ErrUnsupported},
		"mapped gids":              {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", GidMappings: []*cri.IDMapping{{}}}), "container.mounts[1].gidMappings", spec.ErrUnsupported},
		"recursively read-only":    {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", Readonly: true, RecursiveReadOnly: true}), "container.mounts[1].recursive_read_only", spec.ErrUnsupported},
		"mount options":            {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", MountOptions: []string{"noexec"}}), "container.mounts[1].mount_options", spec.ErrUnsupported},
		"relabel":                  {func(in *spec.Input) { in.Features.SELinux = true; mount(&cri.Mount{SelinuxRelabel: true})(in) }, "container.mounts[1].selinux_relabel", spec.ErrUnsupported},
		"mount to a relative path": {mount(&cri.Mount{ContainerPath: "a", HostPath: "/a"}), "container.mounts[1].container_path", spec.ErrInvalid},
		"mount to the root":        {mount(&cri.Mount{ContainerPath: "/a/..", HostPath: "/a"}), "container.mounts[1].container_path", spec.ErrInvalid},
		"mount to nothing":         {mount(&cri.Mount{HostPath: "/a"}), "container.mounts[1].container_path", spec.ErrInvalid},
		"mount to a zero byte":     {mount(&cri.Mount{ContainerPath: "/a\x00", HostPath: "/a"}), "container.mounts[1].container_path", spec.ErrInvalid},
		"mount to far too long":    {mount(&cri.Mount{ContainerPath: "/" + strings.Repeat("a", 4096), HostPath: "/a"}), "container.mounts[1].container_path", spec.ErrInvalid},
		"mount from nothing":       {mount(&cri.Mount{ContainerPath: "/a"}), "container.mounts[1].host_path", spec.ErrInvalid},
		"mount from a placeholder": {mount(&cri.Mount{ContainerPath: "/a", HostPath: spec.PodShm}), "container.mounts[1].host_path", spec.ErrInvalid},
		"propagation":              {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", Propagation: 3}), "container.mounts[1].propagation", spec.ErrInvalid},
		"volume on the root":       {func(in *spec.Input) { in.Volumes = []spec.Volume{{Path: "/", Source: "/v"}} }, "image.config.Volumes", spec.ErrInvalid},
		"volume from nowhere":      {func(in *spec.Input) { in.Volumes = []spec.Volume{{Path: "/v"}} }, "image.config.Volumes", spec.ErrInvalid},

		"device that is not there":  {device(&cri.Device{ContainerPath: "/a", HostPath: "/dev/a", Permissions: "r"}), "container.devices[0].host_path", spec.ErrInvalid},
		"device, relative":          {device(&cri.Device{ContainerPath: "/a", HostPath: "dev/null", Permissions: "r"}, null), "container.devices[0].host_path", spec.ErrInvalid},
		"device to a relative path": {device(&cri.Device{ContainerPath: "a", HostPath: "/dev/null", Permissions: "r"}, null), "container.devices[0].container_path", spec.ErrInvalid},
		"device found elsewhere":    {device(&cri.Device{ContainerPath: "/a", HostPath: "/dev/nul", Permissions: "r"}, null), "container.devices[0].host_path", spec.ErrInvalid},
		"device without rights":     {device(&cri.Device{ContainerPath: "/a", HostPath: "/dev/null"}, null), "container.devices[0].permissions", spec.ErrInvalid},
		"device with odd rights":    {device(&cri.Device{ContainerPath: "/a", HostPath: "/dev/null", Permissions: "rx"}, null), "container.devices[0].permissions", spec.ErrInvalid},

		"capability to add": {func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{AddCapabilities: []string{"KILL", "FLY"}}
		}, sc + "capabilities.add_capabilities[1]", spec.ErrInvalid},
		"capability to drop": {func(in *spec.Input) { security(in).Capabilities = &cri.Capability{DropCapabilities: []string{""}} }, sc + "capabilities.drop_capabilities[0]", spec.ErrInvalid},
		"ambient capability": {func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"CAP_CAP_KILL"}}
		}, sc + "capabilities.add_ambient_capabilities[0]", spec.ErrInvalid},
		"no capability in all": {func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{DropCapabilities: []string{"CAP_ALL"}}
		}, sc + "capabilities.drop_capabilities[0]", spec.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := spec.Build(with(tc.change))
			refused(t, err, tc.field, tc.kind)
			if s != nil {
				t.Error("an error, and a spec")
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a value: %v", err)
			}
		})
	}
}

// What asks for nothing is no reason to refuse.
func TestAsksForNothing(t *testing.T) {
	plain := build(t, with())
	for name, change := range map[string]func(*spec.Input){
		"empty messages for Windows": func(in *spec.Input) {
			in.Pod.Windows, in.Container.Windows = &cri.WindowsPodSandboxConfig{}, &cri.WindowsContainerConfig{}
		},
		"the node's user namespace": func(in *spec.Input) {
			o := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}}
			modes(in, o, o)
		},
		"AppArmor unconfined": func(in *spec.Input) {
			security(in).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		},
		"AppArmor unconfined, deprecated": func(in *spec.Input) {
			security(in).ApparmorProfile = "unconfined" //nolint:staticcheck // deprecated, and still to be answered
		},
		"labels without SELinux": func(in *spec.Input) {
			security(in).SelinuxOptions, podSecurity(in).SelinuxOptions = &cri.SELinuxOption{Type: "spc_t"}, &cri.SELinuxOption{Type: "spc_t"}
		},
		"no labels with SELinux": func(in *spec.Input) {
			in.Features.SELinux = true
			security(in).SelinuxOptions = &cri.SELinuxOption{}
		},
	} {
		got := build(t, with(change))
		if len(got.Process.Args) != len(plain.Process.Args) || text(t, got) != text(t, plain) {
			t.Errorf("%s: the spec differs", name)
		}
	}
	// A relabelled mount without SELinux, and all that a privileged container is free of.
	build(t, with(mount(&cri.Mount{ContainerPath: "/a", HostPath: "/a", SelinuxRelabel: true})))
	build(t, with(privileged, func(in *spec.Input) {
		in.Features.SELinux = true
		security(in).SelinuxOptions = &cri.SELinuxOption{Type: "spc_t"}
		security(in).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "x"}
	}))
}

func TestNamespaceModes(t *testing.T) {
	const (
		pod       = cri.NamespaceMode_POD
		container = cri.NamespaceMode_CONTAINER
		node      = cri.NamespaceMode_NODE
		target    = cri.NamespaceMode_TARGET
	)
	type o = cri.NamespaceOption
	for name, tc := range map[string]struct {
		pod, container *o
		want           string // type=path of pid, network, ipc, uts
		field          string
	}{
		"neither says":                    {nil, nil, "pid=pod network=pod ipc=pod uts=pod", ""},
		"the pod says CONTAINER":          {&o{Pid: container}, nil, "pid= network=pod ipc=pod uts=pod", ""},
		"both say CONTAINER":              {&o{Pid: container}, &o{Pid: container}, "pid= network=pod ipc=pod uts=pod", ""},
		"own PID beside a shared one":     {&o{}, &o{Pid: container}, "pid= network=pod ipc=pod uts=pod", ""},
		"the node's PID":                  {&o{Pid: node}, &o{Pid: node}, "network=pod ipc=pod uts=pod", ""},
		"the node's PID through the pod":  {&o{Pid: node}, &o{}, "network=pod ipc=pod uts=pod", ""},
		"the node's PID, unsaid":          {&o{Pid: node}, nil, "network=pod ipc=pod uts=pod", ""},
		"own PID, pod on the node's":      {&o{Pid: node}, &o{Pid: container}, "pid= network=pod ipc=pod uts=pod", ""},
		"target":                          {&o{Pid: container}, &o{Pid: target, TargetId: "x1"}, "pid=container:x1 network=pod ipc=pod uts=pod", ""},
		"the node's network":              {&o{Pid: container, Network: node}, &o{Pid: container, Network: node}, "pid= ipc=pod", ""},
		"the node's network by the pod":   {&o{Pid: container, Network: node}, &o{Pid: container}, "pid= ipc=pod", ""},
		"the node's IPC":                  {&o{Pid: container, Ipc: node}, &o{Pid: container, Ipc: node}, "pid= network=pod uts=pod", ""},
		"container alone on the network":  {&o{Pid: container}, &o{Pid: container, Network: node}, "", "container.linux.security_context.namespace_options.network"},
		"container alone on the IPC":      {&o{Pid: container}, &o{Pid: container, Ipc: node}, "", "container.linux.security_context.namespace_options.ipc"},
		"container alone on the PID":      {&o{Pid: container}, &o{Pid: node}, "", "container.linux.security_context.namespace_options.pid"},
		"the pod's PID, which has none":   {&o{Pid: container}, &o{Pid: pod}, "", "container.linux.security_context.namespace_options.pid"},
		"container's own network":         {&o{Pid: container}, &o{Pid: container, Network: container}, "", "container.linux.security_context.namespace_options.network"},
		"target's IPC":                    {&o{Pid: container}, &o{Pid: container, Ipc: target}, "", "container.linux.security_context.namespace_options.ipc"},
		"target without id":               {&o{Pid: container}, &o{Pid: target}, "", "container.linux.security_context.namespace_options.target_id"},
		"id without target":               {&o{Pid: container}, &o{Pid: container, TargetId: "x"}, "", "container.linux.security_context.namespace_options.target_id"},
		"unknown PID mode":                {&o{}, &o{Pid: 9}, "", "container.linux.security_context.namespace_options.pid"},
		"pod with a network of no kind":   {&o{Network: container}, nil, "", "pod.linux.security_context.namespace_options.network"},
		"pod with IPC of a target":        {&o{Ipc: target}, nil, "", "pod.linux.security_context.namespace_options.ipc"},
		"pod in the PID of a target":      {&o{Pid: target, TargetId: "x"}, nil, "", "pod.linux.security_context.namespace_options.pid"},
		"pod with a target it cannot use": {&o{TargetId: "x"}, nil, "", "pod.linux.security_context.namespace_options.target_id"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := spec.Build(with(func(in *spec.Input) { modes(in, tc.pod, tc.container) }))
			if tc.field != "" {
				refused(t, err, tc.field, spec.ErrInvalid)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, n := range s.Linux.Namespaces {
				if n.Type != specs.MountNamespace && n.Type != specs.CgroupNamespace {
					got = append(got, string(n.Type)+"="+n.Path)
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("namespaces %q; want %q", got, tc.want)
			}
			// What a container joins is what PodNamespaces says has to be made.
			made := spec.PodNamespaces(with(func(in *spec.Input) { modes(in, tc.pod, tc.container) }).Pod)
			for kind, own := range map[string]bool{"network=pod": made.Net, "ipc=pod": made.IPC, "uts=pod": made.UTS} {
				if strings.Contains(tc.want, kind) != own {
					t.Errorf("PodNamespaces = %+v; the container joins %q", made, tc.want)
				}
			}
			if strings.Contains(tc.want, "pid=pod") && !made.PID {
				t.Errorf("PodNamespaces = %+v; the container joins %q", made, tc.want)
			}
			shm := mountAt(t, s, "/dev/shm").Source
			if want := map[bool]string{true: spec.PodShm, false: "/dev/shm"}[made.IPC]; shm != want {
				t.Errorf("/dev/shm is %s; want %s", shm, want)
			}
		})
	}
}

func TestCgroupNamespace(t *testing.T) {
	has := func(in spec.Input) bool {
		for _, n := range build(t, in).Linux.Namespaces {
			if n.Type == specs.CgroupNamespace {
				return true
			}
		}
		return false
	}
	for name, tc := range map[string]struct {
		in   spec.Input
		want bool
	}{
		"v2":             {with(), true},
		"v1":             {with(func(in *spec.Input) { in.Features.CgroupV2 = false }), false},
		"privileged":     {with(privileged), false},
		"before Linux 4": {with(func(in *spec.Input) { in.Features.CgroupNamespace = false }), false},
	} {
		if got := has(tc.in); got != tc.want {
			t.Errorf("%s: cgroup namespace %v; want %v", name, got, tc.want)
		}
	}
}
