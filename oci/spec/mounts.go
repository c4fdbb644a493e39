// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	image "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts lists what is mounted, in the order in which it has to be done:
//
//  1. what every container has (/proc, /dev, /sys …), less what a mount of the kubelet would cover
//  2. by depth, so that none covers another: the kubelet's mounts, and where it has none the image's
//     volumes, /dev/shm, /etc/hosts, /etc/hostname and /etc/resolv.conf
//
// At one depth the order is that of the request.
func (b *builder) mounts() error {
	taken := make(map[string]bool) // by the kubelet
	var binds []specs.Mount
	for i, m := range b.Container.GetMounts() {
		mount, err := b.bind(at("container.mounts", i), m)
		if err != nil {
			return err
		}
		taken[mount.Destination] = true
		binds = append(binds, mount)
	}
	for _, v := range b.Volumes {
		if err := errorsOf(checkInside("image.config.Volumes", v.Path), checkPath("image.config.Volumes", v.Source)); err != nil {
			return err
		}
		if to := path.Clean(v.Path); !taken[to] {
			binds = append(binds, specs.Mount{Destination: to, Type: "bind", Source: v.Source, Options: []string{"rbind", "rprivate", "rw"}})
		}
	}
	for _, m := range b.ours() {
		if !taken[m.Destination] {
			binds = append(binds, m)
		}
	}
	slices.SortStableFunc(binds, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range b.standard() {
		if !covered(m.Destination, taken) {
			b.spec.Mounts = append(b.spec.Mounts, m)
		}
	}
	b.spec.Mounts = append(b.spec.Mounts, binds...)
	return nil
}

// errorsOf returns the first error.
func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func depth(p string) int { return strings.Count(p, "/") }

// covered says whether a mount at p, made first, would lie under one of the kubelet's.
func covered(p string, taken map[string]bool) bool {
	for ; p != "/"; p = path.Dir(p) {
		if taken[p] {
			return true
		}
	}
	return false
}

// bind is a volume of the pod.
//
// While a container is set up, its root bounds what can be propagated below it: a mount that gives back
// to the host needs rshared, and one that receives from it rslave.
func (b *builder) bind(field string, m *cri.Mount) (specs.Mount, error) {
	if err := errorsOf(
		checkInside(field+".container_path", m.GetContainerPath()),
		checkPath(field+".host_path", m.GetHostPath()),
	); err != nil {
		return specs.Mount{}, err
	}
	options := []string{"rbind"}
	root := &b.spec.Linux.RootfsPropagation
	switch p := m.GetPropagation(); p {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
		if *root == "" {
			*root = "rslave"
		}
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
		*root = "rshared"
	default:
		return specs.Mount{}, invalid(field+".propagation", "%s: want private, host to container or bidirectional", p)
	}
	return specs.Mount{
		Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: m.GetHostPath(),
		Options: append(options, readOnly(m.GetReadonly())),
	}, nil
}

func readOnly(yes bool) string {
	if yes {
		return "ro"
	}
	return "rw"
}

// ours are the mounts for which a kubelet may have its own.
func (b *builder) ours() []specs.Mount {
	shm := PodShm
	if !b.own().IPC {
		shm = "/dev/shm" // System V shared memory and POSIX's are of one namespace
	}
	list := []specs.Mount{{
		Destination: "/dev/shm", Type: "bind", Source: shm,
		// Not rbind: what is mounted below the node's is none of its shared memory.
		Options: []string{"bind", "rprivate", "rw", "nosuid", "nodev", "noexec"},
	}}
	for _, f := range []struct{ to, from string }{
		{"/etc/hosts", b.Files.Hosts},
		{"/etc/hostname", b.Files.Hostname},
		{"/etc/resolv.conf", b.Files.ResolvConf},
	} {
		if f.from != "" {
			list = append(list, specs.Mount{
				Destination: f.to, Type: "bind", Source: f.from,
				Options: []string{"bind", "rprivate", readOnly(b.security.GetReadonlyRootfs())},
			})
		}
	}
	return list
}

// standard are the file systems of every container. A privileged one may write to those of the kernel.
func (b *builder) standard() []specs.Mount {
	kernel := readOnly(!b.privileged)
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", kernel}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", kernel}},
	}
}

// maxVolumes bounds how many folders an image can have made for it.
const maxVolumes = 128

// ImageVolumes returns where in the container the image wants volumes that the kubelet mounts nothing
// on, in order and cleaned. For each the caller makes an empty folder and hands both to Build.
func ImageVolumes(config image.ImageConfig, c *cri.ContainerConfig) ([]string, error) {
	if len(config.Volumes) > maxVolumes {
		return nil, unsupported("image.config.Volumes", "%d of them: at most %d", len(config.Volumes), maxVolumes)
	}
	taken := make(map[string]bool)
	for _, m := range c.GetMounts() {
		taken[path.Clean(m.GetContainerPath())] = true
	}
	wanted := make(map[string]bool)
	for _, v := range slices.Sorted(maps.Keys(config.Volumes)) {
		p := path.Join("/", v) // docker takes "data" for "/data"
		if err := checkInside(fmt.Sprintf("image.config.Volumes[%.100q]", v), p); err != nil {
			return nil, err
		}
		if !taken[p] {
			wanted[p] = true
		}
	}
	return slices.Sorted(maps.Keys(wanted)), nil
}
