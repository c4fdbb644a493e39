// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package network_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/store"
)

// realConf is a list as `make run` and many nodes have it, with both families.
const realConf = `{
	"cniVersion": "1.1.0", "name": "berth-test",
	"plugins": [
		{
			"type": "bridge", "bridge": "berthtest0", "isGateway": true, "ipMasq": %t, "hairpinMode": true,
			"ipam": {
				"type": "host-local", "dataDir": %q,
				"ranges": [[{"subnet": "10.213.0.0/24"}], [{"subnet": "fd00:213::/64"}]],
				"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
			}
		},
		{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
		{"type": "firewall", "backend": "iptables"}
	]
}`

// node is a network with the real plugins.
type node struct {
	*network.Network
	t      testing.TB
	conf   network.Config
	leases string // folder of host-local
}

// newNode has made all that plugins make once and leave for good: the bridge, and their chains. What a
// test leaves besides is reported.
func newNode(t testing.TB, masquerade bool) *node {
	t.Helper()
	bin, err := filepath.Abs("../bin/cni")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "bridge")); err != nil {
		t.Fatalf("%v; run: make cni", err)
	}
	dir := t.TempDir()
	n := &node{t: t, leases: filepath.Join(dir, "leases"), conf: network.Config{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{bin}, CacheDir: filepath.Join(dir, "cache"),
	}}
	n.write("10-berth.conflist", fmt.Sprintf(realConf, masquerade, n.leases))
	self, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ns.Loopback(self), self.Close()); err != nil {
		t.Fatal(err)
	}
	// Else the bridge's own address cannot be used for a second after its first port is up, and a
	// connection that begins by then is from ::1 and never comes back.
	for _, sysctl := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+sysctl+"/accept_dad", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n.Network, err = network.Open(klog.NewContext(t.Context(), klog.Logger{}), n.conf); err != nil {
		t.Fatal(err)
	}
	first := n.pod("first")
	first.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, HostPort: 18080, ContainerPort: 80}}
	n.attach(first)
	n.detach(first)
	if err := ns.Remove(first.NetNS); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	leak.Check(t, leak.Mounts("/run"), leak.NetNS("*"), leak.Links(), leak.Iptables(), leak.Files(dir, "/run"), leak.Goroutines(), leak.Descriptors())
	if n.Network, err = network.Open(klog.NewContext(t.Context(), klog.Logger{}), n.conf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) write(file, content string) {
	n.t.Helper()
	if err := errors.Join(os.MkdirAll(n.conf.ConfDir, 0o755), os.WriteFile(filepath.Join(n.conf.ConfDir, file), []byte(content), 0o644)); err != nil {
		n.t.Fatal(err)
	}
}

// pod has a network namespace until the test ends.
func (n *node) pod(id string) network.Pod {
	n.t.Helper()
	made, err := ns.Make(n.t.Context(), ns.Request{ID: id, Net: true})
	if err != nil {
		n.t.Fatal(err)
	}
	made.Close()
	n.t.Cleanup(func() {
		if err := ns.Remove(ns.Pin("", id)); err != nil {
			n.t.Error(err)
		}
	})
	p := pod(id)
	p.NetNS = ns.Pin("", id)
	return p
}

func (n *node) attach(p network.Pod) store.Attachment {
	n.t.Helper()
	got, err := n.Attach(n.t.Context(), p)
	if err != nil {
		n.t.Fatal(err)
	}
	return got
}

func (n *node) detach(p network.Pod) {
	n.t.Helper()
	if err := n.Detach(n.t.Context(), p, nil); err != nil {
		n.t.Fatal(err)
	}
}

// leased returns the addresses that host-local has given, in order.
func (n *node) leased() (list []string) {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.leases, "berth-test"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			list = append(list, e.Name())
		}
	}
	return list
}

// serve answers each connection with a word, inside a pod, until the test ends.
func (n *node) serve(p network.Pod, address, word string) {
	n.t.Helper()
	f, err := ns.Open(p.NetNS)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	var l net.Listener
	if err := ns.Do(f, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, word)
			c.Close()
		}
	}()
	n.t.Cleanup(func() { l.Close(); <-ended })
}

// wantWord dials from a namespace.
func (n *node) wantWord(netns, address, want string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	c, err := network.Dial(ctx, netns, "tcp", address)
	if err != nil {
		n.t.Errorf("dial %s from %q: %v", address, netns, err)
		return
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != want {
		n.t.Errorf("%s from %q said %q, %v; want %q", address, netns, b, err, want)
	}
}

func join(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }

func TestRealPlugins(t *testing.T) {
	n := newNode(t, true)
	if s := n.Status(t.Context()); !s.Ready || !slices.Equal(s.Networks, []string{"berth-test"}) {
		t.Fatalf("Status = %+v", s)
	}
	a, b := n.pod("a"), n.pod("b")
	a.PortMappings = []*cri.PortMapping{
		{Protocol: cri.Protocol_TCP, HostPort: 18080, ContainerPort: 80},
		{Protocol: cri.Protocol_TCP, HostPort: 18081, ContainerPort: 80, HostIp: "127.0.0.1"},
	}
	at, bt := n.attach(a), n.attach(b)
	for _, got := range []store.Attachment{at, bt} {
		if len(got.IPs) != 2 || !got.IPs[0].Is4() || !got.IPs[1].Is6() || got.Network != "berth-test" || got.Interface != "eth0" {
			t.Fatalf("Attach = %+v", got)
		}
	}
	if at.IPs[0] == bt.IPs[0] {
		t.Errorf("both pods have %v", at.IPs[0])
	}
	n.serve(a, ":80", "I am a")
	for _, ip := range at.IPs {
		n.wantWord(b.NetNS, join(ip, 80), "I am a") // from pod to pod
		n.wantWord("", join(ip, 80), "I am a")      // from the node
	}
	gateway := netip.MustParseAddr("10.213.0.1")
	n.wantWord("", "127.0.0.1:18080", "I am a")
	n.wantWord("", "127.0.0.1:18081", "I am a")
	n.wantWord(b.NetNS, join(gateway, 18080), "I am a")
	n.wantWord(a.NetNS, join(gateway, 18080), "I am a") // by the hairpin
	n.wantWord(a.NetNS, "localhost:80", "I am a")
	for _, p := range []network.Pod{a, b} {
		if err := n.Check(t.Context(), p.ID); err != nil {
			t.Errorf("Check %s: %v", p.ID, err)
		}
	}
	if len(n.leased()) != 4 {
		t.Errorf("leases: %v", n.leased())
	}

	n.detach(a)
	if want := []string{bt.IPs[0].String(), bt.IPs[1].String()}; !slices.Equal(n.leased(), want) {
		t.Errorf("leases after the first is gone: %v; want %v", n.leased(), want)
	}
	if c, err := network.Dial(t.Context(), "", "tcp", "127.0.0.1:18080"); err == nil {
		c.Close()
		t.Error("the host port still answers")
	}
	// The address is free: the next pod that asks after all others were given has it. And a pod attaches
	// once more under the same id.
	n.detach(b)
	if got := n.leased(); len(got) > 0 {
		t.Errorf("leases: %v", got)
	}
	n.attach(a)
	n.wantWord("", "127.0.0.1:18080", "I am a")
	n.detach(a)
}

// A change inside the pod is seen by CHECK, and said in the plugin's words.
func TestCheckSeesDamage(t *testing.T) {
	n := newNode(t, true)
	p := n.pod("a")
	n.attach(p)
	defer n.detach(p)
	if out, err := exec.CommandContext(t.Context(), "ip", "-n", "berth-a", "route", "del", "default").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := n.Check(t.Context(), p.ID)
	failed, ok := errors.AsType[*network.PluginError](err)
	if !ok || failed.Plugin != "bridge" || failed.Command != "CHECK" || !strings.Contains(err.Error(), "Expected Route") {
		t.Errorf("Check = %v", err)
	}
}

// DEL frees addresses and rules when the pod's namespace is gone, and when berth starts in between. Not
// those of ipMasq: bridge (1.9.1) takes the addresses for them from the namespace alone.
func TestDetachWithoutNamespace(t *testing.T) {
	n := newNode(t, false)
	p := n.pod("a")
	p.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, HostPort: 18080, ContainerPort: 80}}
	n.attach(p)
	if err := ns.Remove(p.NetNS); err != nil {
		t.Fatal(err)
	}
	n.write("00-broken.conflist", "{")
	if err := os.Remove(filepath.Join(n.conf.ConfDir, "10-berth.conflist")); err != nil {
		t.Fatal(err)
	}
	next, err := network.Open(klog.NewContext(t.Context(), klog.Logger{}), n.conf)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.Detach(t.Context(), network.Pod{ID: "a"}, nil); err != nil {
		t.Error(err)
	}
	if got := n.leased(); len(got) > 0 {
		t.Errorf("leases: %v", got)
	}
	if err := os.Remove(filepath.Join(n.conf.ConfDir, "00-broken.conflist")); err != nil {
		t.Fatal(err) // the leak checker has not seen it
	}
}

// berth is killed at any moment of an ADD: the next one frees all that the plugins have made. Not firewall's
// rules: it finds them by the result alone, which there is none of before the last plugin has ended.
func TestKilledDuringRealAdd(t *testing.T) {
	n := newNode(t, true)
	without := strings.Replace(realConf, `"snat": true},`, `"snat": true}`, 1)
	without = strings.Replace(without, `{"type": "firewall", "backend": "iptables"}`, "", 1)
	n.write("10-berth.conflist", fmt.Sprintf(without, true, n.leases))
	for i := range 12 {
		p := n.pod(fmt.Sprintf("k%d", i))
		p.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, HostPort: 18080, ContainerPort: 80}}
		berth := startBerth(t, n.conf, p)
		died := make(chan struct{})
		go func() { defer close(died); berth.Wait() }()
		select {
		case <-time.After(time.Duration(i) * 25 * time.Millisecond):
			berth.Process.Kill()
			<-died
		case <-died:
			t.Logf("kill %d: too late, it has ended", i)
		}
		if err := n.Detach(t.Context(), p, nil); err != nil {
			t.Errorf("kill %d: %v", i, err)
		}
		if got := n.leased(); len(got) > 0 {
			t.Errorf("kill %d: leases: %v", i, got)
		}
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	n := newNode(t, true)
	const many = 12
	var pods []network.Pod
	for i := range many {
		pods = append(pods, n.pod(fmt.Sprintf("p%d", i)))
	}
	type result struct {
		ip  netip.Addr
		err error
	}
	results := make(chan result)
	for _, p := range pods {
		go func() {
			got, err := n.Attach(t.Context(), p)
			if err != nil {
				results <- result{err: err}
				return
			}
			results <- result{ip: got.IPs[0]}
		}()
	}
	seen := map[netip.Addr]bool{}
	for range pods {
		got := <-results
		if got.err != nil {
			t.Error(got.err)
		}
		seen[got.ip] = true
	}
	if len(seen) != many {
		t.Errorf("%d pods have %d addresses", many, len(seen))
	}
	for _, p := range pods {
		go func() { results <- result{err: n.Detach(t.Context(), p, nil)} }()
	}
	for range pods {
		if got := <-results; got.err != nil {
			t.Error(got.err)
		}
	}
	if got := n.leased(); len(got) > 0 {
		t.Errorf("leases: %v", got)
	}
}

func TestDial(t *testing.T) {
	n := newNode(t, true)
	p := n.pod("a")
	n.serve(p, "127.0.0.1:80", "four")
	n.serve(p, "[::1]:80", "six")
	n.serve(p, "[::1]:81", "six")
	n.wantWord(p.NetNS, "localhost:80", "four")
	n.wantWord(p.NetNS, "localhost:81", "six")
	n.wantWord(p.NetNS, "[::1]:80", "six")
	n.wantWord(p.NetNS, "127.0.0.1:80", "four")
	_, err := network.Dial(t.Context(), p.NetNS, "tcp", "localhost:82")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:82") || !strings.Contains(err.Error(), "[::1]:82") {
		t.Errorf("dial where nobody listens: %v", err)
	}
	if c, err := network.Dial(t.Context(), "", "tcp", "localhost:80"); err == nil {
		c.Close()
		t.Error("the node has what the pod serves")
	}
	if _, err := network.Dial(t.Context(), "/run/netns/none", "tcp", "localhost:80"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dial into nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := network.Dial(ctx, p.NetNS, "tcp", "localhost:80"); !errors.Is(err, context.Canceled) {
		t.Errorf("dial after cancel: %v", err)
	}
}

// What a pod's network costs: the plugins are five processes for ADD (bridge, its host-local, portmap,
// firewall and iptables many times), and as many for DEL.
func BenchmarkAttachDetach(b *testing.B) {
	n := newNode(b, true)
	p := n.pod("a")
	var attach, detach time.Duration
	for b.Loop() {
		begin := time.Now()
		n.attach(p)
		attached := time.Now()
		n.detach(p)
		attach += attached.Sub(begin)
		detach += time.Since(attached)
	}
	b.ReportMetric(float64(attach.Milliseconds())/float64(b.N), "ms/attach")
	b.ReportMetric(float64(detach.Milliseconds())/float64(b.N), "ms/detach")
}
