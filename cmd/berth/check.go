// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/spec"
)

// errUnfit says that berth cannot serve on this node as it is.
var errUnfit = errors.New("this node is not fit")

// kernelMin is the oldest kernel that berth is written for.
var kernelMin = spec.Kernel{Major: 5, Minor: 15} //nolint:gochecknoglobals // a constant

// finding is what a check says: a warning leaves a node fit.
type finding struct {
	what string
	err  error
	warn bool
	note string // where all is well
}

func checkCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "check", Short: "say whether this node is fit, and what to do where it is not", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			return printFindings(c.OutOrStdout(), checkNode(c.Context(), cfg))
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (default "+defaultPath+", if it is there)")
	return cmd
}

// printFindings prints a line for each, and returns errUnfit if one is not a warning.
func printFindings(w io.Writer, list []finding) error {
	unfit := 0
	for _, f := range list {
		switch {
		case f.err == nil:
			fmt.Fprintf(w, "ok    %-12s %s\n", f.what, f.note)
		case f.warn:
			fmt.Fprintf(w, "warn  %-12s %v\n", f.what, f.err)
		default:
			unfit++
			fmt.Fprintf(w, "FAIL  %-12s %v\n", f.what, f.err)
		}
	}
	if unfit > 0 {
		return fmt.Errorf("%w: %d of %d checks failed", errUnfit, unfit, len(list))
	}
	return nil
}

// checkNode looks at all that berth needs of a node. It changes nothing.
func checkNode(ctx context.Context, cfg *config) []finding {
	features, ferr := spec.Probe()
	list := []finding{{what: "root", note: "we are root", err: isRoot()}}
	kernel := finding{what: "kernel", note: fmt.Sprintf("%d.%d", features.Kernel.Major, features.Kernel.Minor), err: ferr}
	if ferr == nil && !features.Kernel.AtLeast(kernelMin.Major, kernelMin.Minor) {
		kernel.err = fmt.Errorf("%s is older than %d.%d, the oldest that berth is tested on", kernel.note, kernelMin.Major, kernelMin.Minor)
	}
	list = append(list, kernel, checkCgroups(cfg), checkOverlay(), checkSeccomp(features),
		checkState(cfg.State), checkDisk(cfg.Root), checkExecutor(ctx, cfg))
	list = append(list, checkNetwork(ctx, cfg)...)
	return list
}

func isRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("berth needs to be root")
	}
	return nil
}

func checkCgroups(cfg *config) finding {
	f := finding{what: "cgroups"}
	h, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		f.err = err
		return f
	}
	f.note = fmt.Sprintf("%v, driver %s", h.Version(), cfg.driver(h))
	if h.Version() == cgroup.V1 {
		f.warn, f.err = true, fmt.Errorf("%s: kubelets from 1.35 on refuse cgroup v1 unless told otherwise (failCgroupV1: false)", f.note)
	}
	return f
}

func checkOverlay() finding {
	f := finding{what: "overlayfs", note: "the kernel has it"}
	b, err := os.ReadFile("/proc/filesystems")
	if err == nil && !bytes.Contains(b, []byte("\toverlay\n")) {
		f.warn, err = true, errors.New("not loaded yet: modprobe overlay")
	}
	f.err = err
	return f
}

func checkSeccomp(features spec.Features) finding {
	f := finding{what: "seccomp", note: "the kernel has it"}
	if !features.Seccomp {
		f.warn, f.err = true, errors.New("the kernel has none: containers with a profile are refused")
	}
	return f
}

// checkState holds that what is to be gone after a reboot is on a file system that is.
func checkState(state string) finding {
	f := finding{what: "state", note: state + " is on a tmpfs"}
	var st unix.Statfs_t
	at, err := statfsAbove(state, &st)
	switch {
	case err != nil:
		f.err = err
	case st.Type != unix.TMPFS_MAGIC:
		f.err = fmt.Errorf("state = %q: %s is not a tmpfs; a reboot must empty it, and secrets in it must reach no disk", state, at)
	}
	return f
}

func checkDisk(root string) finding {
	f := finding{what: "disk"}
	var st unix.Statfs_t
	at, err := statfsAbove(root, &st)
	if err != nil {
		f.err = err
		return f
	}
	free := st.Bavail * uint64(st.Bsize)
	f.note = fmt.Sprintf("%d MB free at %s", free>>20, at)
	switch {
	case st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.NFS_SUPER_MAGIC || st.Type == unix.TMPFS_MAGIC:
		f.err = fmt.Errorf("root = %q: overlayfs cannot write on the file system at %s (type %#x), or it is no disk; ext4 and xfs do", root, at, st.Type)
	case free < 2<<30:
		f.warn, f.err = true, fmt.Errorf("only %s: kubelets begin to remove images at 15 %% free", f.note)
	}
	return f
}

// statfsAbove is statfs of a path or of the nearest folder above it that is there.
func statfsAbove(path string, st *unix.Statfs_t) (at string, err error) {
	for {
		err := unix.Statfs(path, st)
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return path, err
		}
		path = filepath.Dir(path)
	}
}

func checkExecutor(ctx context.Context, cfg *config) finding {
	f := finding{what: "executor"}
	binary, err := cfg.binary()
	if err == nil {
		var out []byte
		if out, err = exec.CommandContext(ctx, binary, "--version").Output(); err != nil {
			err = fmt.Errorf("%s --version: %w (executor.binary says where it is)", binary, err)
		}
		f.note = strings.TrimSpace(string(out))
	}
	f.err = err
	return f
}

// checkNetwork looks at the CNI configuration. Without one a node serves pods on the
// node's own network only, until a network add-on brings it.
func checkNetwork(ctx context.Context, cfg *config) []finding {
	f := finding{what: "network", warn: true}
	dir, err := os.MkdirTemp("", "berth-check-")
	if err != nil {
		f.err = err
		return []finding{f}
	}
	defer os.RemoveAll(dir) //nolint:errcheck // an empty folder in /tmp
	n, err := network.Open(ctx, network.Config{
		ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs, CacheDir: dir, MaxConfs: cfg.Network.MaxConfs,
	})
	if err != nil {
		f.err = err
		return []finding{f}
	}
	defer n.Close()
	s := n.Status(ctx)
	if f.note = strings.Join(s.Networks, ", "); !s.Ready {
		f.err = fmt.Errorf("%s; a network add-on usually brings it", s.Message)
	}
	list := []finding{f}
	for _, bad := range s.Invalid {
		list = append(list, finding{what: "network", warn: true, err: bad})
	}
	return list
}
