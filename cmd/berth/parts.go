// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/cri/streaming"
	"github.com/berth-cri/berth/image"
	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/sandbox"
	"github.com/berth-cri/berth/store"
)

// podNetwork is the network as pods need it.
type podNetwork struct {
	*network.Network
	prefer network.Preference
}

func (n podNetwork) pod(p sandbox.PodNetwork) network.Pod {
	return network.Pod{
		ID: p.ID, Namespace: p.Namespace, Name: p.Name, UID: p.UID, NetNS: p.NetNS, Annotations: p.Annotations,
		PortMappings: p.Config.GetPortMappings(), DNS: p.Config.GetDnsConfig(), CgroupParent: p.Config.GetLinux().GetCgroupParent(),
	}
}

func (n podNetwork) Attach(ctx context.Context, p sandbox.PodNetwork) (store.Attachment, error) {
	a, err := n.Network.Attach(ctx, n.pod(p))
	if err != nil {
		return a, err
	}
	first, others := network.PodIPs(a.IPs, n.prefer)
	a.IPs = append(a.IPs[:0:0], first)
	a.IPs = append(a.IPs, others...)
	return a, nil
}

func (n podNetwork) Detach(ctx context.Context, p sandbox.PodNetwork) error {
	return n.Network.Detach(ctx, n.pod(p), p.Attachment)
}

func (n podNetwork) Dial(ctx context.Context, netns string, port int32) (net.Conn, error) {
	return network.Dial(ctx, netns, "tcp", net.JoinHostPort("localhost", strconv.Itoa(int(port))))
}

// criNetwork is the network as a kubelet sees it.
type criNetwork struct{ *network.Network }

func (n criNetwork) Ready(ctx context.Context) error {
	if s := n.Status(ctx); !s.Ready {
		return errors.New(s.Message)
	}
	return nil
}

// podImages is images as pods need them.
type podImages struct{ *image.Store }

func (i podImages) Resolve(ctx context.Context, name string) (sandbox.Image, error) {
	img, err := i.Store.Resolve(ctx, name)
	return sandbox.Image(img), err
}

func (i podImages) Rootfs(ctx context.Context, id store.ContainerID, img store.ImageID) (wire.Rootfs, error) {
	m, err := i.Store.Rootfs(ctx, id, img)
	return wire.Rootfs{Lower: m.Lower, Upper: m.Upper, Work: m.Work, Volatile: m.Volatile}, err
}

func (i podImages) Usage(ctx context.Context, id store.ContainerID) (sandbox.Usage, error) {
	u, err := i.Store.Usage(ctx, id)
	if err != nil {
		return sandbox.Usage{}, err
	}
	return sandbox.Usage{Mountpoint: i.Mountpoint(), Bytes: uint64(u.Bytes), Inodes: uint64(u.Inodes), At: u.Time}, nil
}

// criImages is images as a kubelet sees them.
type criImages struct{ *image.Store }

func (i criImages) Pull(ctx context.Context, name string, auth *runtime.AuthConfig, _ *runtime.PodSandboxConfig) (store.ImageID, error) {
	return i.Store.Pull(ctx, name, auth, nil)
}

func (i criImages) Info(_ context.Context, name string) (any, error) { return i.Store.Info(name) }

func (i criImages) FsInfo(context.Context) (*runtime.ImageFsInfoResponse, error) {
	u, err := i.Store.FsInfo()
	if err != nil {
		return nil, err
	}
	// Images and what containers write are on one file system; a kubelet is told so by
	// two entries that are equal.
	entry := func() []*runtime.FilesystemUsage {
		return []*runtime.FilesystemUsage{{
			Timestamp: u.At.UnixNano(), FsId: &runtime.FilesystemIdentifier{Mountpoint: u.Mountpoint},
			UsedBytes: &runtime.UInt64Value{Value: u.Bytes}, InodesUsed: &runtime.UInt64Value{Value: u.Inodes},
		}}
	}
	return &runtime.ImageFsInfoResponse{ImageFilesystems: entry(), ContainerFilesystems: entry()}, nil
}

// podStreams is what exec, attach and port-forward lead to.
type podStreams struct{ rt *sandbox.Runtime }

func (s podStreams) Exec(ctx context.Context, id string, args []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan streaming.Size) error {
	err := s.rt.Exec(ctx, id, args, stdio(ctx, in, out, errs, tty, resize))
	if exit := (*sandbox.ExitError)(nil); errors.As(err, &exit) {
		return streaming.ExitError{Code: exit.Code}
	}
	return err
}

func (s podStreams) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan streaming.Size) error {
	return s.rt.Attach(ctx, id, stdio(ctx, in, out, errs, tty, resize))
}

func (s podStreams) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	conn, err := s.rt.Dial(ctx, id, port)
	if err != nil {
		return err
	}
	pod, ok := conn.(streaming.Pod)
	if !ok {
		return errors.Join(fmt.Errorf("%T cannot be closed by halves", conn), conn.Close())
	}
	return streaming.Forward(ctx, stream, pod)
}

// stdio passes streams on; nil stays nil, and not an interface of nil.
func stdio(ctx context.Context, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan streaming.Size) sandbox.Stdio {
	s := sandbox.Stdio{In: in, Out: out, Err: errs, TTY: tty}
	if resize == nil {
		return s
	}
	sizes := make(chan wire.Size)
	s.Resize = sizes
	go func() {
		defer close(sizes)
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- wire.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return s
}
