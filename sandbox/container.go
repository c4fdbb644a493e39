// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/store"
)

// The steps of a container, in this order. Its process has one only once it is started.
const (
	stepRootfs  = "rootfs"
	stepProcess = "process"
)

// containerSteps are the steps of a container; those that create it are the first two.
func containerSteps(limit time.Duration) []step[*container] {
	return []step[*container]{
		{name: stepRecord, limit: limit, do: (*container).doRecord, undo: (*container).undoRecord},
		{name: stepRootfs, limit: limit, do: (*container).doRootfs, undo: (*container).undoRootfs},
		{name: stepProcess, limit: limit, do: (*container).doProcess, undo: (*container).undoProcess},
	}
}

// resolved is what was made of a container's configuration once, and is used again
// when it starts. It is stored, in live.db.
type resolved struct {
	ImageID store.ImageID
	Image   imagespec.ImageConfig
	User    spec.User
	Volumes []string `json:",omitempty"` // paths in the container; their folders are numbered
}

// plan is all that a container's spec is made of.
type plan struct {
	resolved
	config *cri.ContainerConfig
	pod    *cri.PodSandboxConfig

	// For the creation only.
	image         Image
	configBytes   []byte
	resolvedBytes []byte
}

// prepare finds out all that the container needs, and that a spec can be made of it.
func (c *container) prepare(ctx context.Context) error {
	pl := c.plan
	if err := c.pod.takesContainers(); err != nil {
		return err
	}
	var err error
	if pl.pod, err = c.pod.configOf(); err != nil {
		return err
	}
	if pl.pod == nil {
		return fmt.Errorf("pod %s is of before the node was started: %w", c.pod.id, ErrState)
	}
	if pl.configBytes, err = proto.Marshal(pl.config); err != nil {
		return fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	if pl.image, err = c.rt.cfg.Images.Resolve(ctx, pl.config.GetImage().GetImage()); err != nil {
		return err
	}
	pl.ImageID, pl.Image = pl.image.ID, pl.image.Config
	if pl.User, err = c.user(ctx, pl); err != nil {
		return err
	}
	if pl.Volumes, err = spec.ImageVolumes(pl.Image, pl.config); err != nil {
		return err
	}
	for i, m := range pl.config.GetMounts() {
		if m.GetHostPath() == "" {
			continue
		}
		if err := c.rt.paths.exists(ctx, string(c.pod.id), m.GetHostPath()); err != nil {
			return fmt.Errorf("container.mounts[%d].host_path: %w", i, err)
		}
	}
	if _, err := stopSignalOf(pl); err != nil {
		return err
	}
	if _, err := c.rt.spec(ctx, c, pl); err != nil {
		return err
	}
	pl.resolvedBytes, err = json.Marshal(pl.resolved)
	return err
}

// planned returns the plan of a container that was created.
func (c *container) planned() (*plan, error) {
	live, ok := c.live.Get(c.id)
	if !ok || live.Config == nil {
		return nil, fmt.Errorf("container %s is of before the node was started: %w", c.id, ErrState)
	}
	pl := &plan{config: new(cri.ContainerConfig)}
	if err := proto.Unmarshal(live.Config, pl.config); err != nil {
		return nil, fmt.Errorf("container %s: configuration: %w", c.id, err)
	}
	if err := json.Unmarshal(live.Effective, &pl.resolved); err != nil {
		return nil, fmt.Errorf("container %s: effective configuration: %w", c.id, err)
	}
	var err error
	if pl.pod, err = c.pod.configOf(); err == nil && pl.pod == nil {
		err = fmt.Errorf("pod %s is of before the node was started: %w", c.pod.id, ErrState)
	}
	return pl, err
}

// user finds out whom the container runs as, by the image's files.
func (c *container) user(ctx context.Context, pl *plan) (spec.User, error) {
	const most = 4<<20 + 1 // beyond what oci/spec takes, so that it says so
	var files [2]io.Reader
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		b, err := c.rt.cfg.Images.ReadFile(ctx, pl.ImageID, path, most)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return spec.User{}, fmt.Errorf("image %s: %s: %w", pl.image.Name, path, err)
		}
		files[i] = bytes.NewReader(b)
	}
	return spec.ResolveUser(pl.config.GetLinux().GetSecurityContext(), pl.Image.User, files[0], files[1])
}

func stopSignalOf(pl *plan) (string, error) {
	sig, err := spec.StopSignal(pl.config.GetStopSignal(), pl.Image.StopSignal)
	if err != nil {
		return "", err
	}
	return stopSignalName(sig), nil
}

// spec makes the container's runtime spec.
func (rt *Runtime) spec(ctx context.Context, c *container, pl *plan) (*specs.Spec, error) {
	return rt.specOf(ctx, c, pl, true)
}

