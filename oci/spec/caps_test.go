// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

func TestCapabilities(t *testing.T) {
	const usual = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP"
	const all = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE NET_ADMIN NET_RAW SYS_PTRACE SYS_ADMIN BPF"
	for name, tc := range map[string]struct {
		add, drop, ambient string
		privileged         bool
		want, wantAmbient  string // without CAP_
	}{
		"default":            {want: usual},
		"drop all":           {drop: "ALL"},
		"drop all, as typed": {drop: "all"},
		"drop one":           {drop: "CAP_MKNOD net_raw", want: "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE SETFCAP"},
		"drop what is not":   {drop: "SYS_ADMIN", want: usual},
		"drop all, add one":  {drop: "ALL", add: "NET_BIND_SERVICE", want: "NET_BIND_SERVICE"},
		"add one":            {add: "Sys_Time", want: strings.Replace(usual, "SYS_CHROOT", "SYS_CHROOT SYS_TIME", 1)},
		"add and drop one":   {add: "SYS_TIME", drop: "SYS_TIME", want: usual},
		"add all":            {add: "ALL", want: all},
		"add all, drop one":  {add: "ALL", drop: "SYS_ADMIN", want: strings.Replace(all, "SYS_ADMIN ", "", 1)},
		"add and drop all":   {add: "ALL KILL", drop: "ALL", want: "KILL"},
		"ambient":            {drop: "ALL", ambient: "NET_BIND_SERVICE", want: "NET_BIND_SERVICE", wantAmbient: "NET_BIND_SERVICE"},
		"ambient, added":     {drop: "ALL", add: "KILL", ambient: "KILL", want: "KILL", wantAmbient: "KILL"},
		"ambient, dropped":   {drop: "ALL KILL", ambient: "KILL SETUID", want: "SETUID", wantAmbient: "SETUID"},
		"ambient, all":       {drop: "ALL", ambient: "ALL", want: all, wantAmbient: all},
		"privileged":         {privileged: true, drop: "ALL KILL", want: all},
		"privileged ambient": {privileged: true, ambient: "KILL", want: all, wantAmbient: "KILL"},
	} {
		t.Run(name, func(t *testing.T) {
			in := with(func(in *spec.Input) {
				if tc.privileged {
					privileged(in)
				}
				security(in).Capabilities = &cri.Capability{
					AddCapabilities: strings.Fields(tc.add), DropCapabilities: strings.Fields(tc.drop), AddAmbientCapabilities: strings.Fields(tc.ambient),
				}
			})
			c := build(t, in).Process.Capabilities
			for _, set := range []struct {
				name string
				got  []string
				want string
			}{
				{"bounding", c.Bounding, tc.want},
				{"effective", c.Effective, tc.want},
				{"permitted", c.Permitted, tc.want},
				{"ambient", c.Ambient, tc.wantAmbient},
				// Never more: CVE-2022-24769.
				{"inheritable", c.Inheritable, tc.wantAmbient},
			} {
				var want []string
				for _, n := range strings.Fields(set.want) {
					want = append(want, "CAP_"+n)
				}
				if !slices.Equal(set.got, want) {
					t.Errorf("%s = %q;\nwant %q", set.name, set.got, want)
				}
			}
		})
	}
}
