// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/berth-cri/berth/oci/ns"
)

func TestCheck(t *testing.T) {
	all := func(change func(*ns.Request)) ns.Request {
		r := ns.Request{ID: "abc", Net: true, IPC: true, UTS: true, Hostname: "web-0"}
		if change != nil {
			change(&r)
		}
		return r
	}
	sysctl := func(kv ...string) ns.Request {
		return all(func(r *ns.Request) {
			r.Sysctls = make(map[string]string)
			for i := 0; i < len(kv); i += 2 {
				r.Sysctls[kv[i]] = kv[i+1]
			}
		})
	}
	without := func(r ns.Request, change func(*ns.Request)) ns.Request {
		change(&r)
		return r
	}
	for name, tc := range map[string]struct {
		r    ns.Request
		want error
	}{
		"all":                   {all(nil), nil},
		"none":                  {ns.Request{ID: "a"}, nil},
		"id of 64 hex":          {ns.Request{ID: strings.Repeat("0f", 32)}, nil},
		"no id":                 {ns.Request{}, ns.ErrInvalid},
		"id climbs":             {ns.Request{ID: "../x"}, ns.ErrInvalid},
		"id with slash":         {ns.Request{ID: "a/b"}, ns.ErrInvalid},
		"id with zero":          {ns.Request{ID: "a\x00b"}, ns.ErrInvalid},
		"id begins with dot":    {ns.Request{ID: ".a"}, ns.ErrInvalid},
		"id too long":           {ns.Request{ID: strings.Repeat("a", 129)}, ns.ErrInvalid},
		"folder relative":       {ns.Request{ID: "a", PinDir: "run"}, ns.ErrInvalid},
		"folder not clean":      {ns.Request{ID: "a", PinDir: "/run/../etc"}, ns.ErrInvalid},
		"folder is root":        {ns.Request{ID: "a", PinDir: "/"}, ns.ErrInvalid},
		"folder with newline":   {ns.Request{ID: "a", PinDir: "/run\n/x"}, ns.ErrInvalid},
		"64 bytes of host name": {all(func(r *ns.Request) { r.Hostname = strings.Repeat("h", 64) }), nil},
		"65 bytes of host name": {all(func(r *ns.Request) { r.Hostname = strings.Repeat("h", 65) }), ns.ErrInvalid},
		"newline in host name":  {all(func(r *ns.Request) { r.Hostname = "a\nb" }), ns.ErrInvalid},
		"zero in host name":     {all(func(r *ns.Request) { r.Hostname = "a\x00b" }), ns.ErrInvalid},
		"host name of the node": {all(func(r *ns.Request) { r.UTS = false }), ns.ErrNotOwned},

		"kernel.shmmax":                {sysctl("kernel.shmmax", "1"), nil},
		"kernel.shm_rmid_forced":       {sysctl("kernel.shm_rmid_forced", "1"), nil},
		"kernel.msgmax":                {sysctl("kernel.msgmax", "1"), nil},
		"kernel.sem":                   {sysctl("kernel.sem", "250 32000\t32 128\n"), nil},
		"fs.mqueue":                    {sysctl("fs.mqueue.msg_max", "1"), nil},
		"net with dots":                {sysctl("net.ipv4.ip_forward", "1"), nil},
		"net with slashes":             {sysctl("net/ipv4/conf/eth0.1/forwarding", "1"), nil},
		"net with dots, dot in a name": {sysctl("net.ipv4.conf.eth0/1.forwarding", "1"), nil},

		"the node's":               {sysctl("kernel.panic", "1"), ns.ErrNotOwned},
		"the node's core_pattern":  {sysctl("kernel.core_pattern", "|/bin/sh"), ns.ErrNotOwned},
		"the node's vm":            {sysctl("vm.overcommit_memory", "1"), ns.ErrNotOwned},
		"like IPC's":               {sysctl("kernel.shmoo", "1"), ns.ErrNotOwned},
		"host name":                {sysctl("kernel.hostname", "x"), ns.ErrNotOwned},
		"net alone":                {sysctl("net", "1"), ns.ErrNotOwned},
		"like net":                 {sysctl("network.x", "1"), ns.ErrNotOwned},
		"below mqueue":             {sysctl("fs.mqueue.a.b", "1"), ns.ErrNotOwned},
		"climbs by slashes":        {sysctl("net/../kernel/panic", "1"), ns.ErrInvalid},
		"climbs by dots":           {sysctl("net.//.kernel.panic", "1"), ns.ErrInvalid},
		"climbs at once":           {sysctl("../etc/passwd", "1"), ns.ErrInvalid},
		"absolute":                 {sysctl("/net/ipv4/ip_forward", "1"), ns.ErrInvalid},
		"empty part":               {sysctl("net..ip_forward", "1"), ns.ErrInvalid},
		"empty name":               {sysctl("", "1"), ns.ErrInvalid},
		"single dot":               {sysctl("net/./ipv4", "1"), ns.ErrInvalid},
		"zero in name":             {sysctl("net.ipv4\x00.x", "1"), ns.ErrInvalid},
		"newline in name":          {sysctl("net.ipv4\n.x", "1"), ns.ErrInvalid},
		"newline in value":         {sysctl("net.ipv4.ip_forward", "1\n2"), ns.ErrInvalid},
		"zero in value":            {sysctl("net.ipv4.ip_forward", "1\x002"), ns.ErrInvalid},
		"value of a page":          {sysctl("net.ipv4.ip_forward", strings.Repeat("1", 4096)), ns.ErrInvalid},
		"twice, spelt differently": {sysctl("net.ipv4.ip_forward", "1", "net/ipv4/ip_forward", "0"), ns.ErrInvalid},

		"net on the node's network": {without(sysctl("net.ipv4.ip_forward", "1"), func(r *ns.Request) { r.Net = false }), ns.ErrNotOwned},
		"IPC on the node's IPC":     {without(sysctl("kernel.shmmax", "1"), func(r *ns.Request) { r.IPC = false }), ns.ErrNotOwned},
		"mqueue on the node's IPC":  {without(sysctl("fs.mqueue.msg_max", "1"), func(r *ns.Request) { r.IPC = false }), ns.ErrNotOwned},
		"net without IPC":           {without(sysctl("net.ipv4.ip_forward", "1"), func(r *ns.Request) { r.IPC = false }), nil},
		"IPC without net":           {without(sysctl("kernel.shmmax", "1"), func(r *ns.Request) { r.Net = false }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.r.Check(); !errors.Is(err, tc.want) {
				t.Errorf("Check() = %v; want %v", err, tc.want)
			}
		})
	}
}

