// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

// Verdict is what berth does with a field of the CRI.
type Verdict string

// The verdicts.
const (
	Honoured Verdict = "honoured"
	Refused  Verdict = "refused" // where it asks for something: a *FieldError, which names it
	Ignored  Verdict = "ignored"
)

// Decision is the verdict on one field of a PodSandboxConfig ("pod.…") or a ContainerConfig
// ("container.…"). One on a message that is refused or ignored holds for all that is in it.
type Decision struct {
	Field   string
	Verdict Verdict
	// By is the package that honours it. "oci/spec" alone is Build; its other functions are named.
	By  string
	Why string // where the field's own name and comment do not say
}

// Decisions returns the verdict on each field of the two configs, as of k8s.io/cri-api v0.37.2. Its test
// fails on a field that is not here, so that a new version of the CRI is a list of questions, and on a
// verdict that is not what the code does.
func Decisions() []Decision { return append(podDecisions(), containerDecisions()...) }

const (
	noPodProcess = "no process of the pod's own: the built-in pause, where there is one, is confined by itself"
	informative  = "informative: the kubelet has made the pod's cgroup with it"
	notLinux     = "this node runs Linux"
	laterWork    = "later work"
)

func podDecisions() []Decision {
	const security = "pod.linux.security_context."
	return []Decision{
		{"pod.metadata.name", Honoured, "sandbox", ""},
		{"pod.metadata.uid", Honoured, "sandbox", ""},
		{"pod.metadata.namespace", Honoured, "sandbox", ""},
		{"pod.metadata.attempt", Honoured, "sandbox", ""},
		{"pod.hostname", Honoured, "oci/spec", "HOSTNAME; set in the UTS namespace by oci/ns; empty is the node's"},
		{"pod.log_directory", Honoured, "sandbox", ""},
		{"pod.dns_config.servers", Honoured, "sandbox", "resolv.conf; checked by oci/spec.CheckPod"},
		{"pod.dns_config.searches", Honoured, "sandbox", "resolv.conf; checked by oci/spec.CheckPod"},
		{"pod.dns_config.options", Honoured, "sandbox", "resolv.conf; checked by oci/spec.CheckPod"},
		{"pod.port_mappings.protocol", Honoured, "network", ""},
		{"pod.port_mappings.container_port", Honoured, "network", ""},
		{"pod.port_mappings.host_port", Honoured, "network", ""},
		{"pod.port_mappings.host_ip", Honoured, "network", ""},
		{"pod.labels", Honoured, "sandbox", "kept and given back; nothing here reads them"},
		{"pod.annotations", Honoured, "sandbox", "kept and given back; to an OCI runtime only what its handler's configuration names"},
		{"pod.linux.cgroup_parent", Honoured, "oci/cgroup", ""},
		{security + "namespace_options.network", Honoured, "oci/spec", "POD or NODE"},
		{security + "namespace_options.pid", Honoured, "oci/spec", "POD, CONTAINER or NODE"},
		{security + "namespace_options.ipc", Honoured, "oci/spec", "POD or NODE"},
		{security + "namespace_options.target_id", Refused, "", "a pod is not made in a container's namespace"},
		{security + "namespace_options.userns_options", Refused, "", "but for the node's: " + laterWork},
		{security + "selinux_options", Refused, "", "where SELinux is on: " + laterWork},
		{security + "run_as_user", Ignored, "", noPodProcess},
		{security + "run_as_group", Honoured, "oci/spec.CheckPod", "refused without run_as_user, as the CRI says; else nothing: " + noPodProcess},
		{security + "readonly_rootfs", Ignored, "", noPodProcess},
		{security + "supplemental_groups", Ignored, "", noPodProcess},
		{security + "supplemental_groups_policy", Honoured, "oci/spec.CheckPod", "an unknown one is refused; else nothing: " + noPodProcess},
		{security + "privileged", Honoured, "oci/spec", "without it no container of the pod may be"},
		{security + "seccomp", Ignored, "", noPodProcess},
		{security + "apparmor", Ignored, "", noPodProcess},
		{security + "seccomp_profile_path", Ignored, "", "deprecated; " + noPodProcess},
		{"pod.linux.sysctls", Honoured, "oci/ns", "those of the pod's own namespaces"},
		{"pod.linux.overhead", Ignored, "", informative},
		{"pod.linux.resources", Ignored, "", informative},
		{"pod.windows", Refused, "", notLinux},
	}
}

