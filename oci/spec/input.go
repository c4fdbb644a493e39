// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"io/fs"

	image "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Placeholders in a spec, which the executor replaces. They are the same as those of package wire.
const (
	FromPod       = "pod"        // path of a namespace: the one that the pod holds
	FromContainer = "container:" // path of a namespace: that of the container whose id follows
	PodShm        = "pod:shm"    // source of a mount: the pod's /dev/shm
)

// Input is all that a container's spec depends on.
type Input struct {
	// Pod and Container are what the kubelet sent. They are not changed.
	Pod       *cri.PodSandboxConfig
	Container *cri.ContainerConfig

	// Image is the configuration of the container's image.
	Image image.ImageConfig

	// User is what ResolveUser returned for Container, Image and the image's files.
	User User

	Features Features
	Handler  Handler

	// Cgroup goes into the spec as it is: "/a/b" with cgroupfs, "a-b.slice:prefix:name" with systemd.
	Cgroup string

	// NodeHostname is what HOSTNAME says where the pod has no name of its own.
	NodeHostname string

	// Files are mounted where the kubelet mounts nothing at their place.
	Files Files

	// Volumes are the folders made for what the image declares as volumes (see ImageVolumes).
	Volumes []Volume

	// Devices are the nodes that FindDevices found for each Device.host_path of Container.
	Devices map[string][]HostDevice

	// HostDevices are all of the host (FindDevices("/dev")). Only a privileged container gets them.
	HostDevices []HostDevice

	// SeccompProfile is the content of the file that Container names as its Localhost profile.
	SeccompProfile []byte

	// Rlimits are the node's configuration for containers; see DefaultRlimits.
	Rlimits []specs.POSIXRlimit
}

// Handler is what a runtime handler's configuration says about specs.
type Handler struct {
	// PrivilegedWithoutHostDevices withholds the host's devices from privileged containers, which
	// then get those that they ask for.
	PrivilegedWithoutHostDevices bool

	// PodAnnotations and ContainerAnnotations are patterns (path.Match) of annotation keys that are
	// handed to the OCI runtime. Without them none is: see annotations.
	PodAnnotations       []string
	ContainerAnnotations []string
}

// Files are absolute paths on the host; "" for none.
type Files struct {
	Hosts, Hostname, ResolvConf string
}

// Volume is a folder of the host that stands in for a volume which the image declares.
type Volume struct {
	Path   string // in the container, as ImageVolumes returned it
	Source string // on the host
}

// HostDevice is a device node of the host.
type HostDevice struct {
	Path         string
	Type         string // "c" or "b"
	Major, Minor int64
	Mode         fs.FileMode // permission bits
	UID, GID     uint32
}
