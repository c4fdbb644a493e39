// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/oci/cgroup"
)

// defaultPath is where the configuration is looked for. It need not be there.
const defaultPath = "/etc/berth/config.toml"

// defaults is the configuration with all defaults and a comment on each key. It is what
// the program starts from, so that it cannot be wrong about itself.
//
//go:embed default.toml
var defaults string

// errConfig says that a configuration cannot be used. The message names file, line and key.
var errConfig = errors.New("bad configuration")

// config is the configuration file; see default.toml.
type config struct {
	Root  string `toml:"root"`
	State string `toml:"state"`

	Log struct {
		Format string `toml:"format"`
		Level  int    `toml:"level"`
	} `toml:"log"`
	CRI struct {
		Socket    string `toml:"socket"`
		SocketUID int    `toml:"socket_uid"`
		SocketGID int    `toml:"socket_gid"`
		Streaming struct {
			Address     string   `toml:"address"`
			Port        int      `toml:"port"`
			IdleTimeout duration `toml:"idle_timeout"`
		} `toml:"streaming"`
	} `toml:"cri"`
	Executor struct {
		Binary string `toml:"binary"`
		Cgroup string `toml:"cgroup"`
	} `toml:"executor"`
	Cgroup struct {
		Driver string `toml:"driver"`
		Prefix string `toml:"prefix"`
	} `toml:"cgroup"`
	Logs struct {
		MaxLineSize int `toml:"max_line_size"`
	} `toml:"logs"`
	Image struct {
		MaxConcurrentDownloads int      `toml:"max_concurrent_downloads"`
		Pinned                 []string `toml:"pinned"`
	} `toml:"image"`
	Registry struct {
		ConfigPath []string `toml:"config_path"`
		NoProgress duration `toml:"no_progress_timeout"`
	} `toml:"registry"`
	Network struct {
		ConfDir      string   `toml:"conf_dir"`
		BinDirs      []string `toml:"bin_dirs"`
		MaxConfs     int      `toml:"max_confs"`
		ConfTemplate string   `toml:"conf_template"`
		NetNSDir     string   `toml:"netns_dir"`
		IPPreference string   `toml:"ip_preference"`
	} `toml:"network"`
	Handlers map[string]struct {
		Kind                         string   `toml:"kind"`
		PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices"`
		PodAnnotations               []string `toml:"pod_annotations"`
		ContainerAnnotations         []string `toml:"container_annotations"`
	} `toml:"handlers"`
}

// duration is written as "10s".
type duration time.Duration

// UnmarshalText reads a duration.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v < 0 {
		err = fmt.Errorf("%q is negative", b)
	}
	*d = duration(v)
	return err
}

// loadConfig reads a configuration above the defaults. Only the one at defaultPath may
// be missing.
func loadConfig(path string) (*config, error) {
	c := new(config)
	if err := decode("defaults", []byte(defaults), c); err != nil {
		panic(err) // a test reads them
	}
	named := path != ""
	if !named {
		path = defaultPath
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	if err := decode(path, b, c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errConfig, path, err)
	}
	return c, nil
}

// decode reads TOML, strictly.
func decode(path string, b []byte, c *config) error {
	d := toml.NewDecoder(newReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(c)
	if unknown := (*toml.StrictMissingError)(nil); errors.As(err, &unknown) {
		first := unknown.Errors[0]
		row, _ := first.Position()
		return fmt.Errorf("%w: %s:%d: unknown key %q (berth config default prints all keys)", errConfig, path, row, joinKey(first.Key()))
	}
	if bad := (*toml.DecodeError)(nil); errors.As(err, &bad) {
		row, _ := bad.Position()
		return fmt.Errorf("%w: %s:%d: %s: %w", errConfig, path, row, joinKey(bad.Key()), bad)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errConfig, path, err)
	}
	return nil
}

// check refuses values that cannot be right.
func (c *config) check() error {
	for key, path := range map[string]string{
		"root": c.Root, "state": c.State, "cri.socket": c.CRI.Socket, "network.conf_dir": c.Network.ConfDir, "network.netns_dir": c.Network.NetNSDir,
	} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return fmt.Errorf("%s = %q: not an absolute, clean path", key, path)
		}
	}
	if c.Root == c.State {
		return fmt.Errorf("root and state are both %q; state is emptied by a reboot and must be a tmpfs", c.Root)
	}
	switch c.Cgroup.Driver {
	case "auto", string(cgroup.Systemd), string(cgroup.Cgroupfs):
	default:
		return fmt.Errorf("cgroup.driver = %q: must be auto, systemd or cgroupfs", c.Cgroup.Driver)
	}
	switch c.Log.Format {
	case "text", "json":
	default:
		return fmt.Errorf("log.format = %q: must be text or json", c.Log.Format)
	}
	switch network.Preference(c.Network.IPPreference) {
	case network.PreferCNI, network.PreferIPv4, network.PreferIPv6:
	default:
		return fmt.Errorf("network.ip_preference = %q: must be cni, ipv4 or ipv6", c.Network.IPPreference)
	}
	if net.ParseIP(c.CRI.Streaming.Address) == nil {
		return fmt.Errorf("cri.streaming.address = %q: not an IP address", c.CRI.Streaming.Address)
	}
	if c.CRI.Streaming.Port < 0 || c.CRI.Streaming.Port > 65535 {
		return fmt.Errorf("cri.streaming.port = %d: must be 0 to 65535", c.CRI.Streaming.Port)
	}
	if c.Logs.MaxLineSize < 1 || c.Logs.MaxLineSize > 1<<20 {
		return fmt.Errorf("logs.max_line_size = %d: must be 1 to 1048576", c.Logs.MaxLineSize)
	}
	if c.Image.MaxConcurrentDownloads < 1 {
		return fmt.Errorf("image.max_concurrent_downloads = %d: must be 1 or more", c.Image.MaxConcurrentDownloads)
	}
	for name, h := range c.Handlers {
		if h.Kind != "builtin" {
			return fmt.Errorf("handlers.%s.kind = %q: this version knows builtin only", name, h.Kind)
		}
	}
	return nil
}

// driver is who makes cgroups: what the configuration says, or what the node has.
func (c *config) driver(h cgroup.Host) cgroup.Driver {
	if c.Cgroup.Driver != "auto" {
		return cgroup.Driver(c.Cgroup.Driver)
	}
	if st, err := os.Stat("/run/systemd/system"); err == nil && st.IsDir() && h.Version() == cgroup.V2 {
		return cgroup.Systemd
	}
	return cgroup.Cgroupfs
}

// binary is the executor's path: what is configured, else beside our own.
func (c *config) binary() (string, error) {
	if c.Executor.Binary != "" {
		return c.Executor.Binary, nil
	}
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(own), "berth-executor"), nil
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "the configuration", Args: cobra.NoArgs}
	cmd.AddCommand(
		&cobra.Command{
			Use: "default", Short: "print the configuration with all defaults, and what they mean", Args: cobra.NoArgs,
			Run: func(c *cobra.Command, _ []string) { fmt.Fprint(c.OutOrStdout(), defaults) },
		},
		&cobra.Command{
			Use: "check [FILE]", Short: "say what is wrong with a configuration", Args: cobra.MaximumNArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				path := defaultPath
				if len(args) > 0 {
					path = args[0]
				}
				if _, err := loadConfig(path); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s: ok\n", path)
				return nil
			},
		},
	)
	return cmd
}
