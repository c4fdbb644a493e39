// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// templateFile is what SetPodCIDR writes in the folder of configurations.
const templateFile = "10-berth.conflist"

// templateData is what a template can name; the names are those of the other runtimes' templates.
type templateData struct {
	PodCIDR       string   // the first: "10.244.1.0/24"
	PodCIDRRanges []string // all of them
	Routes        []string // a default route for each family among them: "0.0.0.0/0", "::/0"
}

// SetPodCIDR makes a configuration from Config.ConfTemplate, for the ranges of addresses that the
// kubelet gives its pods (CRI, UpdateRuntimeConfig): cidrs has one or, separated by a comma, two.
//
// Nothing is written without a template, or where there is a valid configuration that is not ours: a
// network add-on has installed its own. One of ours is written anew when the ranges change.
func (n *Network) SetPodCIDR(ctx context.Context, cidrs string) error {
	log := klog.FromContext(ctx)
	if cidrs == "" {
		return nil // a kubelet has none to give where an add-on allots them
	}
	data, err := newTemplateData(cidrs)
	if err != nil {
		return err
	}
	if n.cfg.ConfTemplate == "" {
		return nil
	}
	n.write.Lock()
	defer n.write.Unlock()
	for _, c := range loadConfs(n.cfg.ConfDir, time.Now()).valid {
		if c.file != templateFile {
			log.V(2).Info("There is a CNI configuration; none is made from the template", "file", c.file)
			return nil
		}
	}
	content, err := renderConf(n.cfg.ConfTemplate, data)
	if err != nil {
		return fmt.Errorf("CNI configuration template %s: %w", n.cfg.ConfTemplate, err)
	}
	path := filepath.Join(n.cfg.ConfDir, templateFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(n.cfg.ConfDir, 0o755); err != nil {
		return err
	}
	if err := writeFile(path, content); err != nil {
		return err
	}
	log.Info("Made a CNI configuration from the template", "file", path, "podCIDR", data.PodCIDRRanges)
	n.reload(log, true) // the watcher would, in a moment
	return nil
}

func newTemplateData(cidrs string) (templateData, error) {
	var data templateData
	seen := map[string]bool{}
	for text := range strings.SplitSeq(cidrs, ",") {
		// Parsed, so that nothing else gets into a file that says which programs run as root.
		cidr, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return templateData{}, fmt.Errorf("%w pod CIDR: %w", ErrInvalid, err)
		}
		data.PodCIDRRanges = append(data.PodCIDRRanges, cidr.String())
		route := "0.0.0.0/0"
		if cidr.Addr().Is6() {
			route = "::/0"
		}
		if !seen[route] {
			data.Routes = append(data.Routes, route)
		}
		seen[route] = true
	}
	data.PodCIDR = data.PodCIDRRanges[0]
	return data, nil
}

// renderConf fills in the template, and holds that the result is a configuration.
func renderConf(path string, data templateData) ([]byte, error) {
	text, err := readConf(path)
	if err != nil {
		return nil, err
	}
	t, err := template.New(filepath.Base(path)).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, err
	}
	_, err = parseConf(b.Bytes(), true, func(string) ([]*libcni.PluginConfig, error) { return nil, nil })
	return b.Bytes(), err
}

// writeFile puts a file in place whole, so that nobody reads half of it.
func writeFile(path string, content []byte) (err error) {
	// No suffix of a configuration, as long as it is a draft.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.draft")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
