// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	image "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew; only commit the changes if you understand what caused them")

// goldenCases are whole specs; the smaller tests below look at one thing each.
func goldenCases() map[string]spec.Input {
	return map[string]spec.Input{
		"plain":     with(),
		"cgroup-v1": with(func(in *spec.Input) { in.Features.CgroupV2 = false }),
		"privileged": with(privileged, func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
			security(in).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
			security(in).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		}),
		"privileged-without-host-devices": with(privileged, func(in *spec.Input) {
			in.Handler.PrivilegedWithoutHostDevices = true
			in.Container.Devices = []*cri.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}}
			in.Devices = map[string][]spec.HostDevice{"/dev/fuse": in.HostDevices[:1]}
		}),
		"host-everything": with(func(in *spec.Input) {
			node := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
			modes(in, node, node)
		}),
		"shared-pid": with(func(in *spec.Input) { modes(in, nil, nil) }),
		"ephemeral": with(func(in *spec.Input) {
			in.Container.Tty, in.Container.Stdin = true, true
			security(in).NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "4567"}
		}),
		"restricted": with(func(in *spec.Input) { // what the restricted pod security standard asks for
			in.User = spec.User{UID: 1000, GID: 3000, Groups: []uint32{3000, 4000}, Home: "/home/app"}
			sc := security(in)
			sc.RunAsUser, sc.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 3000}
			sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
			sc.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}}
			sc.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		}),
		"volumes": with(func(in *spec.Input) { // as a kubelet sends them, and some more
			in.Container.Mounts = []*cri.Mount{
				{ContainerPath: "/var/www/html/static", HostPath: "/vol/static", Readonly: true},
				{ContainerPath: "/var/www/html/", HostPath: "/vol/html"},
				{ContainerPath: "/host", HostPath: "/", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, Readonly: true},
				{ContainerPath: "/csi", HostPath: "/var/lib/csi", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
				{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/5a2/etc-hosts"},
				{ContainerPath: "/dev/termination-log", HostPath: "/var/lib/kubelet/pods/5a2/containers/nginx/ab"},
				{ContainerPath: "/dev/shm", HostPath: "/var/lib/kubelet/pods/5a2/volumes/kubernetes.io~empty-dir/shm"},
				{ContainerPath: "/sys/fs/cgroup", HostPath: "/sys/fs/cgroup"},
			}
			in.Volumes = []spec.Volume{{Path: "/var/cache/nginx", Source: "/var/lib/berth/v/0"}}
		}),
		"resources": with(func(in *spec.Input) {
			in.Container.Linux.Resources = &cri.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0-1", CpusetMems: "0",
				MemoryLimitInBytes: 64 << 20, OomScoreAdj: -997,
				HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
				Unified:        map[string]string{"memory.high": "60000000", "memory.swap.max": "0"},
			}
			in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}, {Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: 2}}
		}),
		"devices": with(func(in *spec.Input) {
			in.Container.Devices = []*cri.Device{
				{ContainerPath: "/dev/gpu", HostPath: "/dev/dri", Permissions: "mr"},
				{ContainerPath: "/dev/null0", HostPath: "/dev/zero", Permissions: "wrm"},
			}
			in.Devices = map[string][]spec.HostDevice{
				"/dev/dri": {
					{Path: "/dev/dri/card0", Type: "c", Major: 226, Minor: 0, Mode: 0o660, GID: 44},
					{Path: "/dev/dri/by-path/card0", Type: "c", Major: 226, Minor: 128, Mode: 0o666},
				},
				"/dev/zero": {{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5, Mode: 0o666}},
			}
		}),
		"oci-handler": with(func(in *spec.Input) {
			in.Pod.Annotations = map[string]string{"dev.gvisor.spec.rootfs": "1", "other": "2", "io.kubernetes.cri.container-type": "sandbox"}
			in.Container.Annotations = map[string]string{"x.io/a": "3", "org.systemd.property.CPUWeight": "uint64 1", "y": "4"}
			in.Handler.PodAnnotations = []string{"dev.gvisor.*", "io.*"}
			in.Handler.ContainerAnnotations = []string{"*/*", "org.*"}
		}),
	}
}

func TestGolden(t *testing.T) {
	cases := goldenCases()
	for name, in := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(build(t, in), "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *rewrite {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the spec is not that of %s (-rewrite writes it):\n%s", file, got)
			}
		})
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) != len(cases) {
		t.Errorf("%d golden files for %d cases, %v", len(files), len(cases), err)
	}
}

func TestPlaceholdersAreTheWires(t *testing.T) {
	if spec.FromPod != wire.FromPod || spec.FromContainer != wire.FromContainer || spec.PodShm != wire.PodShm {
		t.Error("the placeholders differ from those that the executor replaces")
	}
}

