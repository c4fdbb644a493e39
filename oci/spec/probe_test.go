// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/spec"
)

func TestProbe(t *testing.T) {
	f, err := spec.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if f.Arch != runtime.GOARCH || f.Kernel.Major < 4 {
		t.Errorf("%+v", f)
	}
	if f.Kernel.AtLeast(5, 12) != f.RecursiveReadOnly || !f.CgroupNamespace {
		t.Errorf("Linux %+v, recursive read-only mounts %v, cgroup namespaces %v", f.Kernel, f.RecursiveReadOnly, f.CgroupNamespace)
	}
	// What this process may have now, it may have at all.
	var data [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{"CAP_CHOWN": unix.CAP_CHOWN, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE} {
		if data[n/32].Effective&(1<<(n%32)) != 0 && !slices.Contains(f.Capabilities, name) {
			t.Errorf("%s is effective, but not among %q", name, f.Capabilities)
		}
	}
	again, err := spec.Probe()
	if err != nil || !reflect.DeepEqual(f, again) {
		t.Errorf("a second time: %+v, %v", again, err)
	}
}

func TestFindDevices(t *testing.T) {
	want := spec.HostDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Mode: 0o666}
	got, err := spec.FindDevices("/dev/null")
	if err != nil || len(got) != 1 {
		t.Fatalf("/dev/null: %+v, %v", got, err)
	}
	got[0].UID, got[0].GID, got[0].Mode = 0, 0, 0o666 // as the machine has it
	if got[0] != want {
		t.Errorf("/dev/null is %+v; want %+v", got[0], want)
	}
	// A link is named as it was asked for.
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	got, err = spec.FindDevices(link)
	if err != nil || len(got) != 1 || got[0].Path != link || got[0].Major != 1 || got[0].Minor != 3 {
		t.Errorf("a link: %+v, %v", got, err)
	}
	// Below a folder links are not followed, nor is what is no device taken.
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := spec.FindDevices(dir); err != nil || len(got) != 0 {
		t.Errorf("a folder of links: %+v, %v", got, err)
	}
	if got, err := spec.FindDevices(filepath.Join(dir, "file")); err == nil {
		t.Errorf("a file: %+v", got)
	}
	if _, err := spec.FindDevices(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}

	all, err := spec.FindDevices("/dev/")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d spec.HostDevice) bool { return d.Path == "/dev/null" })
	if i < 0 {
		t.Fatalf("/dev/null is not among %+v", all)
	}
	for _, d := range all {
		if d.Path == "/dev/console" || filepath.Dir(d.Path) == "/dev/pts" || filepath.Dir(d.Path) == "/dev/shm" {
			t.Errorf("%s is a container's own", d.Path)
		}
	}
	// By a link to the folder as well.
	devlink := filepath.Join(dir, "dev")
	if err := os.Symlink("/dev", devlink); err != nil {
		t.Fatal(err)
	}
	linked, err := spec.FindDevices(devlink)
	if err != nil || !slices.ContainsFunc(linked, func(d spec.HostDevice) bool { return d.Path == devlink+"/null" }) {
		t.Errorf("by a link: %d devices, %v", len(linked), err)
	}
}
