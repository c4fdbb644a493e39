// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strings"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the kernel's __NEW_UTS_LEN, in bytes.
const maxHostname = 64

// Namespaces says which namespaces a pod has for its containers; false: there they use the node's, or
// in the case of PID each its own.
type Namespaces struct {
	Net, IPC, UTS, PID bool
}

// PodNamespaces says which namespaces have to be made for a pod. Without namespace_options it is all of
// them: the default of every mode is POD. UTS goes with the network, as a pod on the node's network
// bears the node's name.
func PodNamespaces(pod *cri.PodSandboxConfig) Namespaces {
	o := podOptions(pod)
	net := o.GetNetwork() == cri.NamespaceMode_POD
	return Namespaces{
		Net: net, UTS: net,
		IPC: o.GetIpc() == cri.NamespaceMode_POD,
		PID: o.GetPid() == cri.NamespaceMode_POD,
	}
}

func podOptions(pod *cri.PodSandboxConfig) *cri.NamespaceOption {
	return pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// CheckPod refuses a pod that no container could be made in: before anything is made for it. Build
// checks again.
//
// Sysctls are not looked at here: which of them a pod may set is known to package oci/ns, which sets
// them.
func CheckPod(pod *cri.PodSandboxConfig, f Features) error {
	if pod == nil {
		return invalid("pod", "missing")
	}
	if proto.Size(pod.GetWindows()) > 0 {
		return unsupported("pod.windows", "this node runs Linux")
	}
	switch h := pod.GetHostname(); {
	case len(h) > maxHostname:
		return invalid("pod.hostname", "%.80q: %d bytes, the kernel takes %d", h, len(h), maxHostname)
	case hasControl(h):
		return invalid("pod.hostname", "%q: control character", h)
	}
	if err := checkDNS(pod.GetDnsConfig()); err != nil {
		return err
	}
	return checkPodSecurity(pod.GetLinux().GetSecurityContext(), f)
}

// checkDNS refuses what would be another line, or another word, of resolv.conf.
func checkDNS(dns *cri.DNSConfig) error {
	for _, list := range []struct {
		name  string
		words []string
	}{
		{"servers", dns.GetServers()},
		{"searches", dns.GetSearches()},
		{"options", dns.GetOptions()},
	} {
		for i, w := range list.words {
			if w == "" || hasControl(w) || strings.ContainsAny(w, " \u0085\u2028\u2029") {
				return invalid(at("pod.dns_config."+list.name, i), "%.100q: empty, or with a space or a control character", w)
			}
		}
	}
	return nil
}

func checkPodSecurity(s *cri.LinuxSandboxSecurityContext, f Features) error {
	const field = "pod.linux.security_context."
	o := s.GetNamespaceOptions()
	if m := o.GetNetwork(); m != cri.NamespaceMode_POD && m != cri.NamespaceMode_NODE {
		return invalid(field+"namespace_options.network", "%s: want POD or NODE", m)
	}
	if m := o.GetIpc(); m != cri.NamespaceMode_POD && m != cri.NamespaceMode_NODE {
		return invalid(field+"namespace_options.ipc", "%s: want POD or NODE", m)
	}
	switch m := o.GetPid(); m {
	case cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE:
	default:
		return invalid(field+"namespace_options.pid", "%s: want POD, CONTAINER or NODE", m)
	}
	if id := o.GetTargetId(); id != "" {
		return invalid(field+"namespace_options.target_id", "%.100q: a pod is not made in the namespace of a container", id)
	}
	if err := refuseUserNamespace(field+"namespace_options.userns_options", o); err != nil {
		return err
	}
	if err := refuseSELinux(field+"selinux_options", s.GetSelinuxOptions(), f); err != nil {
		return err
	}
	if s.GetRunAsGroup() != nil && s.GetRunAsUser() == nil {
		return invalid(field+"run_as_group", "without run_as_user")
	}
	return checkPolicy(field+"supplemental_groups_policy", s.GetSupplementalGroupsPolicy())
}

func checkPolicy(field string, p cri.SupplementalGroupsPolicy) error {
	if p != cri.SupplementalGroupsPolicy_Merge && p != cri.SupplementalGroupsPolicy_Strict {
		return invalid(field, "%s: want Merge or Strict", p)
	}
	return nil
}
