// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

// A Pod is what plugins are told of a pod sandbox.
type Pod struct {
	ID        store.PodID
	Namespace string
	Name      string
	UID       string
	NetNS     string // absolute path of the pinned network namespace

	// For plugins that ask for them by capabilities in their configuration; see capabilities.
	Annotations  map[string]string
	PortMappings []*cri.PortMapping
	DNS          *cri.DNSConfig
	CgroupParent string

	// Args are added to CNI_ARGS.
	Args [][2]string
}

// maxID bounds the id: it is part of file names.
const maxID = 128

// args is CNI_ARGS. What a value cannot hold is refused: by a semicolon a name would set another
// argument, and a plugin that looks up the pod by them would find that of someone else.
func (p *Pod) args() ([][2]string, error) {
	args := append([][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", string(p.ID)},
		{"K8S_POD_UID", p.UID},
	}, p.Args...)
	for _, kv := range args {
		for _, s := range kv {
			if i := strings.IndexFunc(s, func(c rune) bool { return c == ';' || c == '=' || c < ' ' || c == 0x7f }); i >= 0 {
				return nil, fmt.Errorf("%w argument %s: %.200q has a %q", ErrInvalid, kv[0], s, s[i])
			}
		}
		if kv[0] == "" {
			return nil, fmt.Errorf("%w argument without a name", ErrInvalid)
		}
	}
	return args, nil
}

// check holds what does not depend on the plugins.
func (p *Pod) check() error {
	if err := checkID(p.ID); err != nil {
		return err
	}
	if !filepath.IsAbs(p.NetNS) {
		return fmt.Errorf("%w network namespace %.200q: want an absolute path", ErrInvalid, p.NetNS)
	}
	return nil
}

func checkID(id store.PodID) error {
	ok := id != "" && len(id) <= maxID
	for i, c := range []byte(id) {
		ok = ok && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || i > 0 && (c == '-' || c == '_' || c == '.'))
	}
	if !ok {
		return fmt.Errorf("%w pod id %.200q", ErrInvalid, id)
	}
	return nil
}

// The capability arguments, in the form of the conventions of CNI (CONVENTIONS.md, "Dynamic Plugin
// specific Fields").
type (
	portMapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	bandwidth struct {
		IngressRate  uint64 `json:"ingressRate,omitempty"` // bits per second
		IngressBurst uint64 `json:"ingressBurst,omitempty"`
		EgressRate   uint64 `json:"egressRate,omitempty"`
		EgressBurst  uint64 `json:"egressBurst,omitempty"`
	}
	dns struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
)

