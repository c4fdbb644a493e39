// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// devices decides on device nodes and on the rules for them. The few that every container has
// (/dev/null and its kin) are the executor's.
func (b *builder) devices() error {
	d := deviceList{index: make(map[string]int)}
	all := b.privileged && !b.Handler.PrivilegedWithoutHostDevices
	if all {
		d.rules = append(d.rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
		for _, dev := range b.HostDevices {
			d.add(dev.Path, dev)
		}
	} else {
		// First, since a later rule prevails.
		d.rules = append(d.rules, specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"})
	}
	for i, asked := range b.Container.GetDevices() {
		field := at("container.devices", i)
		if err := checkPath(field+".host_path", asked.GetHostPath()); err != nil {
			return err
		}
		if err := checkInside(field+".container_path", asked.GetContainerPath()); err != nil {
			return err
		}
		access, ok := access(asked.GetPermissions())
		if !ok {
			return invalid(field+".permissions", "%.20q: want one or more of r, w, m", asked.GetPermissions())
		}
		found := b.Devices[asked.GetHostPath()]
		if len(found) == 0 {
			return invalid(field+".host_path", "%.200q: no device there", asked.GetHostPath())
		}
		for _, dev := range found {
			// A folder of devices keeps its shape.
			below, ok := strings.CutPrefix(path.Clean(dev.Path), path.Clean(asked.GetHostPath()))
			if !ok || below != "" && below[0] != '/' {
				return invalid(field+".host_path", "%.200q: found %.200q, which is not below it", asked.GetHostPath(), dev.Path)
			}
			d.add(path.Join(asked.GetContainerPath(), below), dev)
			if !all {
				d.rules = append(d.rules, specs.LinuxDeviceCgroup{
					Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: access,
				})
			}
		}
	}
	b.spec.Linux.Devices = d.list
	b.spec.Linux.Resources.Devices = d.rules
	return nil
}

// deviceList has one node for each path: the last one.
type deviceList struct {
	list  []specs.LinuxDevice
	index map[string]int
	rules []specs.LinuxDeviceCgroup
}

func (d *deviceList) add(at string, dev HostDevice) {
	node := specs.LinuxDevice{
		Path: at, Type: dev.Type, Major: dev.Major, Minor: dev.Minor,
		FileMode: &dev.Mode, UID: &dev.UID, GID: &dev.GID,
	}
	if i, ok := d.index[at]; ok {
		d.list[i] = node
		return
	}
	d.index[at] = len(d.list)
	d.list = append(d.list, node)
}

// access writes permissions in the kernel's order, each once.
func access(permissions string) (string, bool) {
	var out string
	for _, c := range "rwm" {
		if strings.ContainsRune(permissions, c) {
			out += string(c)
		}
	}
	return out, out != "" && strings.Trim(permissions, "rwm") == ""
}