func containerDecisions() []Decision {
	const (
		mounts    = "container.mounts."
		resources = "container.linux.resources."
		security  = "container.linux.security_context."
	)
	return []Decision{
		{"container.metadata.name", Honoured, "sandbox", ""},
		{"container.metadata.attempt", Honoured, "sandbox", ""},
		{"container.image.image", Honoured, "sandbox", "whose layers and whose config"},
		{"container.image.annotations", Ignored, "", "they choose among images when one is pulled"},
		{"container.image.user_specified_image", Honoured, "sandbox", "shown in the status"},
		{"container.image.runtime_handler", Ignored, "", "one store of images serves all handlers"},
		{"container.image.image_ref", Ignored, "", "of an image that is a volume"},
		{"container.command", Honoured, "oci/spec", ""},
		{"container.args", Honoured, "oci/spec", ""},
		{"container.working_dir", Honoured, "oci/spec", ""},
		{"container.envs.key", Honoured, "oci/spec", ""},
		{"container.envs.value", Honoured, "oci/spec", "any bytes but zero"},
		{mounts + "container_path", Honoured, "oci/spec", ""},
		{mounts + "host_path", Honoured, "oci/spec", "that it exists is looked at by sandbox"},
		{mounts + "readonly", Honoured, "oci/spec", ""},
		{mounts + "selinux_relabel", Refused, "", "where SELinux is on: " + laterWork},
		{mounts + "propagation", Honoured, "oci/spec", ""},
		{mounts + "uidMappings", Refused, "", laterWork},
		{mounts + "gidMappings", Refused, "", laterWork},
		{mounts + "recursive_read_only", Refused, "", laterWork},
		{mounts + "image", Refused, "", laterWork},
		{mounts + "image_sub_path", Refused, "", "without image it means nothing; with it: " + laterWork},
		{mounts + "mount_options", Refused, "", laterWork},
		{"container.devices.container_path", Honoured, "oci/spec", ""},
		{"container.devices.host_path", Honoured, "oci/spec", ""},
		{"container.devices.permissions", Honoured, "oci/spec", ""},
		{"container.labels", Honoured, "sandbox", "kept and given back; nothing here reads them"},
		{"container.annotations", Honoured, "sandbox", "kept and given back; to an OCI runtime only what its handler's configuration names"},
		{"container.log_path", Honoured, "sandbox", ""},
		{"container.stdin", Honoured, "sandbox", ""},
		{"container.stdin_once", Honoured, "sandbox", ""},
		{"container.tty", Honoured, "oci/spec", ""},
		{resources + "cpu_period", Honoured, "oci/spec", ""},
		{resources + "cpu_quota", Honoured, "oci/spec", ""},
		{resources + "cpu_shares", Honoured, "oci/spec", ""},
		{resources + "memory_limit_in_bytes", Honoured, "oci/spec", ""},
		{resources + "oom_score_adj", Honoured, "oci/spec", ""},
		{resources + "cpuset_cpus", Honoured, "oci/spec", ""},
		{resources + "cpuset_mems", Honoured, "oci/spec", ""},
		{resources + "hugepage_limits.page_size", Honoured, "oci/spec", ""},
		{resources + "hugepage_limits.limit", Honoured, "oci/spec", ""},
		{resources + "unified", Honoured, "oci/spec", "on cgroup v2; refused on v1"},
		{resources + "memory_swap_limit_in_bytes", Honoured, "oci/spec", "zero forbids swap"},
		{security + "capabilities.add_capabilities", Honoured, "oci/spec", "but not to the inheritable set: CVE-2022-24769"},
		{security + "capabilities.drop_capabilities", Honoured, "oci/spec", ""},
		{security + "capabilities.add_ambient_capabilities", Honoured, "oci/spec", ""},
		{security + "privileged", Honoured, "oci/spec", ""},
		{security + "namespace_options.network", Honoured, "oci/spec", "the pod's, be it its own or the node's"},
		{security + "namespace_options.pid", Honoured, "oci/spec", ""},
		{security + "namespace_options.ipc", Honoured, "oci/spec", "the pod's, be it its own or the node's"},
		{security + "namespace_options.target_id", Honoured, "oci/spec", ""},
		{security + "namespace_options.userns_options", Refused, "", "but for the node's: " + laterWork},
		{security + "selinux_options", Refused, "", "where SELinux is on and the container is not privileged: " + laterWork},
		{security + "run_as_user", Honoured, "oci/spec.ResolveUser", ""},
		{security + "run_as_group", Honoured, "oci/spec.ResolveUser", ""},
		{security + "run_as_username", Honoured, "oci/spec.ResolveUser", ""},
		{security + "readonly_rootfs", Honoured, "oci/spec", ""},
		{security + "supplemental_groups", Honoured, "oci/spec.ResolveUser", ""},
		{security + "supplemental_groups_policy", Honoured, "oci/spec.ResolveUser", ""},
		{security + "no_new_privs", Honoured, "oci/spec", ""},
		{security + "masked_paths", Honoured, "oci/spec", ""},
		{security + "readonly_paths", Honoured, "oci/spec", ""},
		{security + "seccomp.profile_type", Honoured, "oci/spec", ""},
		{security + "seccomp.localhost_ref", Honoured, "oci/spec.SeccompProfilePath", ""},
		{security + "apparmor", Refused, "", "but for Unconfined, and for a privileged container: " + laterWork},
		{security + "apparmor_profile", Refused, "", "deprecated; as apparmor"},
		{security + "seccomp_profile_path", Honoured, "oci/spec", "deprecated; where seccomp is not given"},
		{"container.windows", Refused, "", notLinux},
		{"container.CDI_devices", Refused, "", laterWork},
		{"container.stop_signal", Honoured, "oci/spec.StopSignal", ""},
	}
}
