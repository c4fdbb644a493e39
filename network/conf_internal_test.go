// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// What a configuration file holds is foreign; what comes of it can be read back from its bytes alone.
func FuzzParseConf(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`,
		`{"cniVersions":["0.4.0","1.1.0","2.0.0"],"name":"a","plugins":[{"type":"x"}],"disableCheck":"true","disableGC":true}`,
		`{"cniVersion":"0.3.1","name":"a","type":"bridge","capabilities":{"portMappings":true}}`,
		`{"cniVersion":"1.1.0","name":"a"}`,
		`{"cniVersion":"1.1.0","name":"a","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x","mtu":1e400}]}`,
		`{"name":"a","plugins":[{"type":"x","name":"b","cniVersion":"7"}]}`,
		`null`, `{"name":"a","plugins":[null]}`, `{"name":null}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	extra, err := libcni.NetworkPluginConfFromBytes([]byte(`{"type":"extra"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, isList bool) {
		folder := func(string) ([]*libcni.PluginConfig, error) { return []*libcni.PluginConfig{extra}, nil }
		list, err := parseConf(b, isList, folder)
		if err != nil {
			return
		}
		again, err := libcni.NetworkConfFromBytes(bytes.Clone(list.Bytes))
		if err != nil || again.Name != list.Name || again.CNIVersion != list.CNIVersion || len(again.Plugins) != len(list.Plugins) ||
			again.DisableCheck != list.DisableCheck || again.DisableGC != list.DisableGC {
			t.Fatalf("%s\nmade %s\nread again %+v, %v", b, list.Bytes, again, err)
		}
		if !again.LoadOnlyInlinedPlugins {
			t.Errorf("%s would take plugins from a folder again", list.Bytes)
		}
		for i, p := range again.Plugins {
			if p.Network.Type == "" || !bytes.Equal(p.Bytes, list.Plugins[i].Bytes) {
				t.Errorf("plugin %d is %s", i, p.Bytes)
			}
		}
	})
}

// The plugins of a folder follow those of the file.
func TestPluginsOfFolderAreInlined(t *testing.T) {
	list, err := parseConf([]byte(`{"cniVersions":["1.0.0","1.1.0","7.0.0"],"cniVersion":"0.4.0","name":"a","mine":[1],"plugins":[{"type":"x"}]}`), true, func(network string) ([]*libcni.PluginConfig, error) {
		p, err := libcni.NetworkPluginConfFromBytes([]byte(`{"type":"y","of":"` + network + `"}`))
		return []*libcni.PluginConfig{p}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cniVersion":"1.1.0","loadOnlyInlinedPlugins":true,"mine":[1],"name":"a","plugins":[{"type":"x"},{"type":"y","of":"a"}]}`
	if string(list.Bytes) != want {
		t.Errorf("%s\nwant\n%s", list.Bytes, want)
	}
}

// What cannot be read may be half of a file, as long as it is new: nothing changes until it is whole, or
// old enough to be no configuration.
func TestUnsettled(t *testing.T) {
	dir := t.TempDir()
	write := func(file, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	whole := `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"x"}]}`
	write("10-a.conflist", whole[:20])
	st, err := os.Stat(filepath.Join(dir, "10-a.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	for age, want := range map[time.Duration]bool{
		0: true, quiet / 2: true, quiet: false, time.Hour: false,
		-time.Hour: false, // the clock was set back, and would have to come there first
	} {
		if got := loadConfs(dir, st.ModTime().Add(age)).unsettled; got != want {
			t.Errorf("a file cut short %v ago: unsettled %v; want %v", age, got, want)
		}
	}
	write("10-a.conflist", whole)
	write("20-b.conflist", whole)
	n := &Network{cfg: Config{ConfDir: dir, MaxConfs: 1}, ask: make(chan struct{}, 1), changed: make(chan struct{})}
	inUse := func() string {
		t.Helper()
		confs, err := n.attachable()
		if err != nil {
			t.Fatal(err)
		}
		return confs[0].file
	}
	if !n.reload(klog.Logger{}, false) || inUse() != "10-a.conflist" {
		t.Fatalf("in use: %s", inUse())
	}
	settled := true
	for range 100 { // on a busy machine it may be old by the time it is looked at
		write("10-a.conflist", whole[:20])
		if settled = n.reload(klog.Logger{}, false); !settled {
			break
		}
		write("10-a.conflist", whole)
		n.reload(klog.Logger{}, true)
	}
	if settled {
		t.Fatal("half of a file is taken for all of it")
	}
	if inUse() != "10-a.conflist" {
		t.Errorf("while the first is written, %s is in use", inUse())
	}
	if !n.reload(klog.Logger{}, true) || inUse() != "20-b.conflist" {
		t.Errorf("after a while, %s is in use", inUse())
	}
}
