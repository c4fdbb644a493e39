// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/berth-cri/berth/store/content"
)

// The records of berth.db. They are kept as JSON, and fields are only ever added:
// testdata/ holds what each release wrote. A field that this version does not know
// survives being read and written by it.
//
// No field may carry the value of an environment variable or the configuration as
// the kubelet sent it: those belong to [Live], which never reaches a disk.
//
// A record that the store returns shares its maps and slices with the store and
// with other readers: they must not be written to. Its other fields are the
// caller's own. What is put is copied.

// extra holds the fields of a record that this version does not know.
type extra map[string]json.RawMessage

// A Pod is what must outlive a reboot of a pod sandbox.
type Pod struct {
	ID           PodID             `json:"id"`
	Name         string            `json:"name"`
	Namespace    string            `json:"namespace"`
	UID          string            `json:"uid"`
	Attempt      uint32            `json:"attempt,omitempty"`
	Handler      string            `json:"handler,omitempty"` // as asked for; "" is the default one
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CreatedAt    time.Time         `json:"createdAt,omitzero"`
	LogDirectory string            `json:"logDirectory,omitempty"` // absolute; "" if the kubelet named none
	State        string            `json:"state,omitempty"`        // of package sandbox
	EndedAt      time.Time         `json:"endedAt,omitzero"`
	Reason       string            `json:"reason,omitempty"`  // why it is in this state, in one word
	Message      string            `json:"message,omitempty"` // the same for a person
	Network      Network           `json:"network,omitzero"`

	extra extra
}

// Network is how a pod is connected.
type Network struct {
	Host       bool        `json:"host,omitempty"`       // the node's own network; nothing else is set then
	Namespace  string      `json:"namespace,omitempty"`  // path of the pinned network namespace
	Attachment *Attachment `json:"attachment,omitempty"` // nil before ADD and after DEL
}

// An Attachment is what a CNI ADD has come to. It is recorded before the ADD, so
// that a DEL follows whether it ran or not; Result and IPs are empty until it has.
type Attachment struct {
	Network   string       `json:"network"`   // name of the network configuration
	Interface string       `json:"interface"` // in the pod: "eth0"
	Result    []byte       `json:"result,omitempty"`
	IPs       []netip.Addr `json:"ips,omitempty"` // in the plugin's order
}