func TestArgs(t *testing.T) {
	list := func(s string) []string { return strings.Fields(s) }
	for _, tc := range []struct {
		name, entrypoint, cmd, command, args, want string
	}{
		{"image alone", "e1 e2", "c1", "", "", "e1 e2 c1"},
		{"image without entrypoint", "", "c1 c2", "", "", "c1 c2"},
		{"image without cmd", "e1", "", "", "", "e1"},
		{"args replace cmd", "e1 e2", "c1", "", "a1 a2", "e1 e2 a1 a2"},
		{"command replaces both", "e1", "c1", "k1 k2", "", "k1 k2"},
		{"both replace both", "e1", "c1", "k1", "a1", "k1 a1"},
		{"nothing of the image's", "", "", "k1", "a1", "k1 a1"},
		{"args alone", "", "", "", "a1 a2", "a1 a2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := build(t, with(func(in *spec.Input) {
				in.Image.Entrypoint, in.Image.Cmd = list(tc.entrypoint), list(tc.cmd)
				in.Container.Command, in.Container.Args = list(tc.command), list(tc.args)
			})).Process.Args
			if !slices.Equal(got, list(tc.want)) {
				t.Errorf("args = %q; want %q", got, list(tc.want))
			}
		})
	}
	t.Run("an empty entrypoint is none", func(t *testing.T) {
		got := build(t, with(func(in *spec.Input) { in.Image.Entrypoint = []string{""} })).Process.Args
		if !slices.Equal(got, input().Image.Cmd) {
			t.Errorf("args = %q; want the image's cmd", got)
		}
	})
	t.Run("nothing to run", func(t *testing.T) {
		_, err := spec.Build(with(func(in *spec.Input) { in.Image.Entrypoint, in.Image.Cmd = nil, nil }))
		refused(t, err, "container.command", spec.ErrInvalid)
	})
}

func TestWorkingDir(t *testing.T) {
	for _, tc := range []struct{ image, pod, want string }{
		{"", "", "/"},
		{"/srv", "", "/srv"},
		{"srv", "", "/srv"},
		{"../../srv", "", "/srv"},
		{"/srv", "/tmp/", "/tmp"},
		{"", "/a/../b", "/b"},
	} {
		s := build(t, with(func(in *spec.Input) { in.Image.WorkingDir, in.Container.WorkingDir = tc.image, tc.pod }))
		if s.Process.Cwd != tc.want {
			t.Errorf("image %q, pod %q: %q; want %q", tc.image, tc.pod, s.Process.Cwd, tc.want)
		}
	}
}

func TestEnv(t *testing.T) {
	kv := func(k, v string) *cri.KeyValue { return &cri.KeyValue{Key: k, Value: []byte(v)} }
	s := build(t, with(func(in *spec.Input) {
		in.Image.Env = []string{"A=image", "B=image", "no variable", "=x", "Z=a\x00b", "B=again", "EMPTY="}
		in.Container.Envs = []*cri.KeyValue{kv("B", "pod"), kv("BYTES", "\xff\xfe=\n"), kv("odd name.x", ""), kv("BYTES2", "ä"), kv("B", "pod again")}
	}))
	want := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web-0", "HOME=/root",
		"A=image", "B=pod again", "EMPTY=", "BYTES=\xff\xfe=\n", "odd name.x=", "BYTES2=ä",
	}
	if !slices.Equal(s.Process.Env, want) {
		t.Errorf("env = %q;\nwant  %q", s.Process.Env, want)
	}
	for name, tc := range map[string]struct {
		in        spec.Input
		key, want string
	}{
		"image's PATH":         {with(), "PATH", "/usr/local/bin:/usr/bin:/bin"},
		"pod's PATH":           {with(func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{kv("PATH", "/x")} }), "PATH", "/x"},
		"no TERM":              {with(), "TERM", "(unset)"},
		"TERM":                 {with(func(in *spec.Input) { in.Container.Tty = true }), "TERM", "xterm"},
		"image's TERM":         {with(func(in *spec.Input) { in.Container.Tty = true; in.Image.Env = []string{"TERM=vt100"} }), "TERM", "vt100"},
		"no name of its own":   {with(func(in *spec.Input) { in.Pod.Hostname = "" }), "HOSTNAME", "node-1"},
		"no name at all":       {with(func(in *spec.Input) { in.Pod.Hostname, in.NodeHostname = "", "" }), "HOSTNAME", "(unset)"},
		"the node's network":   {with(func(in *spec.Input) { modes(in, &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}, nil) }), "HOSTNAME", "node-1"},
		"image's HOME":         {with(func(in *spec.Input) { in.Image.Env = []string{"HOME=/h"} }), "HOME", "/h"},
		"no home":              {with(func(in *spec.Input) { in.User.Home = "" }), "HOME", "/"},
		"relative home":        {with(func(in *spec.Input) { in.User.Home = "home/x" }), "HOME", "/"},
		"newline in home":      {with(func(in *spec.Input) { in.User.Home = "/home\nroot::0:0" }), "HOME", "/"},
		"zero in home":         {with(func(in *spec.Input) { in.User.Home = "/h\x00ome" }), "HOME", "/"},
		"home that is no text": {with(func(in *spec.Input) { in.User.Home = "/h\xff" }), "HOME", "/"},
	} {
		if got := env(build(t, tc.in), tc.key); got != tc.want {
			t.Errorf("%s: %s = %q; want %q", name, tc.key, got, tc.want)
		}
	}
}

