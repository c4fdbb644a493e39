// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-cri/berth/network"
)

// confTemplate is in the form of the other runtimes' documentation.
const confTemplate = `{
	"name": "net-t", "cniVersion": "1.0.0",
	"plugins": [{
		"type": "one", "first": "{{.PodCIDR}}",
		"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
		"routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
	}]
}`

func TestSetPodCIDR(t *testing.T) {
	r := newRig(t)
	r.conf.ConfTemplate = filepath.Join(r.dir, "template")
	r.put("template", confTemplate)
	n := r.open()
	made := filepath.Join(r.conf.ConfDir, "10-berth.conflist")
	plugin := func() string {
		t.Helper()
		b, err := os.ReadFile(made)
		if err != nil {
			t.Fatal(err)
		}
		var list struct{ Plugins []json.RawMessage }
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(list.Plugins[0], &fields); err != nil {
			t.Fatal(err)
		}
		b, _ = json.Marshal(fields)
		return string(b)
	}
	if err := n.SetPodCIDR(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made for no CIDR: %v", err)
	}
	for _, bad := range []string{"10.1.0.0", "10.1.0.0/24,", `10.1.0.0/24"}`, "10.1.0.0/24;fd00::/64"} {
		if err := n.SetPodCIDR(t.Context(), bad); !errors.Is(err, network.ErrInvalid) {
			t.Errorf("SetPodCIDR(%q) = %v", bad, err)
		}
	}
	if err := n.SetPodCIDR(t.Context(), "10.1.0.0/24, fd00::/64"); err != nil {
		t.Fatal(err)
	}
	want := `{"first":"10.1.0.0/24","ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]],` +
		`"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"type":"one"}`
	if got := plugin(); got != want {
		t.Errorf("made\n%s\nwant\n%s", got, want)
	}
	// In use when the call returns.
	if s := n.Status(t.Context()); len(s.Networks) != 1 || s.Networks[0] != "net-t" {
		t.Errorf("Status = %+v", s)
	}
	if st, err := os.Stat(made); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// Again, with another range, and with the same, which changes nothing.
	if err := n.SetPodCIDR(t.Context(), "10.2.0.0/24"); err != nil {
		t.Fatal(err)
	}
	want = `{"first":"10.2.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"type":"one"}`
	if got := plugin(); got != want {
		t.Errorf("made\n%s\nwant\n%s", got, want)
	}
	before, _ := os.Stat(made)
	if err := n.SetPodCIDR(t.Context(), "10.2.0.0/24"); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(made); !os.SameFile(before, after) {
		t.Error("written anew without a change")
	}
	// A template that makes no configuration changes nothing.
	for _, bad := range []string{"{{.PodCIDR", "{{.Nothing}}", "{}", ""} {
		r.put("template", bad)
		if err := n.SetPodCIDR(t.Context(), "10.3.0.0/24"); err == nil {
			t.Errorf("template %q: no error", bad)
		}
	}
	if got := plugin(); got != want {
		t.Errorf("made\n%s\nwant\n%s", got, want)
	}
	// An add-on has installed its own.
	r.put("template", confTemplate)
	r.list("99-addon.conflist", "net-addon", r.plugin("one", nil))
	if err := n.SetPodCIDR(t.Context(), "10.4.0.0/24"); err != nil {
		t.Fatal(err)
	}
	if got := plugin(); got != want {
		t.Errorf("made beside another\n%s", got)
	}
	entries, err := os.ReadDir(r.conf.ConfDir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestSetPodCIDRWithoutTemplate(t *testing.T) {
	r := newRig(t)
	n := r.open()
	if err := n.SetPodCIDR(t.Context(), "10.1.0.0/24"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.conf.ConfDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made a folder: %v", err)
	}
}
