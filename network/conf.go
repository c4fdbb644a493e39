// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// maxConf bounds a configuration file, in bytes.
const maxConf = 1 << 20

// conf is a valid configuration. It never changes.
type conf struct {
	file string // in the folder
	// list has all its plugins in it, those of a folder of plugins too (specification 1.1.0, "Plugin
	// configuration objects"): list.Bytes alone make the same list again when the pod is detached.
	list *libcni.NetworkConfigList
}

func (c conf) equal(d conf) bool {
	return c.file == d.file && bytes.Equal(c.list.Bytes, d.list.Bytes)
}

// confSet is what a folder holds: the valid configurations in the order of their names, and the files
// that are none.
type confSet struct {
	valid   []conf
	invalid []*ConfigError
	err     error // of the folder itself
	// unsettled says that one of the invalid files was written just now, and so may be half of one.
	unsettled bool
}

func (s confSet) equal(t confSet) bool {
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	return slices.EqualFunc(s.valid, t.valid, conf.equal) && text(s.err) == text(t.err) &&
		slices.EqualFunc(s.invalid, t.invalid, func(a, b *ConfigError) bool { return a.Error() == b.Error() })
}

// reason says why there is no valid configuration.
func (s confSet) reason(dir string) error {
	if s.err != nil {
		return fmt.Errorf("%w: %w", ErrNoConfig, s.err)
	}
	errs := []any{ErrNoConfig, dir}
	format := "%w in %s"
	for i, e := range s.invalid {
		if i == 5 {
			format += fmt.Sprintf("; and %d more", len(s.invalid)-i)
			break
		}
		format += "; %w"
		errs = append(errs, e)
	}
	return fmt.Errorf(format, errs...)
}

// loadConfs reads a folder, at the time now. One that is not there has no configurations, which is how a node begins.
func loadConfs(dir string, now time.Time) (set confSet) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return confSet{}
	}
	if err != nil {
		return confSet{err: err}
	}
	for _, e := range entries { // in the order of their names
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
		default:
			continue
		}
		if e.IsDir() {
			continue
		}
		list, err := loadConf(dir, e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since it was listed
		case err != nil:
			set.invalid = append(set.invalid, &ConfigError{File: e.Name(), Err: err})
			if st, err := os.Stat(filepath.Join(dir, e.Name())); err == nil {
				age := now.Sub(st.ModTime())
				set.unsettled = set.unsettled || 0 <= age && age < quiet
			}
		default:
			set.valid = append(set.valid, conf{file: e.Name(), list: list})
		}
	}
	return set
}

func loadConf(dir, file string) (*libcni.NetworkConfigList, error) {
	b, err := readConf(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	return parseConf(b, filepath.Ext(file) == ".conflist", func(network string) ([]*libcni.PluginConfig, error) {
		return loadPlugins(filepath.Join(dir, network))
	})
}

// loadPlugins reads the folder of plugins of a network.
func loadPlugins(dir string) ([]*libcni.PluginConfig, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf"})
	if err != nil {
		return nil, err
	}
	var plugins []*libcni.PluginConfig
	for _, file := range files {
		b, err := readConf(file)
		if err != nil {
			return nil, err
		}
		plugin, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		plugins = append(plugins, plugin)
	}
	return plugins, nil
}

// readConf reads a regular file: of a FIFO that someone left in the folder, to open is to wait.
func readConf(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(b) > maxConf {
		err = fmt.Errorf("%s has more than %d bytes", path, maxConf)
	}
	return b, err
}

// parseConf makes a list of a file's content; folder returns the plugins in the folder of a network.
func parseConf(b []byte, isList bool, folder func(network string) ([]*libcni.PluginConfig, error)) (*libcni.NetworkConfigList, error) {
	var list *libcni.NetworkConfigList
	if isList {
		var err error
		if list, err = libcni.NetworkConfFromBytes(b); err != nil {
			return nil, err
		}
	} else {
		plugin, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, err
		}
		//nolint:staticcheck // deprecated with the form, which people still have
		if list, err = libcni.ConfListFromConf(plugin); err != nil {
			return nil, err
		}
		list.LoadOnlyInlinedPlugins = true // what this form has
	}
	// First of all: it becomes part of paths.
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return nil, fmt.Errorf("cniVersion %.50q: %w", list.CNIVersion, err)
	}
	if newer {
		return nil, fmt.Errorf("cniVersion %.50q: only up to %s is known", list.CNIVersion, version.Current())
	}
	if !list.LoadOnlyInlinedPlugins {
		more, err := folder(list.Name)
		if err != nil {
			return nil, err
		}
		list.Plugins = append(list.Plugins, more...)
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}
	return inline(list)
}

// inline makes the list whose bytes hold all its plugins.
func inline(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	plugins := make([]json.RawMessage, 0, len(list.Plugins))
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	delete(raw, "cniVersions") // the choice among them is made
	for key, value := range map[string]any{
		"name": list.Name, "cniVersion": list.CNIVersion, "plugins": plugins, "loadOnlyInlinedPlugins": true,
	} {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		raw[key] = b
	}
	b, err := json.Marshal(raw)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(b)
}