// capabilities are the capability arguments; libcni gives a plugin those that it asks for. They are
// those of the other runtimes:
//
//	portMappings                        PortMappings with a host port
//	bandwidth                           annotations kubernetes.io/ingress-bandwidth, egress-bandwidth
//	dns                                 DNS
//	cgroupPath                          CgroupParent
//	io.kubernetes.cri.pod-annotations   Annotations
func (p *Pod) capabilities() (map[string]any, error) {
	caps := map[string]any{}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = maps.Clone(p.Annotations)
	}
	ports, err := portMappings(p.PortMappings)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	limits, err := podBandwidth(p.Annotations)
	if err != nil {
		return nil, err
	}
	if limits != (bandwidth{}) {
		caps["bandwidth"] = limits
	}
	if d := p.DNS; len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) > 0 {
		caps["dns"] = dns{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	if p.CgroupParent != "" {
		caps["cgroupPath"] = p.CgroupParent
	}
	return caps, nil
}

// portMappings leaves out mappings without a host port: CRI has those for information.
func portMappings(list []*cri.PortMapping) ([]portMapping, error) {
	var out []portMapping
	for _, m := range list {
		if m.GetHostPort() == 0 {
			continue
		}
		protocol, known := cri.Protocol_name[int32(m.GetProtocol())]
		switch {
		case !known:
			return nil, fmt.Errorf("%w port mapping: protocol %d", ErrInvalid, m.GetProtocol())
		case m.HostPort < 1 || m.HostPort > math.MaxUint16 || m.ContainerPort < 1 || m.ContainerPort > math.MaxUint16:
			return nil, fmt.Errorf("%w port mapping: host port %d to port %d", ErrInvalid, m.HostPort, m.ContainerPort)
		}
		if m.HostIp != "" {
			if _, err := netip.ParseAddr(m.HostIp); err != nil {
				return nil, fmt.Errorf("%w port mapping: host address: %w", ErrInvalid, err)
			}
		}
		out = append(out, portMapping{
			HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: strings.ToLower(protocol), HostIP: m.HostIp,
		})
	}
	return out, nil
}

// podBandwidth reads the annotations that kubelets and the other runtimes know. The bursts are theirs
// too: no limit of their own, since the rate is what was asked for.
func podBandwidth(annotations map[string]string) (bandwidth, error) {
	var b bandwidth
	for name, set := range map[string]*struct{ rate, burst *uint64 }{
		"kubernetes.io/ingress-bandwidth": {&b.IngressRate, &b.IngressBurst},
		"kubernetes.io/egress-bandwidth":  {&b.EgressRate, &b.EgressBurst},
	} {
		text, there := annotations[name]
		if !there {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return bandwidth{}, fmt.Errorf("%w annotation %s: %w", ErrInvalid, name, err)
		}
		*set.rate, *set.burst = rate, math.MaxUint32
	}
	return b, nil
}

// What kubelets take for a bandwidth (pkg/util/bandwidth): bits per second from 1k to 1P.
const minRate, maxRate = 1e3, 1e15

// parseRate reads a quantity as the Kubernetes API has them ("10M", "1.5Gi", "1e6"), rounded up.
func parseRate(text string) (uint64, error) {
	const longest = 64 // a quantity has no use for more, and big numbers cost
	digits := strings.TrimLeft(strings.TrimPrefix(text, "+"), "0123456789.")
	mantissa, suffix := text[:len(text)-len(digits)], digits
	scale, known := suffixScale(suffix)
	value, ok := new(big.Rat).SetString(strings.TrimPrefix(mantissa, "+"))
	if !ok || !known || len(text) > longest {
		return 0, fmt.Errorf("%.100q is no quantity such as 10M", text)
	}
	value.Mul(value, scale)
	if value.Cmp(new(big.Rat).SetInt64(minRate)) < 0 || value.Cmp(new(big.Rat).SetInt64(maxRate)) > 0 {
		return 0, fmt.Errorf("%.100q is not between 1k and 1P", text)
	}
	up := new(big.Int).Add(value.Num(), value.Denom())
	up.Sub(up, big.NewInt(1))
	return up.Div(up, value.Denom()).Uint64(), nil
}

func suffixScale(suffix string) (*big.Rat, bool) {
	if len(suffix) > 1 && (suffix[0] == 'e' || suffix[0] == 'E') {
		exp, err := strconv.Atoi(suffix[1:])
		if err != nil || exp < -30 || exp > 30 {
			return nil, false
		}
		return pow(10, exp), true
	}
	for i, prefixes := range []string{"kMGTPE", "KMGTPE"} {
		j := strings.Index(prefixes, strings.TrimSuffix(suffix, "i"))
		if strings.HasSuffix(suffix, "i") == (i == 1) && j >= 0 && len(strings.TrimSuffix(suffix, "i")) == 1 {
			return pow([]int64{1000, 1024}[i], j+1), true
		}
	}
	switch suffix {
	case "":
		return pow(10, 0), true
	case "m":
		return pow(10, -3), true
	case "u":
		return pow(10, -6), true
	case "n":
		return pow(10, -9), true
	}
	return nil, false
}

func pow(base int64, exp int) *big.Rat {
	n := new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(max(exp, -exp))), nil)
	if exp < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), n)
	}
	return new(big.Rat).SetInt(n)
}
