// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"testing"

	"github.com/containernetworking/cni/libcni"
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
	list, err := parseConf([]byte(`{"cniVersion":"1.1.0","name":"a","mine":[1],"plugins":[{"type":"x"}]}`), true, func(network string) ([]*libcni.PluginConfig, error) {
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
