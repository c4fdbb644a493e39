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
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/cri"
	"github.com/berth-cri/berth/cri/streaming"
	"github.com/berth-cri/berth/image"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/sandbox"
	"github.com/berth-cri/berth/store"
)

// closeLimit is how long an orderly end may take.
const closeLimit = 10 * time.Second

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

func joinKey(key []string) string { return strings.Join(key, ".") }

func serveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "serve", Short: "serve kubelets and crictl", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			return serve(c.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (default "+defaultPath+", if it is there)")
	return cmd
}

// serve is all of berth: what is there is opened from the bottom to the top, and closed
// in the other order. Containers, keeper and executor go on without it.
func serve(ctx context.Context, cfg *config) (err error) { //nolint:funlen // all wiring, read top to bottom
	log := newLogger(cfg)
	var closers []func() error
	defer func() {
		for _, fn := range slices.Backward(closers) {
			err = errors.Join(err, fn())
		}
	}()
	began := time.Now()

	// The node: what it can do, and the two files that say what it has.
	features, err := spec.Probe()
	if err != nil {
		return err
	}
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		return err
	}
	driver := cfg.driver(cgroups)
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	db, err := openStore(ctx, store.Config{
		Root: cfg.Root, State: cfg.State,
		OnFault: func(err error) { log.Error(err, "Store") },
	})
	if err != nil {
		return err
	}
	closers = append(closers, db.Close)

	// The executor, which may have been there long before us.
	binary, err := cfg.binary()
	if err != nil {
		return err
	}
	executorState := filepath.Join(cfg.State, "executor")
	if err := os.MkdirAll(executorState, 0o711); err != nil {
		return err
	}
	executor, err := oci.Start(ctx, oci.StartConfig{
		State: executorState, Binary: binary, Log: filepath.Join(cfg.State, "executor.log"), Cgroup: cfg.Executor.Cgroup,
	})
	if err != nil {
		return fmt.Errorf("executor %s: %w (its own words are in %s)", binary, err, filepath.Join(cfg.State, "executor.log"))
	}
	closers = append(closers, func() error { executor.Close(); return nil })

	// Images and the network.
	images, err := image.Open(ctx, image.Config{
		DB: db, Root: cfg.Root, User: spec.ImageUser,
		Registry:  registry.Options{ConfigPath: cfg.Registry.ConfigPath, UserAgent: "berth/" + version, NoProgress: time.Duration(cfg.Registry.NoProgress)},
		Downloads: cfg.Image.MaxConcurrentDownloads, Pinned: cfg.Image.Pinned, Log: log.WithName("image"),
	})
	if err != nil {
		return err
	}
	closers = append(closers, images.Close)
	pods, err := network.Open(ctx, network.Config{
		ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs, CacheDir: filepath.Join(cfg.Root, "cni"),
		MaxConfs: cfg.Network.MaxConfs, ConfTemplate: cfg.Network.ConfTemplate,
	})
	if err != nil {
		return err
	}
	closers = append(closers, pods.Close)

	// Pods and containers: what a death of ours has left is settled before anybody asks.
	handlers := map[string]spec.Handler{"": {}}
	for name, h := range cfg.Handlers {
		handlers[name] = spec.Handler{
			PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices,
			PodAnnotations:               h.PodAnnotations, ContainerAnnotations: h.ContainerAnnotations,
		}
	}
	rt := sandbox.New(sandbox.Config{
		Store: db, Executor: executor, Exits: executor, Streams: executor,
		Network: podNetwork{pods, network.Preference(cfg.Network.IPPreference)}, Images: podImages{images},
		Namespaces: sandbox.KernelNamespaces{PinDir: cfg.Network.NetNSDir},
		State:      cfg.State, Root: cfg.Root, Features: features, Cgroups: cgroups, Driver: driver, CgroupPrefix: cfg.Cgroup.Prefix,
		Handlers: handlers, NodeHostname: hostname, PinDir: cfg.Network.NetNSDir, LogMax: cfg.Logs.MaxLineSize, Log: log.WithName("sandbox"),
	})
	closers = append(closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		return rt.Close(ctx)
	})
	if err := rt.Recover(ctx); err != nil {
		return err
	}
	measuring, stopMeasuring := context.WithCancel(ctx)
	measured := make(chan struct{})
	go func() { defer close(measured); images.Measure(measuring) }()
	closers = append(closers, func() error { stopMeasuring(); <-measured; return nil })

	// Those who ask.
	streams := streaming.New(streaming.Config{
		Addr:        net.JoinHostPort(cfg.CRI.Streaming.Address, strconv.Itoa(cfg.CRI.Streaming.Port)),
		IdleTimeout: time.Duration(cfg.CRI.Streaming.IdleTimeout), Log: log.WithName("streaming"),
	}, podStreams{rt})
	if err := streams.Listen(ctx); err != nil {
		return err
	}
	server := cri.New(cri.Config{
		Pods: rt, Containers: rt, Commands: rt, Images: criImages{images}, Network: criNetwork{pods}, Streams: streams,
		Version: version, Driver: driver, Features: features, Handlers: slices.Sorted(maps.Keys(cfg.Handlers)), Log: log.WithName("cri"),
		Details: func() map[string]any { return details(ctx, cfg, executor, pods) },
	})
	g := grpc.NewServer(server.Options()...)
	server.Register(g)
	listener, err := listenUnix(cfg.CRI.Socket, cfg.CRI.SocketUID, cfg.CRI.SocketGID)
	if err != nil {
		return err
	}
	log.Info("Serving", "version", version, "socket", cfg.CRI.Socket, "driver", driver, "after", time.Since(began).Round(time.Millisecond))
	notify("READY=1")
	return serveAll(ctx, g, listener, streams, rt.EndEvents)
}