// specOf is spec, with or without the devices of the node for a container that gets all.
func (rt *Runtime) specOf(ctx context.Context, c *container, pl *plan, devices bool) (*specs.Spec, error) {
	podID := string(c.pod.id)
	at, err := rt.cfg.Driver.Container(pl.pod.GetLinux().GetCgroupParent(), cgroup.Leaf{Prefix: rt.cfg.CgroupPrefix, ID: string(c.id)})
	if err != nil {
		return nil, err
	}
	dir := rt.podDir(c.pod.id)
	in := spec.Input{
		Pod: pl.pod, Container: pl.config, Image: pl.Image, User: pl.User,
		Features: rt.cfg.Features, Handler: rt.cfg.Handlers[c.pod.handlerOf()],
		Cgroup:       cgroupsPath(rt.cfg.Driver, at, rt.cfg.CgroupPrefix, string(c.id)),
		NodeHostname: rt.cfg.NodeHostname,
		Files: spec.Files{
			Hosts: filepath.Join(dir, fileHosts), Hostname: filepath.Join(dir, fileHostname), ResolvConf: filepath.Join(dir, fileResolvConf),
		},
		Devices: make(map[string][]spec.HostDevice),
		Rlimits: spec.DefaultRlimits(),
	}
	for i, path := range pl.Volumes {
		in.Volumes = append(in.Volumes, spec.Volume{Path: path, Source: filepath.Join(rt.volumeDir(c.id), strconv.Itoa(i))})
	}
	find := func(path string) ([]spec.HostDevice, error) {
		found := make(chan []spec.HostDevice, 1) // it may come when nobody waits any more
		err := rt.paths.touch(ctx, podID, path, func() error {
			list, err := spec.FindDevices(path)
			found <- list
			return err
		})
		if err != nil {
			return nil, err
		}
		return <-found, nil
	}
	for _, d := range pl.config.GetDevices() {
		if in.Devices[d.GetHostPath()], err = find(d.GetHostPath()); err != nil {
			return nil, err
		}
	}
	if devices && pl.config.GetLinux().GetSecurityContext().GetPrivileged() {
		if in.HostDevices, err = find("/dev"); err != nil {
			return nil, err
		}
	}
	if path := spec.SeccompProfilePath(pl.config); path != "" {
		if in.SeccompProfile, err = rt.paths.read(ctx, podID, path, 4<<20); err != nil {
			return nil, fmt.Errorf("container.linux.security_context.seccomp.localhost_ref: %w", err)
		}
	}
	return spec.Build(in)
}

func (p *pod) handlerOf() string {
	r, _ := p.rt.cfg.Store.Pod(p.id)
	return r.Handler
}

// doRecord writes the container to the disk, which goes on while its root file
// system is made.
func (c *container) doRecord(ctx context.Context) error {
	pl := c.plan
	signal, err := stopSignalOf(pl)
	if err != nil {
		return err
	}
	r := store.Container{
		ID: c.id, PodID: c.pod.id, Name: c.name.name, Attempt: c.name.attempt,
		Labels: pl.config.GetLabels(), Annotations: pl.config.GetAnnotations(),
		Image: pl.image.Name, UserImage: pl.config.GetImage().GetUserSpecifiedImage(), ImageID: pl.image.ID, ImageRef: pl.image.Ref,
		LogPath: pl.config.GetLogPath(), StopSignal: signal,
		CreatedAt: c.rt.made(), State: string(ContainerCreating),
	}
	c.durable = later(func() error { return c.rt.cfg.Store.PutContainer(context.WithoutCancel(ctx), r) })
	return nil
}

func (c *container) undoRecord(ctx context.Context) error {
	if err := c.durable.wait(ctx); ctx.Err() != nil {
		return err
	}
	if err := c.rt.point("delete record"); err != nil {
		return err
	}
	return c.rt.cfg.Store.DeleteContainerAsync(c.id)
}

// doRootfs makes what the container's root is mounted of, and the volumes that its
// image asks for.
func (c *container) doRootfs(ctx context.Context) error {
	if _, err := c.rt.cfg.Images.Rootfs(ctx, c.id, c.plan.ImageID); err != nil {
		return err
	}
	for i := range c.plan.Volumes {
		if err := os.MkdirAll(filepath.Join(c.rt.volumeDir(c.id), strconv.Itoa(i)), 0o755); err != nil {
			return err
		}
	}
	return c.rt.point("rootfs")
}

func (c *container) undoRootfs(ctx context.Context) error {
	if err := c.rt.point("remove volumes"); err != nil {
		return err
	}
	if err := os.RemoveAll(c.rt.volumeDir(c.id)); err != nil {
		return err
	}
	return c.rt.cfg.Images.RemoveRootfs(ctx, c.id)
}
