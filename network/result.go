// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// A Result is what matters here of the result of a CNI ADD, as of specification 0.1.0 to 1.1.0
// ("Success").
type Result struct {
	Version    string // as the result says; may be empty
	Interfaces []Interface
	IPs        []IP
}

// An Interface is one that a plugin made.
type Interface struct {
	Name    string
	MAC     string // as the plugin wrote it; may be empty
	Sandbox string // path of the network namespace where it is; empty: on the node
}

// An IP is an address that a plugin gave.
type IP struct {
	Prefix    netip.Prefix // the address, and how much of it is the network's; never a mapped IPv4 address
	Gateway   netip.Addr   // zero: none
	Interface int          // index in Interfaces; -1: the plugin did not say
}

// Addrs returns the addresses of the interface name in the plugin's order, each once: those of which
// the plugin says that they are on it, and those of which it does not say where they are. If there is
// none, it returns those of any interface in a sandbox: plugins exist that name it otherwise in the
// result than they were told to.
func (r Result) Addrs(name string) []netip.Addr {
	pick := func(wanted func(Interface) bool) (list []netip.Addr) {
		for _, ip := range r.IPs {
			said := ip.Interface >= 0 && ip.Interface < len(r.Interfaces)
			if addr := ip.Prefix.Addr(); (!said || wanted(r.Interfaces[ip.Interface])) && !slices.Contains(list, addr) {
				list = append(list, addr)
			}
		}
		return list
	}
	for _, wanted := range []func(Interface) bool{
		func(i Interface) bool { return i.Name == name && i.Sandbox != "" },
		func(i Interface) bool { return i.Name == name },
		func(i Interface) bool { return i.Sandbox != "" },
	} {
		if list := pick(wanted); len(list) > 0 {
			return list
		}
	}
	return nil
}

// ParseResult reads the result of an ADD, as a plugin writes it or store.Attachment keeps it. It is
// read by its form, whatever version it says: ErrBadResult for anything else, a null among the
// addresses or interfaces included.
func ParseResult(b []byte) (Result, error) {
	var raw *struct {
		Version    string `json:"cniVersion"`
		Interfaces []*struct {
			Name    string `json:"name"`
			MAC     string `json:"mac"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []*struct {
			Interface *int          `json:"interface"`
			Address   *netip.Prefix `json:"address"`
			Gateway   netip.Addr    `json:"gateway"`
		} `json:"ips"`
		Routes []*struct{}    `json:"routes"`
		IP4    *legacyAddress `json:"ip4"` // 0.1.0 and 0.2.0
		IP6    *legacyAddress `json:"ip6"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrBadResult, err)
	}
	if raw == nil || slices.Contains(raw.Routes, nil) {
		return Result{}, fmt.Errorf("%w: null", ErrBadResult)
	}
	r := Result{Version: raw.Version}
	for _, i := range raw.Interfaces {
		if i == nil {
			return Result{}, fmt.Errorf("%w: null among the interfaces", ErrBadResult)
		}
		r.Interfaces = append(r.Interfaces, Interface(*i))
	}
	for _, ip := range raw.IPs {
		if ip == nil || ip.Address == nil {
			return Result{}, fmt.Errorf("%w: an entry of ips without an address", ErrBadResult)
		}
		next, err := newIP(*ip.Address, ip.Gateway)
		if err != nil {
			return Result{}, err
		}
		if ip.Interface != nil {
			next.Interface = max(*ip.Interface, -1)
		}
		r.IPs = append(r.IPs, next)
	}
	for _, old := range []*legacyAddress{raw.IP4, raw.IP6} {
		if old == nil {
			continue
		}
		next, err := newIP(old.IP, old.Gateway)
		if err != nil {
			return Result{}, err
		}
		r.IPs = append(r.IPs, next)
	}
	return r, nil
}

type legacyAddress struct {
	IP      netip.Prefix `json:"ip"`
	Gateway netip.Addr   `json:"gateway"`
}

func newIP(p netip.Prefix, gateway netip.Addr) (IP, error) {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	if a := p.Addr(); !p.IsValid() || a.Is4In6() || a.IsUnspecified() || a.Zone() != "" {
		return IP{}, fmt.Errorf("%w: %q is no address of a pod", ErrBadResult, p)
	}
	return IP{Prefix: p, Gateway: gateway.Unmap(), Interface: -1}, nil
}

// A Preference says which of a pod's addresses is the first that the kubelet is told.
type Preference string

const (
	PreferCNI  Preference = "cni" // the first of the plugin's; also the empty one
	PreferIPv4 Preference = "ipv4"
	PreferIPv6 Preference = "ipv6"
)

// PodIPs returns what PodSandboxStatus.network has in ip and additional_ips: the primary address, which
// is zero where there is none, and the others in the plugin's order. A family that is preferred and
// absent changes nothing.
//
// A pod in the node's network has no addresses here: those of the node are for the kubelet to know, and
// a runtime reports none.
func PodIPs(addrs []netip.Addr, prefer Preference) (primary netip.Addr, others []netip.Addr) {
	if len(addrs) == 0 {
		return netip.Addr{}, nil
	}
	first := 0
	if prefer == PreferIPv4 || prefer == PreferIPv6 {
		first = max(0, slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == (prefer == PreferIPv4) }))
	}
	return addrs[first], slices.Delete(slices.Clone(addrs), first, first+1)
}
