// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

// The files of a pod, in its folder.
const (
	fileHosts      = "hosts"
	fileHostname   = "hostname"
	fileResolvConf = "resolv.conf"
)

// hostFileMax bounds what is copied of the node's own files.
const hostFileMax = 1 << 20

// podFiles returns the content of a pod's files.
func (rt *Runtime) podFiles(ctx context.Context, cfg *cri.PodSandboxConfig, r store.Pod, at *store.Attachment) (map[string][]byte, error) {
	hostname := cfg.GetHostname()
	if hostname == "" || r.Network.Host {
		hostname = rt.cfg.NodeHostname
	}
	files := map[string][]byte{fileHostname: []byte(hostname + "\n")}
	var err error
	if files[fileResolvConf] = resolvConf(cfg.GetDnsConfig()); files[fileResolvConf] == nil {
		if files[fileResolvConf], err = rt.paths.read(ctx, string(r.ID), "/etc/resolv.conf", hostFileMax); err != nil {
			return nil, err
		}
	}
	if r.Network.Host {
		files[fileHosts], err = rt.paths.read(ctx, string(r.ID), "/etc/hosts", hostFileMax)
		return files, err
	}
	files[fileHosts] = hosts(hostname, at)
	return files, nil
}

// resolvConf is a pod's resolv.conf(5), in the order in which kubelets and other
// runtimes write it; nil if the pod asks for nothing, and so has the node's.
func resolvConf(d *cri.DNSConfig) []byte {
	if len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		return nil
	}
	var b bytes.Buffer
	if s := d.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := d.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return b.Bytes()
}

// hosts is a pod's hosts(5), for containers that come without the kubelet's.
func hosts(hostname string, at *store.Attachment) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if at != nil {
		for _, ip := range at.IPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
		}
	}
	return b.Bytes()
}
