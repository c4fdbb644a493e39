// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/ocitest"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

// built are the programs that the tests run.
var built struct{ executor, guest string }

// prebuilt names the variable of a folder with those programs, as in the tests of package oci.
const prebuilt = "BERTH_TEST_BINARIES"

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testMain runs the tests where what they mount is not seen outside.
func testMain(m *testing.M) (int, error) {
	inside, code, err := ocitest.OwnMounts()
	if !inside || err != nil {
		return code, err
	}
	dir := os.Getenv(prebuilt)
	if dir == "" {
		if dir, err = os.MkdirTemp("", "berth-sandbox"); err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
	}
	programs := ocitest.Programs(dir)
	executor, err := programs.Executor("one")
	guest, gerr := programs.Guest()
	if err := errors.Join(err, gerr); err != nil {
		return 0, err
	}
	built.executor, built.guest = executor, guest
	return m.Run(), nil
}

// TestRealParts runs the suites with the real executor and the real namespaces, and with
// what stands for images and network in the tests beside them.
func TestRealParts(t *testing.T) {
	t.Run("executor", func(t *testing.T) {
		n := newRealNode(t)
		testExecutor(t, executorPart{
			Executor: n, Exits: n,
			request: n.plainRequest,
			shared: func(t *testing.T, pod string) (wire.PodCreate, []*os.File) {
				made, err := n.namespaces.Make(t.Context(), ns.Request{ID: pod, IPC: true, UTS: true})
				if err != nil {
					t.Fatal(err)
				}
				return wire.PodCreate{ID: pod, Namespaces: []string{"ipc", "uts"}}, []*os.File{made.IPC, made.UTS}
			},
		})
	})
	t.Run("namespaces", func(t *testing.T) {
		k := KernelNamespaces{PinDir: newRealNode(t).pins}
		testNamespaces(t, namespacesPart{Namespaces: k, unfinish: func(t *testing.T, id store.PodID) {
			// As package oci/ns says: an empty file.
			if err := os.WriteFile(ns.Pin(k.PinDir, string(id)), nil, 0o444); err != nil {
				t.Fatal(err)
			}
		}})
	})
	t.Run("network", func(t *testing.T) {
		n := newRealNode(t)
		testNetwork(t, networkPart{
			Network: n.network, Namespaces: n.namespaces,
			pod: func(id store.PodID) PodNetwork {
				return PodNetwork{ID: id, Name: "p", Namespace: "ns", UID: "u", NetNS: ns.Pin(n.pins, string(id))}
			},
		})
	})
	t.Run("images", func(t *testing.T) {
		testImages(t, imagesPart{Images: newRealNode(t).images, name: "guest", file: "/etc/motd", text: motd})
	})
}

// plainRequest is a container that shares its pod's IPC and UTS namespaces, and is ended
// by any signal: its first process is not the first of a PID namespace, to which signals
// do nothing unless it asks for them.
func (n *realNode) plainRequest(t *testing.T, pod, id string) wire.Create {
	t.Helper()
	rootfs, err := n.images.Rootfs(t.Context(), store.ContainerID(id), "")
	if err != nil {
		t.Fatal(err)
	}
	return wire.Create{
		ID: id, Pod: pod, Rootfs: rootfs,
		Spec: &specs.Spec{
			Version: specs.Version,
			Process: &specs.Process{Args: []string{"/guest", "exit", "0", "3600000"}, Cwd: "/", Env: []string{"PATH=/"}},
			Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
			Linux: &specs.Linux{
				CgroupsPath: filepath.Join("/", n.Name, id),
				Namespaces: []specs.LinuxNamespace{
					{Type: specs.MountNamespace}, {Type: specs.IPCNamespace, Path: wire.FromPod}, {Type: specs.UTSNamespace, Path: wire.FromPod},
				},
				Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			},
		},
	}
}
