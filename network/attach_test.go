// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/store"
)

func TestAttachDetach(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil), r.plugin("two", nil))
	n := r.open()
	got, err := n.Attach(t.Context(), pod("p1"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Network != "net-a" || got.Interface != "eth0" || fmt.Sprint(got.IPs) != "[10.1.0.5]" {
		t.Errorf("Attach = %s on %s with %v", got.Interface, got.Network, got.IPs)
	}
	if res, err := network.ParseResult(got.Result); err != nil || fmt.Sprint(res.Addrs("eth0")) != "[10.1.0.5]" || res.Version != "1.1.0" {
		t.Errorf("the result %s is %+v, %v", got.Result, res, err)
	}
	r.wantCommands("ADD one, ADD two")
	r.wantCache("p1.json", "results/net-a-p1-eth0")
	if pods, err := n.Attachments(); err != nil || !slices.Equal(pods, []store.PodID{"p1"}) {
		t.Errorf("Attachments = %v, %v", pods, err)
	}
	if err := n.Check(t.Context(), "p1"); err != nil {
		t.Errorf("Check: %v", err)
	}
	if err := n.Detach(t.Context(), pod("p1"), &got); err != nil {
		t.Fatal(err)
	}
	r.wantCommands("ADD one, ADD two, CHECK one, CHECK two, DEL two, DEL one")
	r.wantCache()
	for _, c := range r.calls() {
		switch c.Command {
		case "CHECK", "DEL":
			if c.Conf["prevResult"] == nil {
				t.Errorf("%s of %s has no prevResult", c.Command, c.Plugin)
			}
		}
		if c.Command == "DEL" && c.NetNS != "" {
			t.Errorf("DEL was given the network namespace %s, which is not there", c.NetNS)
		}
	}
	if err := n.Check(t.Context(), "p1"); !errors.Is(err, network.ErrNotAttached) {
		t.Errorf("Check after Detach = %v", err)
	}
	// Once more, as a caller does that died before it could note the first.
	if err := n.Detach(t.Context(), pod("p1"), nil); err != nil {
		t.Error(err)
	}
	r.wantCommands("ADD one, ADD two, CHECK one, CHECK two, DEL two, DEL one")
}

func TestWhatPluginsAreTold(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("PATH", "/opt/bin:/usr/bin")
	r := newRig(t)
	full := r.plugin("one", nil)
	few := r.plugin("two", nil)
	few["capabilities"] = map[string]bool{"portMappings": true, "dns": false}
	r.list("10-a.conflist", "net-a", full, few)
	n := r.open()
	p := pod("p1")
	p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1.5Gi", "note": "a;b=c\nd"}
	p.PortMappings = []*cri.PortMapping{
		{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 8080},
		{Protocol: cri.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "127.0.0.1"},
		{Protocol: cri.Protocol_SCTP, ContainerPort: 9, HostPort: 9, HostIp: "::1"},
		{Protocol: cri.Protocol_TCP, ContainerPort: 81},
	}
	p.DNS = &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc"}, Options: []string{"ndots:5"}}
	p.CgroupParent = "/kubepods/pod1"
	p.Args = [][2]string{{"MORE", "1"}}
	if _, err := n.Attach(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), network.Pod{ID: "p1"}, nil); err != nil {
		t.Fatal(err)
	}
	ports := `[{"containerPort":80,"hostPort":8080,"protocol":"tcp"},` +
		`{"containerPort":53,"hostIP":"127.0.0.1","hostPort":5353,"protocol":"udp"},` +
		`{"containerPort":9,"hostIP":"::1","hostPort":9,"protocol":"sctp"}]`
	all := `{"bandwidth":{"egressBurst":4294967295,"egressRate":1610612736,"ingressBurst":4294967295,"ingressRate":10000000},` +
		`"cgroupPath":"/kubepods/pod1",` +
		`"dns":{"options":["ndots:5"],"searches":["default.svc"],"servers":["10.96.0.10"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"1.5Gi","kubernetes.io/ingress-bandwidth":"10M","note":"a;b=c\nd"},` +
		`"portMappings":` + ports + `}`
	want := map[string]string{"one": all, "two": `{"portMappings":` + ports + `}`}
	seen := map[string]int{}
	for _, c := range r.calls() {
		if c.Command != "ADD" && c.Command != "DEL" {
			continue
		}
		seen[c.Command+c.Plugin]++
		if b, _ := json.Marshal(c.Conf["runtimeConfig"]); string(b) != want[c.Plugin] {
			t.Errorf("%s %s: runtimeConfig\n%s\nwant\n%s", c.Command, c.Plugin, b, want[c.Plugin])
		}
		args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=uid-1;MORE=1"
		if c.Args != args || c.IfName != "eth0" || c.Pod != "p1" || c.Path != r.conf.BinDirs[0] {
			t.Errorf("%s %s: CNI_ARGS %s, CNI_IFNAME %s, CNI_CONTAINERID %s, CNI_PATH %s", c.Command, c.Plugin, c.Args, c.IfName, c.Pod, c.Path)
		}
		if ns := map[string]string{"ADD": p.NetNS}[c.Command]; c.NetNS != ns {
			t.Errorf("%s %s: CNI_NETNS %q; want %q", c.Command, c.Plugin, c.NetNS, ns)
		}
		if !slices.Contains(c.Env, "PATH=/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin") {
			t.Errorf("PATH in %q", c.Env)
		}
		if slices.ContainsFunc(c.Env, func(kv string) bool { return strings.HasPrefix(kv, "NOTIFY_SOCKET") }) {
			t.Error("plugins are told of the socket by which systemd knows the daemon")
		}
	}
	if fmt.Sprint(seen) != "map[ADDone:1 ADDtwo:1 DELone:1 DELtwo:1]" {
		t.Errorf("calls: %v", seen)
	}
}

func TestInvalidPods(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	for name, change := range map[string]func(*network.Pod){
		"no id":             func(p *network.Pod) { p.ID = "" },
		"path in id":        func(p *network.Pod) { p.ID = "../p1" },
		"long id":           func(p *network.Pod) { p.ID = store.PodID(strings.Repeat("a", 129)) },
		"no netns":          func(p *network.Pod) { p.NetNS = "" },
		"argument in name":  func(p *network.Pod) { p.Name = "web-0;K8S_POD_UID=other" },
		"separator in uid":  func(p *network.Pod) { p.UID = "a;b" },
		"newline in uid":    func(p *network.Pod) { p.UID = "a\nb" },
		"equals":            func(p *network.Pod) { p.Namespace = "a=b" },
		"nameless argument": func(p *network.Pod) { p.Args = [][2]string{{"", "x"}} },
		"bandwidth":         func(p *network.Pod) { p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"} },
		"little bandwidth":  func(p *network.Pod) { p.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "10"} },
		"host port":         func(p *network.Pod) { p.PortMappings = []*cri.PortMapping{{HostPort: 70000, ContainerPort: 1}} },
		"container port":    func(p *network.Pod) { p.PortMappings = []*cri.PortMapping{{HostPort: 80}} },
		"protocol": func(p *network.Pod) {
			p.PortMappings = []*cri.PortMapping{{HostPort: 80, ContainerPort: 1, Protocol: 7}}
		},
		"host address": func(p *network.Pod) {
			p.PortMappings = []*cri.PortMapping{{HostPort: 80, ContainerPort: 1, HostIp: "x"}}
		},
	} {
		p := pod("p1")
		change(&p)
		if _, err := n.Attach(t.Context(), p); !errors.Is(err, network.ErrInvalid) {
			t.Errorf("%s: Attach = %v; want ErrInvalid", name, err)
		}
	}
	r.wantCommands("")
	r.wantCache()
	if err := n.Detach(t.Context(), network.Pod{ID: "../p1"}, nil); !errors.Is(err, network.ErrInvalid) {
		t.Errorf("Detach = %v", err)
	}
	if err := n.Check(t.Context(), "a/b"); !errors.Is(err, network.ErrInvalid) {
		t.Errorf("Check = %v", err)
	}
}

// What a pod is attached to is deleted, and not what is configured by then.
func TestConfigurationChanged(t *testing.T) {
	for name, change := range map[string]func(r *rig){
		"other plugins":     func(r *rig) { r.list("10-a.conflist", "net-a", r.plugin("three", nil)) },
		"other network":     func(r *rig) { r.list("00-b.conflist", "net-b", r.plugin("three", nil)) },
		"no longer valid":   func(r *rig) { r.put("net.d/10-a.conflist", "{") },
		"removed":           func(r *rig) { os.RemoveAll(r.conf.ConfDir) },
		"without results":   func(r *rig) { os.RemoveAll(filepath.Join(r.conf.CacheDir, "results")) },
		"a result cut off":  func(r *rig) { _ = os.Truncate(filepath.Join(r.conf.CacheDir, "results", "net-a-p1-eth0"), 10) },
		"plugins in folder": func(r *rig) { os.RemoveAll(filepath.Join(r.conf.ConfDir, "net-a")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if name == "plugins in folder" {
				r.put("net.d/net-a/2.conf", r.plugin("two", nil))
			}
			plugins := []any{r.plugin("one", nil), r.plugin("two", nil)}
			if name == "plugins in folder" {
				plugins = plugins[:1]
			}
			r.list("10-a.conflist", "net-a", plugins...)
			n := r.open()
			if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
				t.Fatal(err)
			}
			change(r)
			// And berth starts again, which knows only what is there now.
			if err := r.open().Detach(t.Context(), network.Pod{ID: "p1"}, nil); err != nil {
				t.Fatal(err)
			}
			r.wantCommands("ADD one, ADD two, DEL two, DEL one")
			r.wantCache()
		})
	}
}

func TestCacheLost(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	r.list("20-b.conflist", "net-b", r.plugin("two", nil))
	n := r.open()
	known, err := n.Attach(t.Context(), pod("p1"))
	if err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(r.conf.CacheDir, "p1.json")
	for name, c := range map[string]struct {
		content string // of the record; empty: there is none
		known   *store.Attachment
		want    string
		left    string
	}{
		"never attached":             {"", nil, "", ""},
		"entered, and no ADD":        {"", &store.Attachment{Network: "net-b"}, "", ""},
		"lost":                       {"", &known, "DEL one", ""},
		"lost, of the other network": {"", &store.Attachment{Network: "net-b", Result: known.Result}, "DEL two", ""},
		"lost, of no network":        {"", &store.Attachment{Network: "net-c", Result: known.Result}, "", ""},
		"damaged":                    {"{", &known, "DEL one", "p1.json.damaged"},
		"damaged, nothing known":     {"[]", nil, "DEL one", "p1.json.damaged"},
		"of another pod":             {`{"pod":"p2","networks":[{}]}`, nil, "DEL one", "p1.json.damaged"},
		"without networks":           {`{"pod":"p1"}`, nil, "DEL one", "p1.json.damaged"},
		"with no configuration":      {`{"pod":"p1","networks":[{"config":{}}]}`, nil, "DEL one", "p1.json.damaged"},
	} {
		if err := errors.Join(os.RemoveAll(r.conf.CacheDir), os.Mkdir(r.conf.CacheDir, 0o700)); err != nil {
			t.Fatal(err)
		}
		if c.content != "" {
			if err := os.WriteFile(record, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.want+c.left != "" {
			r.put("cache/results/net-old-p1-eth0", "{}")
		}
		r.forget()
		if err := n.Detach(t.Context(), pod("p1"), c.known); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := r.commands(); got != c.want {
			t.Errorf("%s: %q; want %q", name, got, c.want)
		}
		if got := strings.Join(r.cache(), " "); got != c.left {
			t.Errorf("%s: left %q; want %q", name, got, c.left)
		}
	}
}

func TestCheckFails(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"CHECK": {Say: `{"code":7,"msg":"eth0 is gone"}`, Exit: 1}}))
	n := r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), "p1"); err == nil || err.Error() != "network net-a: plugin one: CHECK: eth0 is gone (code 7)" {
		t.Errorf("Check = %v", err)
	}
	// Before CNI 0.4.0 there was no CHECK.
	r.listOf("0.3.1", "00-b.conflist", "net-b", r.plugin("two", nil))
	n = r.open()
	if _, err := n.Attach(t.Context(), pod("p2")); err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), "p2"); err != nil {
		t.Errorf("Check of CNI 0.3.1 = %v", err)
	}
}

// A pin that was never finished is an empty file.
func TestDetachUnfinishedNamespace(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	p := pod("p1")
	p.NetNS = filepath.Join(r.dir, "pin")
	r.put("pin", "")
	if _, err := n.Attach(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range r.calls() {
		if c.Command == "DEL" && c.NetNS != "" {
			t.Errorf("DEL was given %s", c.NetNS)
		}
	}
}

func TestAttachAgain(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	for range 2 {
		if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
			t.Fatal(err)
		}
	}
	r.wantCommands("ADD one, DEL one, ADD one")
	// What was not finished, too; and with the configuration of then.
	r.list("10-a.conflist", "net-a", r.plugin("one", nil), r.plugin("two", map[string]deed{"ADD": {Exit: 1}}))
	n = r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err == nil {
		t.Fatal("no error")
	}
	r.list("10-a.conflist", "net-a", r.plugin("three", nil))
	if _, err := r.open().Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	r.wantCommands("ADD one, DEL one, ADD one, DEL one, ADD one, ADD two, DEL two, DEL one, ADD three")
}

func TestSeveralConfigurations(t *testing.T) {
	r := newRig(t)
	r.conf.MaxConfs = 2
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	r.list("20-b.conflist", "net-b", r.plugin("two", map[string]deed{"ADD": {Say: `{"cniVersion":"1.1.0","ips":[{"address":"10.9.9.9/8"}]}`}}))
	r.list("30-c.conflist", "net-c", r.plugin("three", nil))
	n := r.open()
	got, err := n.Attach(t.Context(), pod("p1"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Network != "net-a" || fmt.Sprint(got.IPs) != "[10.1.0.5]" {
		t.Errorf("Attach = %+v", got)
	}
	if err := n.Check(t.Context(), "p1"); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), pod("p1"), &got); err != nil {
		t.Fatal(err)
	}
	r.wantCommands("ADD one, ADD two, CHECK one, CHECK two, DEL two, DEL one")
	for _, c := range r.calls() {
		if want := map[string]string{"one": "eth0", "two": "eth1"}[c.Plugin]; c.Command != "STATUS" && c.IfName != want {
			t.Errorf("%s %s: interface %s; want %s", c.Command, c.Plugin, c.IfName, want)
		}
	}
}

func TestAddressesOfResults(t *testing.T) {
	for name, c := range map[string]struct {
		version, result, want string
		err                   error
	}{
		"dual stack":   {"1.0.0", `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"fd00::5/64","interface":0},{"address":"10.1.0.5/24","interface":0}]}`, "[fd00::5 10.1.0.5]", nil},
		"0.3.1":        {"0.3.1", `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.0.5/24","gateway":"10.1.0.1"}]}`, "[10.1.0.5]", nil},
		"0.4.0":        {"0.4.0", `{"cniVersion":"0.4.0","ips":[{"version":"6","address":"fd00::1/64"}]}`, "[fd00::1]", nil},
		"0.2.0":        {"0.2.0", `{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/24"},"ip6":{"ip":"fd00::1/64"}}`, "[10.1.0.5 fd00::1]", nil},
		"no version":   {"1.0.0", `{"ips":[{"address":"10.1.0.5/24"}]}`, "[10.1.0.5]", nil},
		"no address":   {"1.0.0", `{"cniVersion":"1.0.0"}`, "[]", network.ErrNoAddress},
		"on the node":  {"1.0.0", `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"}],"ips":[{"address":"10.1.0.1/24","interface":0}]}`, "[]", network.ErrNoAddress},
		"garbage":      {"1.0.0", `hello`, "[]", network.ErrBadResult},
		"nothing":      {"1.0.0", ` `, "[]", network.ErrBadResult},
		"null":         {"1.0.0", `null`, "[]", network.ErrBadResult},
		"null address": {"1.0.0", `{"cniVersion":"1.0.0","ips":[null]}`, "[]", network.ErrBadResult},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.listOf(c.version, "10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Say: c.result}}))
			n := r.open()
			got, err := n.Attach(t.Context(), pod("p1"))
			if !errors.Is(err, c.err) || fmt.Sprint(got.IPs) != c.want {
				t.Errorf("Attach = %v, %v; want %s, %v", got.IPs, err, c.want, c.err)
			}
			if err != nil && !strings.Contains(err.Error(), "net-a") {
				t.Errorf("the error %q does not name the network", err)
			}
			if err := n.Detach(t.Context(), pod("p1"), &got); err != nil {
				t.Error(err)
			}
			r.wantCommands("ADD one, DEL one")
			r.wantCache()
		})
	}
}

func TestNoConfiguration(t *testing.T) {
	r := newRig(t)
	r.put("net.d/10-bad.conflist", "{")
	n := r.open()
	wantState(t, n, "not ready, without 10-bad.conflist")
	_, err := n.Attach(t.Context(), pod("p1"))
	if !errors.Is(err, network.ErrNoConfig) || !strings.Contains(err.Error(), "10-bad.conflist") {
		t.Errorf("Attach = %v", err)
	}
	r.wantCache()
}

// A pod does not wait for another's plugin, not even to be refused.
func TestOthersDoNotNotice(t *testing.T) {
	r := newRig(t)
	fifo := r.fifo("gate")
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Wait: fifo}}))
	n := r.open()
	done := make(chan error, 1)
	go func() {
		_, err := n.Attach(t.Context(), pod("slow"))
		done <- err
	}()
	eventually(t, "ADD", func() bool { return r.commands() == "ADD one" })
	r.list("00-b.conflist", "net-b", r.plugin("two", nil))
	eventually(t, "the new configuration", func() bool { return n.Status(t.Context()).Networks[0] == "net-b" })
	if _, err := n.Attach(t.Context(), pod("quick")); err != nil {
		t.Fatal(err)
	}
	if s := n.Status(t.Context()); !s.Ready {
		t.Errorf("Status = %+v", s)
	}
	if err := n.Detach(t.Context(), pod("quick"), nil); err != nil {
		t.Error(err)
	}
	// The same pod waits for its turn, as long as its caller likes.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := n.Detach(ctx, pod("slow"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Detach of a pod that is being attached = %v", err)
	}
	if got := r.commands(); strings.Contains(got, "DEL one") {
		t.Errorf("DEL while ADD runs: %s", got)
	}
	r.release(fifo)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), pod("slow"), nil); err != nil {
		t.Error(err)
	}
}

// Callers that ask for one pod at once come one after another.
func TestOnePodAtOnce(t *testing.T) {
	r := newRig(t)
	r.listOf("1.0.0", "10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	const many = 6
	done := make(chan error, many)
	for range many {
		go func() {
			_, err := n.Attach(t.Context(), pod("p1"))
			done <- err
		}()
	}
	for range many {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	r.wantCommands("ADD one" + strings.Repeat(", DEL one, ADD one", many-1))
}

// playEnv has the rest of what the test binary plays: a berth that attaches a pod.
const playEnv = "BERTH_NETWORK_TEST_ATTACH"

type play struct {
	Config network.Config
	Pod    network.Pod
}

func playBerth() {
	text, asked := os.LookupEnv(playEnv)
	if !asked {
		return
	}
	_ = os.Unsetenv(playEnv)
	var p play
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		die(err)
	}
	ctx := klog.NewContext(context.Background(), klog.Logger{})
	n, err := network.Open(ctx, p.Config)
	if err != nil {
		die(err)
	}
	if _, err := n.Attach(ctx, p.Pod); err != nil {
		die(err)
	}
	os.Exit(0)
}

// startBerth attaches a pod in another process.
func startBerth(t testing.TB, cfg network.Config, p network.Pod) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(play{cfg, p})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), playEnv+"="+string(b))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// berth is killed while a plugin waits for what it has delegated, which goes on: no DEL overtakes it.
func TestKilledDuringAdd(t *testing.T) {
	r := newRig(t)
	fifo := r.fifo("gate")
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Delegate: fifo}}))
	berth := startBerth(t, r.conf, pod("p1"))
	eventually(t, "the delegate waits", func() bool { return r.commands() == "ADD one, waits one" })
	berth.Process.Kill()
	berth.Wait()
	n := r.open()
	done := make(chan error, 1)
	go func() { done <- n.Detach(t.Context(), pod("p1"), nil) }()
	select {
	case err := <-done:
		r.release(fifo)
		t.Fatalf("Detach did not wait: %v; %s", err, r.commands())
	case <-time.After(300 * time.Millisecond):
	}
	r.release(fifo)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.wantCommands("ADD one, waits one, delegate one, DEL one")
	r.wantCache()
}

// The plugin itself dies with berth, however long it would have hung.
func TestPluginDiesWithBerth(t *testing.T) {
	r := newRig(t)
	fifo := r.fifo("gate")
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Wait: fifo}}))
	berth := startBerth(t, r.conf, pod("p1"))
	eventually(t, "ADD", func() bool { return r.commands() == "ADD one" })
	berth.Process.Kill()
	berth.Wait()
	eventually(t, "the plugin is gone", func() bool { return gone(r.call("ADD").Pid) })
	if err := r.open().Detach(t.Context(), pod("p1"), nil); err != nil {
		t.Fatal(err)
	}
	r.wantCommands("ADD one, DEL one")
}

// What a plugin has started and the kill has not reached is waited for, too.
func TestKilledPluginsChild(t *testing.T) {
	r := newRig(t)
	fifo := r.fifo("gate")
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Escape: fifo}}))
	n := r.open()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := n.Attach(ctx, pod("p1"))
		done <- err
	}()
	eventually(t, "the child waits", func() bool { return r.commands() == "ADD one, waits one" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	go func() { done <- n.Detach(t.Context(), pod("p1"), nil) }()
	select {
	case err := <-done:
		r.release(fifo)
		t.Fatalf("Detach did not wait: %v; %s", err, r.commands())
	case <-time.After(300 * time.Millisecond):
	}
	r.release(fifo)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.wantCommands("ADD one, waits one, delegate one, DEL one")
}

// Plugins that leave something running on purpose keep nobody waiting.
func TestPluginLeavesAChild(t *testing.T) {
	r := newRig(t)
	fifo := r.fifo("gate")
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Leave: fifo}}))
	n := r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if err := n.Detach(t.Context(), pod("p1"), nil); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(before); d > 8*time.Second {
		t.Errorf("Detach took %v", d)
	}
	r.release(fifo)
	eventually(t, "the child ends", func() bool { return strings.Contains(r.commands(), "delegate one") })
}

// gone reports whether a process has ended; who is to reap it may take its time.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestPodIPs(t *testing.T) {
	a := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	both := a("fd00::5", "10.1.0.5", "10.1.0.6")
	for _, c := range []struct {
		addrs  []netip.Addr
		prefer network.Preference
		first  string
		others string
	}{
		{nil, "", "invalid IP", "[]"},
		{both, "", "fd00::5", "[10.1.0.5 10.1.0.6]"},
		{both, network.PreferCNI, "fd00::5", "[10.1.0.5 10.1.0.6]"},
		{both, network.PreferIPv6, "fd00::5", "[10.1.0.5 10.1.0.6]"},
		{both, network.PreferIPv4, "10.1.0.5", "[fd00::5 10.1.0.6]"},
		{a("10.1.0.5"), network.PreferIPv6, "10.1.0.5", "[]"},
		{a("fd00::5"), network.PreferIPv4, "fd00::5", "[]"},
	} {
		first, others := network.PodIPs(c.addrs, c.prefer)
		if first.String() != c.first || fmt.Sprint(others) != c.others {
			t.Errorf("PodIPs(%v, %q) = %v, %v; want %s, %s", c.addrs, c.prefer, first, others, c.first, c.others)
		}
	}
	if fmt.Sprint(both) != "[fd00::5 10.1.0.5 10.1.0.6]" {
		t.Errorf("PodIPs changed its argument: %v", both)
	}
}
