// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/sandbox"
	"github.com/berth-cri/berth/store"
)

// MaxMessage is the largest message in either direction, in bytes: what a kubelet
// sends and receives at most (k8s.io/cri-client, maxMsgSize).
const MaxMessage = 16 << 20

// Pods is the life of pods.
type Pods interface {
	RunPod(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (store.PodID, error)
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	Pods(f *cri.PodSandboxFilter) []*cri.PodSandbox
	PodStatus(id string) (*cri.PodSandboxStatus, error)
	PodInfo(id string) (*sandbox.Info, error)
	PodStats(ctx context.Context, id string) (*cri.PodSandboxStats, error)
	ListPodStats(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error)
}

// Containers is the life of containers.
type Containers interface {
	CreateContainer(ctx context.Context, podID string, cfg *cri.ContainerConfig) (store.ContainerID, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	Containers(f *cri.ContainerFilter) []*cri.Container
	ContainerStatus(id string) (*cri.ContainerStatus, error)
	ContainerInfo(ctx context.Context, id string) (*sandbox.Info, error)
	UpdateResources(ctx context.Context, id string, want *cri.LinuxContainerResources) error
}

// Commands is what is done with containers that run.
type Commands interface {
	ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (*cri.ExecSyncResponse, error)
	ReopenLog(ctx context.Context, id string) error
	ContainerStats(ctx context.Context, id string) (*cri.ContainerStats, error)
	ListContainerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error)
	Events(ctx context.Context, fn func(sandbox.Event) error) error
}

// Images is what the node has of images.
type Images interface {
	// Pull fetches an image and returns its id.
	Pull(ctx context.Context, name string, auth *cri.AuthConfig, pod *cri.PodSandboxConfig) (store.ImageID, error)
	// List returns the images that a name matches, all for "".
	List(name string) []*cri.Image
	// Status returns an image by name, id, or the beginning of an id; nil if there is none.
	Status(name string) (*cri.Image, error)
	// Info returns what a verbose status tells besides.
	Info(ctx context.Context, name string) (any, error)
	// Remove removes an image with all its names. None is no error.
	Remove(ctx context.Context, name string) error
	FsInfo(ctx context.Context) (*cri.ImageFsInfoResponse, error)
}

// Network is what a kubelet asks of the network as a whole.
type Network interface {
	// Ready returns why no pod can be connected.
	Ready(ctx context.Context) error
	// SetPodCIDR tells the range of addresses for the pods of this node.
	SetPodCIDR(ctx context.Context, cidr string) error
}

// Streams gives URLs for streams.
type Streams interface {
	GetExec(r *cri.ExecRequest) (string, error)
	GetAttach(r *cri.AttachRequest) (string, error)
	GetPortForward(r *cri.PortForwardRequest) (string, error)
}

var (
	_ Pods       = (*sandbox.Runtime)(nil)
	_ Containers = (*sandbox.Runtime)(nil)
	_ Commands   = (*sandbox.Runtime)(nil)
)

// Config is what a Server is made of.
type Config struct {
	Pods       Pods
	Containers Containers
	Commands   Commands
	Images     Images
	Network    Network
	Streams    Streams

	Version  string // of berth
	Driver   cgroup.Driver
	Features spec.Features
	Handlers []string // names; "" is the default one and always there
	// Details goes into a verbose Status, by key, as JSON.
	Details func() map[string]any

	Log klog.Logger
}

// Server answers the calls of a kubelet.
type Server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	cfg Config
}

// New makes a Server.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Register adds both services to a gRPC server, which is to be made with Options.
func (s *Server) Register(g *grpc.Server) {
	cri.RegisterRuntimeServiceServer(g, s)
	cri.RegisterImageServiceServer(g, s)
}

// Options are the options of a gRPC server for a Server.
func (s *Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}
}

// unary turns errors into statuses and logs what was asked.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	resp, err := handler(ctx, req)
	s.note(info.FullMethod, req, began, err)
	return resp, toStatus(err)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := time.Now()
	err := handler(srv, ss)
	s.note(info.FullMethod, nil, began, err)
	return toStatus(err)
}

// named is a request about one pod or container.
type named interface{ GetPodSandboxId() string }

type namedContainer interface{ GetContainerId() string }

// note logs a call: failures that are ours at level 0, the rest for who looks closer.
func (s *Server) note(method string, req any, began time.Time, err error) {
	words := []any{"method", method[1+lastSlash(method):], "took", time.Since(began).Round(time.Microsecond)}
	if r, ok := req.(named); ok {
		words = append(words, "pod", r.GetPodSandboxId())
	}
	if r, ok := req.(namedContainer); ok {
		words = append(words, "container", r.GetContainerId())
	}
	switch {
	case err == nil:
		s.cfg.Log.V(4).Info("Call", words...)
	case isOurs(err):
		s.cfg.Log.Error(err, "Call failed", words...)
	default:
		s.cfg.Log.V(2).Info("Call refused", append(words, "error", err)...)
	}
}

func lastSlash(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return i
		}
	}
	return -1
}