// A Container is what must outlive a reboot of a container.
type Container struct {
	ID          ContainerID       `json:"id"`
	PodID       PodID             `json:"podId"`
	Name        string            `json:"name"`
	Attempt     uint32            `json:"attempt,omitempty"` // counts the kubelet's restarts
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// The image: as it was asked for (ImageSpec.image), as the user wrote it
	// (user_specified_image), what that was resolved to, and a digest by which a
	// registry knows it.
	Image     string  `json:"image,omitempty"`
	UserImage string  `json:"userImage,omitempty"`
	ImageID   ImageID `json:"imageId,omitempty"`
	ImageRef  string  `json:"imageRef,omitempty"`

	LogPath    string    `json:"logPath,omitempty"` // below the pod's LogDirectory
	StopSignal string    `json:"stopSignal,omitempty"`
	CreatedAt  time.Time `json:"createdAt,omitzero"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	State      string    `json:"state,omitempty"` // of package sandbox
	ExitCode   int32     `json:"exitCode,omitempty"`
	Reason     string    `json:"reason,omitempty"` // "Completed", "Error", "OOMKilled", ...
	Message    string    `json:"message,omitempty"`

	extra extra
}

// An Image is an image that was pulled or imported, all of it. Names belong to one
// image each.
type Image struct {
	ID          ImageID        `json:"id"`
	Names       []string       `json:"names,omitempty"`       // "docker.io/library/busybox:latest"
	RepoDigests []string       `json:"repoDigests,omitempty"` // "docker.io/library/busybox@sha256:..."
	Manifest    content.Digest `json:"manifest,omitempty"`    // a blob
	Config      content.Digest `json:"config,omitempty"`      // a blob, if ConfigBytes is empty
	ConfigBytes []byte         `json:"configBytes,omitempty"` // exactly as they were hashed
	Layers      []LayerID      `json:"layers,omitempty"`      // the lowest first
	Size        int64          `json:"size"`                  // bytes, of its layers as unpacked and its metadata
	Pinned      bool           `json:"pinned,omitempty"`      // not for the kubelet's garbage collection
	// Who its processes are: USER of the configuration, as a number or as a name
	// (CRI, Image.uid and username).
	UID      *int64    `json:"uid,omitempty"`
	Username string    `json:"username,omitempty"`
	PulledAt time.Time `json:"pulledAt,omitzero"`

	extra extra
}

// A Layer is an unpacked layer under its committed name.
type Layer struct {
	ID     LayerID        `json:"id"`
	DiffID content.Digest `json:"diffId"`
	// Parent is the layer below, on whose content this one depends; "" for one that
	// can lie on any other.
	Parent LayerID        `json:"parent,omitempty"`
	Blob   content.Digest `json:"blob,omitempty"` // what it was unpacked from
	Bytes  int64          `json:"bytes"`          // on the disk
	Inodes int64          `json:"inodes"`
	// Why it may depend on its parent: folders that the archive does not mention but
	// has files in, and hard links to files of lower layers.
	ImplicitParents bool      `json:"implicitParents,omitempty"`
	ForeignLinks    bool      `json:"foreignLinks,omitempty"`
	CommittedAt     time.Time `json:"committedAt,omitzero"`
	// Run is [DB.Run] of the process that committed it: after a power cut, layers of
	// runs after [DB.LastCleanRun] that are not Verified are to be looked at.
	Run      uint64 `json:"run,omitempty"`
	Verified bool   `json:"verified,omitempty"`

	extra extra
}

// check holds what can be said of a record by itself.
func (p *Pod) check() error { return checkID("pod", string(p.ID)) }

func (c *Container) check() error {
	if err := checkID("container", string(c.ID)); err != nil {
		return err
	}
	if err := checkID("pod", string(c.PodID)); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	return checkDigest("image id of container "+string(c.ID), content.Digest(c.ImageID), true)
}

func (i *Image) check() error {
	if err := checkDigest("image id", content.Digest(i.ID), false); err != nil {
		return err
	}
	if err := checkDigest("manifest of image "+string(i.ID), i.Manifest, true); err != nil {
		return err
	}
	if err := checkDigest("config of image "+string(i.ID), i.Config, true); err != nil {
		return err
	}
	for _, l := range i.Layers {
		if err := checkDigest("layer of image "+string(i.ID), content.Digest(l), false); err != nil {
			return err
		}
	}
	seen := make(map[string]bool, len(i.Names))
	for _, name := range i.Names {
		if name == "" || seen[name] {
			return fmt.Errorf("%w: image %s has the name %q twice, or an empty one", ErrInvalid, i.ID, name)
		}
		seen[name] = true
	}
	return nil
}

func (l *Layer) check() error {
	if err := checkDigest("layer id", content.Digest(l.ID), false); err != nil {
		return err
	}
	if err := checkDigest("diff id of layer "+string(l.ID), l.DiffID, false); err != nil {
		return err
	}
	if err := checkDigest("blob of layer "+string(l.ID), l.Blob, true); err != nil {
		return err
	}
	if l.Parent == l.ID {
		return fmt.Errorf("%w: layer %s is its own parent", ErrInvalid, l.ID)
	}
	return checkDigest("parent of layer "+string(l.ID), content.Digest(l.Parent), true)
}

func (p *Pod) unknown() *extra       { return &p.extra }
func (c *Container) unknown() *extra { return &c.extra }
func (i *Image) unknown() *extra     { return &i.extra }
func (l *Layer) unknown() *extra     { return &l.extra }
