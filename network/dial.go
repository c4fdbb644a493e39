// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/berth-cri/berth/oci/ns"
)

// Dial connects to an address inside a pod, for port-forwarding: network is "tcp", and address is
// "localhost:PORT", or has an IP address in place of the name. localhost is 127.0.0.1 and then ::1,
// since a kubelet forwards to whatever listens on the pod's loopback; the error is that of both.
//
// netns is the path of the pod's pinned network namespace; empty: the node's own, for pods that are in
// it. The connection stays in the namespace, and keeps it alive until it is closed.
func Dial(ctx context.Context, netns, network, address string) (net.Conn, error) {
	addrs, err := dialAddrs(network, address)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range addrs {
		conn, err := dialIn(ctx, netns, network, addr)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func dialAddrs(network, address string) ([]netip.AddrPort, error) {
	if network != "tcp" {
		return nil, fmt.Errorf("%w: dial %q: want tcp", ErrInvalid, network)
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: dial: %w", ErrInvalid, err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%w: dial: port %.20q", ErrInvalid, text)
	}
	if host == "localhost" {
		host4, host6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
		return []netip.AddrPort{netip.AddrPortFrom(host4, uint16(port)), netip.AddrPortFrom(host6, uint16(port))}, nil
	}
	// Names are looked up in the node's network, and mean something else there.
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("%w: dial: %.100q is neither localhost nor an IP address", ErrInvalid, host)
	}
	return []netip.AddrPort{netip.AddrPortFrom(addr, uint16(port))}, nil
}

func dialIn(ctx context.Context, netns, network string, addr netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	dial := func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr.String())
		return err
	}
	if netns == "" {
		err := dial()
		return conn, err
	}
	f, err := ns.Open(netns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := ns.Do(f, dial); err != nil {
		return nil, err
	}
	return conn, nil
}