// No mount covers another that is to be seen below it.
func TestMountOrder(t *testing.T) {
	in := goldenCases()["volumes"]
	in.Container.Mounts = append(in.Container.Mounts,
		&cri.Mount{ContainerPath: "/etc", HostPath: "/vol/etc"},
		&cri.Mount{ContainerPath: "/var", HostPath: "/vol/var"},
		&cri.Mount{ContainerPath: "/a/b/c/d", HostPath: "/1"},
		&cri.Mount{ContainerPath: "/a/b", HostPath: "/2"},
		&cri.Mount{ContainerPath: "/a/b/./c", HostPath: "/3"},
		&cri.Mount{ContainerPath: "//a", HostPath: "/4"},
	)
	s := build(t, in)
	seen := make(map[string]bool)
	for i, m := range s.Mounts {
		for _, later := range s.Mounts[i+1:] {
			if strings.HasPrefix(m.Destination, later.Destination+"/") {
				t.Errorf("%s is mounted, then covered by %s", m.Destination, later.Destination)
			}
		}
		if seen[m.Destination] {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		seen[m.Destination] = true
	}
	if got := mountAt(t, s, "/etc/hosts").Source; got != "/var/lib/kubelet/pods/5a2/etc-hosts" {
		t.Errorf("/etc/hosts is %s, not the kubelet's", got)
	}
	if got := mountAt(t, s, "/etc/resolv.conf").Source; got != "/run/berth/p/resolv.conf" {
		t.Errorf("/etc/resolv.conf is %s, not ours", got)
	}
}

func TestMountsThatCover(t *testing.T) {
	for _, tc := range []struct {
		at      string
		gone    []string // of what every container has
		remains []string
	}{
		{"/dev", []string{"/dev/pts", "/dev/mqueue"}, []string{"/dev", "/dev/shm", "/proc"}},
		{"/sys", []string{"/sys/fs/cgroup"}, []string{"/sys", "/dev"}},
		{"/dev/shm", nil, []string{"/dev", "/dev/shm"}},
		{"/etc/hostname", nil, []string{"/etc/hosts"}},
		{"/system", nil, []string{"/sys", "/sys/fs/cgroup"}},
	} {
		s := build(t, with(func(in *spec.Input) {
			in.Container.Mounts = []*cri.Mount{{ContainerPath: tc.at, HostPath: "/host" + tc.at}}
		}))
		if got := mountAt(t, s, tc.at).Source; got != "/host"+tc.at {
			t.Errorf("%s: mounted from %s", tc.at, got)
		}
		for _, d := range tc.gone {
			if slices.Contains(destinations(s), d) {
				t.Errorf("%s: %s is mounted, and covered", tc.at, d)
			}
		}
		for _, d := range tc.remains {
			if !slices.Contains(destinations(s), d) {
				t.Errorf("%s: %s is not mounted", tc.at, d)
			}
		}
	}
}

func TestPropagation(t *testing.T) {
	const (
		private = cri.MountPropagation_PROPAGATION_PRIVATE
		slave   = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		shared  = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	)
	for _, tc := range []struct {
		mounts []cri.MountPropagation
		root   string
	}{
		{nil, ""},
		{[]cri.MountPropagation{private}, ""},
		{[]cri.MountPropagation{private, slave}, "rslave"},
		{[]cri.MountPropagation{shared, slave, private}, "rshared"},
		{[]cri.MountPropagation{slave, shared}, "rshared"},
	} {
		s := build(t, with(func(in *spec.Input) {
			for i, p := range tc.mounts {
				in.Container.Mounts = append(in.Container.Mounts, &cri.Mount{ContainerPath: "/v" + string(rune('0'+i)), HostPath: "/h", Propagation: p})
			}
		}))
		if got := s.Linux.RootfsPropagation; got != tc.root {
			t.Errorf("%v: root %q; want %q", tc.mounts, got, tc.root)
		}
		for i, p := range tc.mounts {
			option := map[cri.MountPropagation]string{private: "rprivate", slave: "rslave", shared: "rshared"}[p]
			if m := mountAt(t, s, "/v"+string(rune('0'+i))); !slices.Contains(m.Options, option) {
				t.Errorf("%v: mount %d has %q; want %s", tc.mounts, i, m.Options, option)
			}
		}
	}
}

func TestImageVolumes(t *testing.T) {
	config := image.ImageConfig{Volumes: map[string]struct{}{"/data": {}, "log/": {}, "/data/": {}, "/cache": {}, "/a/../../b": {}}}
	mounts := &cri.ContainerConfig{Mounts: []*cri.Mount{{ContainerPath: "/cache/"}}}
	got, err := spec.ImageVolumes(config, mounts)
	if want := []string{"/b", "/data", "/log"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ImageVolumes = %q, %v; want %q", got, err, want)
	}
	for _, bad := range []string{"/", "..", "", "/a\x00b"} {
		_, err := spec.ImageVolumes(image.ImageConfig{Volumes: map[string]struct{}{bad: {}}}, nil)
		if err == nil {
			t.Errorf("volume %q is taken", bad)
		}
	}
	many := make(map[string]struct{})
	for i := range 1000 {
		many["/"+strings.Repeat("x", i+1)] = struct{}{}
	}
	_, err = spec.ImageVolumes(image.ImageConfig{Volumes: many}, nil)
	refused(t, err, "image.config.Volumes", spec.ErrUnsupported)
	// The kubelet's mount is not covered by the image's volume.
	s := build(t, with(func(in *spec.Input) {
		in.Container.Mounts = []*cri.Mount{{ContainerPath: "/data", HostPath: "/h"}}
		in.Volumes = []spec.Volume{{Path: "/data/", Source: "/v"}}
	}))
	var at []string
	for _, m := range s.Mounts {
		if m.Destination == "/data" {
			at = append(at, m.Source)
		}
	}
	if !slices.Equal(at, []string{"/h"}) {
		t.Errorf("/data is mounted from %q; want the kubelet's /h alone", at)
	}
}

// What a container asks for at the place of a device of the host is what it gets.
func TestDevicesByPath(t *testing.T) {
	in := with(privileged, func(in *spec.Input) {
		in.Container.Devices = []*cri.Device{{ContainerPath: "/dev/./fuse", HostPath: "/dev/vda", Permissions: "r"}}
		in.Devices = map[string][]spec.HostDevice{"/dev/vda": {{Path: "/dev/vda", Type: "b", Major: 254}}}
	})
	s := build(t, in)
	if len(s.Linux.Devices) != 2 || s.Linux.Devices[0].Path != "/dev/fuse" || s.Linux.Devices[0].Type != "b" {
		t.Errorf("devices %+v; want /dev/fuse once, a block device", s.Linux.Devices)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 1 || !rules[0].Allow {
		t.Errorf("rules %+v; want that all are allowed", rules)
	}
}

// FuzzEnv: whatever image and pod say, each variable has a name and is there once, the pod's word being
// the last.
func FuzzEnv(f *testing.F) {
	f.Add("A=b", "=c", "A", []byte("d"))
	f.Add("PATH=", "HOME=\xff", "HOME", []byte{0xff, '='})
	f.Add("no", "a=b\x00", "a b", []byte("\n"))
	f.Add("", "", "K", []byte{0})
	f.Fuzz(func(t *testing.T, image1, image2, name string, value []byte) {
		s, err := spec.Build(with(func(in *spec.Input) {
			in.Image.Env = []string{image1, image2}
			in.Container.Envs = []*cri.KeyValue{{Key: name, Value: value}}
		}))
		if err != nil {
			if name != "" && !strings.ContainsAny(name, "=\x00") && !bytes.ContainsRune(value, 0) {
				t.Fatalf("%q=%q: %v", name, value, err)
			}
			return
		}
		seen := make(map[string]bool)
		for _, kv := range s.Process.Env {
			n, _, ok := strings.Cut(kv, "=")
			if !ok || n == "" || seen[n] || strings.Contains(kv, "\x00") {
				t.Errorf("variable %q of %q", kv, s.Process.Env)
			}
			seen[n] = true
		}
		if got := env(s, name); got != string(value) {
			t.Errorf("%q = %q; want the pod's %q", name, got, value)
		}
		if !seen["PATH"] || !seen["HOME"] || !seen["HOSTNAME"] {
			t.Errorf("a variable that all have is missing: %q", s.Process.Env)
		}
	})
}