func TestMakeChecksFirst(t *testing.T) {
	if _, err := ns.Make(t.Context(), ns.Request{ID: "..", UTS: true}); !errors.Is(err, ns.ErrInvalid) {
		t.Errorf("Make = %v; want ErrInvalid", err)
	}
}

func TestMakeNothing(t *testing.T) {
	got, err := ns.Make(t.Context(), ns.Request{ID: "abc", PinDir: t.TempDir() + "/pins"})
	if err != nil || got.Net != nil || got.IPC != nil || got.UTS != nil {
		t.Errorf("Make = %+v, %v; want no namespaces", got, err)
	}
}

// FuzzSysctl: whatever the name, one that is taken stays in the folders of a pod's namespaces.
func FuzzSysctl(f *testing.F) {
	for _, name := range []string{
		"net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/forwarding", "net.//.x", "net/../kernel", "kernel.sem", "fs.mqueue.x",
		"fs.mqueue.//..", "net.\x00", "./..", "net", "kernel/shmmax", "net.ipv4.conf.a/b.x", "net.ä.x", "\xff",
	} {
		f.Add(name, "1")
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		r := ns.Request{ID: "a", Net: true, IPC: true, Sysctls: map[string]string{name: value}}
		if r.Check() != nil {
			return
		}
		got, err := ns.SysctlPath(name)
		if err != nil {
			t.Fatalf("Check takes %q, which has no path: %v", name, err)
		}
		below := strings.HasPrefix(got, "net/") || strings.HasPrefix(got, "fs/mqueue/") || strings.HasPrefix(got, "kernel/")
		if !below || path.Clean("/"+got) != "/"+got || strings.ContainsAny(got, "\x00\n") {
			t.Errorf("%q is taken, with the path %q", name, got)
		}
		if strings.Contains(value, "\x00") || strings.Contains(strings.TrimSuffix(value, "\n"), "\n") {
			t.Errorf("value %q is taken", value)
		}
	})
}