// openStore opens the store. One that was killed a moment ago may not be dead yet: its
// locks are waited for, but not for long, since a second berth is a mistake.
func openStore(ctx context.Context, cfg store.Config) (*store.DB, error) {
	limited, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		db, err := store.Open(ctx, cfg)
		if !errors.Is(err, store.ErrLocked) {
			return db, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-limited.Done():
			return nil, err
		}
	}
}

// serveAll serves until ctx ends or one of the two servers fails.
func serveAll(ctx context.Context, g *grpc.Server, listener net.Listener, streams *streaming.Server, endEvents func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() { failed <- g.Serve(listener); cancel() }()
	go func() { failed <- streams.Serve(ctx); cancel() }()
	<-ctx.Done()
	notify("STOPPING=1")
	endEvents()
	stopped := time.AfterFunc(closeLimit, g.Stop)
	g.GracefulStop()
	stopped.Stop()
	return errors.Join(<-failed, <-failed)
}

// listenUnix listens at a path, where a socket may be left of a berth that has died. The
// store's lock says that there is no other that lives.
func listenUnix(path string, uid, gid int) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket; remove it, or name another in cri.socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(path, 0o660), os.Chown(path, uid, gid)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// notify tells systemd how we are (sd_notify(3)); without it, nobody.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}

// details goes into a verbose status. Clients look for the folder of the state.
func details(ctx context.Context, cfg *config, executor *oci.Executor, pods *network.Network) map[string]any {
	m := map[string]any{
		"config":  map[string]any{"rootDir": cfg.Root, "stateDir": cfg.State},
		"network": pods.Status(ctx),
	}
	if r, err := executor.Report(ctx); err == nil {
		m["executor"] = r
	}
	return m
}

// newLogger returns the logger that the configuration asks for.
func newLogger(cfg *config) klog.Logger {
	if cfg.Log.Format == "json" {
		return jsonLogger(cfg.Log.Level)
	}
	return textLogger(cfg.Log.Level)
}
