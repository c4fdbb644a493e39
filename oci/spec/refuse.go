// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refuse refuses what berth does not do yet, or never will. What asks for nothing (an empty message, a
// label on a node without SELinux) is let through: it means the same done or not done.
func (b *builder) refuse() error {
	c := b.Container
	if c == nil {
		return invalid("container", "missing")
	}
	if proto.Size(c.GetWindows()) > 0 {
		return unsupported("container.windows", "this node runs Linux")
	}
	if n := len(c.GetCDIDevices()); n > 0 {
		return later("container.CDI_devices", fmt.Sprintf("%d CDI devices", n))
	}
	for i, m := range c.GetMounts() {
		if err := b.refuseMount(at("container.mounts", i), m); err != nil {
			return err
		}
	}
	const security = "container.linux.security_context."
	if err := refuseUserNamespace(security+"namespace_options.userns_options", b.security.GetNamespaceOptions()); err != nil {
		return err
	}
	if b.privileged {
		if !b.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
			return invalid(security+"privileged", "the pod was made without privileged")
		}
		return nil // SELinux and AppArmor are off for it, whatever is asked for
	}
	if err := refuseSELinux(security+"selinux_options", b.security.GetSelinuxOptions(), b.Features); err != nil {
		return err
	}
	return b.refuseAppArmor(security)
}

func (b *builder) refuseMount(field string, m *cri.Mount) error {
	switch {
	case m.GetImage() != nil:
		return later(field+".image", "an image as a volume")
	case m.GetImageSubPath() != "":
		return invalid(field+".image_sub_path", "%.80q without image", m.GetImageSubPath())
	case len(m.GetUidMappings()) > 0:
		return later(field+".uidMappings", "an idmapped mount")
	case len(m.GetGidMappings()) > 0:
		return later(field+".gidMappings", "an idmapped mount")
	case m.GetRecursiveReadOnly():
		return later(field+".recursive_read_only", "a mount that is read-only all the way down")
	case len(m.GetMountOptions()) > 0:
		return later(field+".mount_options", fmt.Sprintf("mount options %.80q", m.GetMountOptions()))
	case m.GetSelinuxRelabel() && b.Features.SELinux:
		return later(field+".selinux_relabel", "SELinux labels")
	}
	return nil
}

func refuseUserNamespace(field string, o *cri.NamespaceOption) error {
	u := o.GetUsernsOptions()
	if u == nil {
		return nil // sent by a kubelet that knows of none
	}
	switch u.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return invalid(field, "mappings for the node's user namespace")
		}
		return nil
	case cri.NamespaceMode_POD:
		return later(field, "a user namespace")
	default:
		return invalid(field+".mode", "%s: want POD or NODE", u.GetMode())
	}
}

func refuseSELinux(field string, o *cri.SELinuxOption, f Features) error {
	if proto.Size(o) > 0 && f.SELinux {
		return later(field, "SELinux labels")
	}
	return nil
}

func (b *builder) refuseAppArmor(security string) error {
	if p := b.security.GetApparmor(); p != nil {
		if p.GetProfileType() != cri.SecurityProfile_Unconfined {
			return later(security+"apparmor", "AppArmor profile "+p.GetProfileType().String())
		}
		return nil
	}
	switch old := b.security.GetApparmorProfile(); old { //nolint:staticcheck // deprecated, and still to be answered
	case "", "unconfined":
		return nil
	default:
		return later(security+"apparmor_profile", fmt.Sprintf("AppArmor profile %.80q", old))
	}
}

// at names one element of a list.
func at(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// key names one element of a map.
func key(field, k string) string { return fmt.Sprintf("%s[%.100q]", field, k) }

// checkPath wants an absolute path that the kernel reads as it is written here.
func checkPath(field, p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return invalid(field, "%.200q: want an absolute path", p)
	case strings.ContainsRune(p, 0):
		return invalid(field, "%.200q: a zero byte", p)
	case len(p) >= 4096:
		return invalid(field, "%.80q: %d bytes, the kernel takes 4095", p, len(p))
	}
	return nil
}

// checkInside wants the path of something inside the container, other than its root.
func checkInside(field, p string) error {
	if err := checkPath(field, p); err != nil {
		return err
	}
	if path.Clean(p) == "/" {
		return invalid(field, "%.200q is the container's root", p)
	}
	return nil
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }
