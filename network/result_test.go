// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/berth-cri/berth/network"
)

func resultSeeds() map[string]string {
	return map[string]string{
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","mtu":1500,"sandbox":"/run/netns/x"}],"ips":[{"address":"10.1.0.5/24","gateway":"10.1.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}`:     "[10.1.0.5]",
		`{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.0.1/24","interface":0},{"address":"10.1.0.5/24","interface":2},{"address":"fd00::5/64","interface":2}]}`: "[10.1.0.5 fd00::5]",
		`{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"version":"4","address":"10.1.0.5/24","interface":0}]}`:                                                                                                   "[10.1.0.5]",
		`{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.0.5/24"},{"version":"6","address":"fd00::5/64"}]}`:                                                                                                                        "[10.1.0.5 fd00::5]",
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/24","gateway":"10.1.0.1","routes":[]},"ip6":{"ip":"fd00::5/64"}}`:                                                                                                                         "[10.1.0.5 fd00::5]",
		`{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.1.0.5/24","interface":0}]}`:                                                                                                                 "[10.1.0.5]",
		`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.1.0.5/24","interface":0}]}`:                                                                                                                                "[10.1.0.5]",
		`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"},{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.2.0.5/24","interface":1},{"address":"10.1.0.5/24","interface":0}]}`:                                          "[10.1.0.5]",
		`{"ips":[{"address":"10.1.0.5/24","interface":7},{"address":"10.1.0.6/24","interface":-3},{"address":"10.1.0.5/16"}]}`:                                                                                                                 "[10.1.0.5 10.1.0.6]",
		`{"cniVersion":"1.0.0","ips":[{"address":"::ffff:10.1.0.5/120"}]}`:                                                                                                                                                                     "[10.1.0.5]",
		`{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"}],"ips":[{"address":"10.1.0.1/24","interface":0}]}`:                                                                                                                                "[]",
		`{}`: "[]",
	}
}

func TestParseResult(t *testing.T) {
	for text, want := range resultSeeds() {
		r, err := network.ParseResult([]byte(text))
		if err != nil || fmt.Sprint(r.Addrs("eth0")) != want {
			t.Errorf("%s\naddresses %v, %v; want %s", text, r.Addrs("eth0"), err, want)
		}
	}
	for _, text := range []string{
		``, `null`, `[]`, `"x"`, `{"ips":[null]}`, `{"ips":[{}]}`, `{"ips":[{"address":null}]}`, `{"ips":[{"address":""}]}`,
		`{"ips":[{"address":"10.1.0.5"}]}`, `{"ips":[{"address":"10.1.0.5/33"}]}`, `{"ips":[{"address":"0.0.0.0/0"}]}`,
		`{"ips":[{"address":"::ffff:10.1.0.5/64"}]}`, `{"interfaces":[null]}`, `{"routes":[null]}`, `{"ips":{}}`, `{"ip4":{}}`,
		`{"ips":[{"address":"10.1.0.5/24","gateway":"x"}]}`, `{} {}`, `{"ips":[{"address":"10.1.0.5/24"}]`,
	} {
		if r, err := network.ParseResult([]byte(text)); !errors.Is(err, network.ErrBadResult) {
			t.Errorf("%s = %+v, %v; want ErrBadResult", text, r, err)
		}
	}
	r, err := network.ParseResult([]byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"m","sandbox":"/x"}],"ips":[{"address":"10.1.0.5/24","gateway":"10.1.0.1","interface":0},{"address":"fd00::5/64"}]}`))
	want := network.Result{
		Version:    "1.1.0",
		Interfaces: []network.Interface{{Name: "eth0", MAC: "m", Sandbox: "/x"}},
		IPs: []network.IP{
			{Prefix: netip.MustParsePrefix("10.1.0.5/24"), Gateway: netip.MustParseAddr("10.1.0.1")},
			{Prefix: netip.MustParsePrefix("fd00::5/64"), Interface: -1},
		},
	}
	if err != nil || fmt.Sprint(r) != fmt.Sprint(want) {
		t.Errorf("ParseResult = %+v, %v\nwant %+v", r, err, want)
	}
}

func FuzzParseResult(f *testing.F) {
	for text := range resultSeeds() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := network.ParseResult(b)
		if err != nil {
			if !errors.Is(err, network.ErrBadResult) {
				t.Errorf("%v is no ErrBadResult", err)
			}
			return
		}
		seen := map[netip.Addr]bool{}
		for _, a := range r.Addrs("eth0") {
			if !a.IsValid() || a.IsUnspecified() || a.Is4In6() || a.Zone() != "" || seen[a] {
				t.Errorf("address %v", a)
			}
			seen[a] = true
		}
	})
}
