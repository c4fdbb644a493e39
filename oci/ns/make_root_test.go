// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package ns_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/oci/ns"
)

// check sees that a test leaves nothing.
func check(t testing.TB) {
	t.Helper()
	// The shared folder is everybody's and stays. It is there before the test begins.
	shared, err := ns.Make(t.Context(), ns.Request{ID: "first", Net: true})
	if err == nil {
		err = errors.Join(shared.Close(), ns.Remove(ns.Pin("", "first")))
	}
	if err != nil {
		t.Fatal(err)
	}
	// A file that nobody closes is closed when it is collected, which would hide it.
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	leak.Check(t, leak.Mounts("/run"), leak.Files("/run"), leak.NetNS("*"), leak.Goroutines(), leak.Descriptors())
}

// makeFor makes namespaces that are gone when the test ends.
func makeFor(t testing.TB, r ns.Request) *ns.Namespaces {
	t.Helper()
	t.Cleanup(func() { removeAll(t, ns.Pin(r.PinDir, r.ID)) })
	got, err := ns.Make(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	})
	return got
}

// inside runs fn in all the namespaces.
func inside(t testing.TB, n *ns.Namespaces, fn func() error) {
	t.Helper()
	err := ns.OnThread(func() error {
		for kind, f := range map[int]*os.File{unix.CLONE_NEWNET: n.Net, unix.CLONE_NEWIPC: n.IPC, unix.CLONE_NEWUTS: n.UTS} {
			if f == nil {
				continue
			}
			if err := ns.Enter(f, kind); err != nil {
				return err
			}
		}
		return fn()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// facts are what a request can change.
func facts() (map[string]string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	got := map[string]string{"host name": unix.ByteSliceToString(uts.Nodename[:])}
	for _, path := range []string{
		"net/ipv4/ip_unprivileged_port_start", "net/ipv4/conf/lo/rp_filter", "net/ipv4/ping_group_range",
		"kernel/shmmax", "kernel/sem", "kernel/msgmax", "fs/mqueue/msg_max",
	} {
		b, err := os.ReadFile("/proc/sys/" + path)
		if err != nil {
			return nil, err
		}
		got[path] = strings.Join(strings.Fields(string(b)), " ")
	}
	return got, nil
}

func TestIsolated(t *testing.T) {
	check(t)
	outside, err := facts()
	if err != nil {
		t.Fatal(err)
	}
	n := makeFor(t, ns.Request{
		ID: "isolated", Net: true, IPC: true, UTS: true, Hostname: "web-0.example",
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "81",
			"net/ipv4/conf/lo/rp_filter":          "2",
			"net.ipv4.ping_group_range":           "10 20\n",
			"kernel.shmmax":                       "12345",
			"kernel.sem":                          "251 32001 33 129",
			"kernel.msgmax":                       "8191",
			"fs.mqueue.msg_max":                   "9",
		},
	})
	want := map[string]string{
		"host name": "web-0.example", "net/ipv4/ip_unprivileged_port_start": "81", "net/ipv4/conf/lo/rp_filter": "2",
		"net/ipv4/ping_group_range": "10 20", "kernel/shmmax": "12345", "kernel/sem": "251 32001 33 129",
		"kernel/msgmax": "8191", "fs/mqueue/msg_max": "9",
	}
	inside(t, n, func() error {
		got, err := facts()
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("inside: %s = %q; want %q", k, got[k], want[k])
			}
			if outside[k] == want[k] {
				t.Errorf("%s is %q outside, so that the test shows nothing", k, outside[k])
			}
		}
		return err
	})
	after, err := facts()
	if err != nil {
		t.Fatal(err)
	}
	for k := range outside {
		if after[k] != outside[k] {
			t.Errorf("outside: %s = %q; was %q", k, after[k], outside[k])
		}
	}
}

// A namespace that was not asked for is the node's.
func TestOnlyWhatWasAskedFor(t *testing.T) {
	check(t)
	n := makeFor(t, ns.Request{ID: "ipc-only", IPC: true})
	if n.Net != nil || n.UTS != nil || n.IPC == nil {
		t.Errorf("made %+v; want IPC alone", n)
	}
	if ids, err := ns.List(""); err != nil || len(ids) != 0 {
		t.Errorf("pins: %v, %v; want none", ids, err)
	}
	uts := makeFor(t, ns.Request{ID: "uts-only", UTS: true})
	outside, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	inside(t, uts, func() error {
		if got, err := os.Hostname(); got != outside {
			t.Errorf("host name %q, %v; want the node's, %q", got, err, outside)
		}
		return nil
	})
}

// /proc/self is the main thread's: were it to enter a namespace, it would be there for ever.
func TestNeverTheMainThread(t *testing.T) {
	if err := play(t, "main-thread"); err != nil {
		t.Error(err)
	}
}

func TestLoopback(t *testing.T) {
	check(t)
	n := makeFor(t, ns.Request{ID: "loopback", Net: true})
	var l net.Listener
	err := ns.Do(n.Net, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// The socket is inside, wherever it is used.
	said := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte("hello"))
			c.Close()
		}
		said <- err
	}()
	var c net.Conn
	if err := ns.Do(n.Net, func() (err error) {
		c, err = (&net.Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 5)
	if _, err := c.Read(b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
	if err := ns.Loopback(n.Net); err != nil {
		t.Errorf("Loopback a second time: %v", err)
	}
	// And no interface of the node is.
	if err := ns.Do(n.Net, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagUp != 0 && l.Name != "lo" {
				t.Errorf("interface %s is up in a new namespace", l.Name)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestPinSurvivesItsMaker(t *testing.T) {
	check(t)
	pin := ns.Pin("", "survives")
	t.Cleanup(func() { removeAll(t, pin) })
	if err := play(t, "make", "survives", ""); err != nil {
		t.Fatal(err)
	}
	f, err := ns.Open(pin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := ns.Do(f, func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		if string(b) != "81\n" {
			t.Errorf("a setting of the pinned namespace is %q; want 81", b)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", "berth-survives", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").CombinedOutput()
	if err != nil || string(out) != "81\n" {
		t.Errorf("ip netns exec: %q, %v; want 81", out, err)
	}
}

// A copy of the host's mount namespace sees a pin come, and go.
func TestPinsPropagate(t *testing.T) {
	check(t)
	look, seen, ended := make(chan struct{}), make(chan bool), make(chan error, 1)
	go func() {
		ended <- ns.OnThread(func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				close(seen)
				return err
			}
			for range look {
				b, err := os.ReadFile("/proc/thread-self/mountinfo")
				if err != nil {
					close(seen)
					return err
				}
				seen <- strings.Contains(string(b), "/berth-propagates ")
			}
			return nil
		})
	}()
	sees := func() bool {
		select {
		case look <- struct{}{}:
			return <-seen
		case err := <-ended:
			t.Fatal(err)
			return false
		}
	}
	if sees() {
		t.Error("seen before it is made")
	}
	makeFor(t, ns.Request{ID: "propagates", Net: true})
	if !sees() {
		t.Error("a pin does not appear in a copy of the mount namespace")
	}
	if err := ns.Remove(ns.Pin("", "propagates")); err != nil {
		t.Error(err)
	}
	if sees() {
		t.Error("a removed pin stays in a copy of the mount namespace")
	}
	close(look)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRemoveStacked(t *testing.T) {
	check(t)
	n := makeFor(t, ns.Request{ID: "stacked", Net: true})
	pin := ns.Pin("", "stacked")
	for range 3 {
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.Net.Fd()), pin, "none", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	removeAll(t, pin)
	if _, err := ns.Open(pin); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after Remove = %v", err)
	}
}

func TestOpenOtherKind(t *testing.T) {
	check(t)
	n := makeFor(t, ns.Request{ID: "kinds", Net: true, UTS: true})
	pin := ns.Pin("", "kinds")
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.UTS.Fd()), pin, "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if f, err := ns.Open(pin); !errors.Is(err, ns.ErrNotNetNS) {
		t.Errorf("Open of a UTS namespace = %v, %v", f, err)
	}
}

// What fails leaves nothing behind, and what was there before stays.
func TestMakeFails(t *testing.T) {
	check(t)
	dir := t.TempDir()
	pins := filepath.Join(dir, "pins")
	defer func() {
		if err := unix.Unmount(pins, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Mkdir(pins, 0o755); err != nil {
		t.Fatal(err)
	}
	taken := ns.Pin(pins, "taken")
	write(t, taken)
	_, err := ns.Make(t.Context(), ns.Request{ID: "taken", Net: true, PinDir: pins})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("Make where something is = %v; want ErrExist", err)
	}
	if _, err := os.Lstat(taken); err != nil {
		t.Errorf("what was there: %v", err)
	}
	for name, r := range map[string]ns.Request{
		"value refused": {ID: "x", Net: true, Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "many"}},
		"no such":       {ID: "x", Net: true, Sysctls: map[string]string{"net.ipv4.conf.eth7.forwarding": "1"}},
		"a folder":      {ID: "x", Net: true, Sysctls: map[string]string{"net.ipv4": "1"}},
		"IPC refused":   {ID: "x", IPC: true, Sysctls: map[string]string{"kernel.msgmax": "-5"}},
		"no folder":     {ID: "x", Net: true, PinDir: taken + "/pins"},
	} {
		if _, err := ns.Make(t.Context(), r); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Lstat(ns.Pin(r.PinDir, "x")); err == nil {
			t.Errorf("%s: left a pin", name)
		}
	}
}

func TestMakeCanceled(t *testing.T) {
	check(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ns.Make(ctx, ns.Request{ID: "late", Net: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("Make = %v; want Canceled", err)
	}
	for _, at := range []string{"unshare", "loopback"} {
		ctx, cancel := context.WithCancel(t.Context())
		blocked := make(chan struct{})
		_, err := ns.MakeSteps(ctx, fullRequest("late"), func(step string) {
			if step == at {
				cancel()
				<-blocked // until Make has returned
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Make at %s = %v; want Canceled", at, err)
		}
		close(blocked)
	}
	// leak.Check waits for the goroutines that Make left, and then looks for pins and descriptors.
}

// Make is killed after each of its steps: what it leaves is seen by List and taken away by Remove.
func TestKilledAtEachStep(t *testing.T) {
	check(t)
	for _, step := range []string{"unshare", "sysctls", "hostname", "loopback", "dir", "file", "pin"} {
		id := "killed-" + step
		err := play(t, "make", id, step)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Errorf("%s: the maker ended with %v; want SIGKILL", step, err)
		}
		ids, err := ns.List("")
		if err != nil {
			t.Fatal(err)
		}
		if want := step == "file" || step == "pin"; slices.Contains(ids, id) != want {
			t.Errorf("%s: pins %v; want it there: %v", step, ids, want)
		}
		if f, err := ns.Open(ns.Pin("", id)); (err == nil) != (step == "pin") {
			t.Errorf("%s: Open = %v", step, err)
		} else if err == nil {
			f.Close()
		}
		removeAll(t, ns.Pin("", id)) // whether Make ran or not
		if _, err := ns.Make(t.Context(), ns.Request{ID: id}); err != nil {
			t.Errorf("%s: once more: %v", step, err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	check(t)
	const many = 50
	before := threads(t)
	for range 3 {
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				id := fmt.Sprintf("many-%d", i)
				r := fullRequest(id)
				r.Hostname = id
				n, err := ns.Make(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				inside(t, n, func() error {
					if got, err := os.Hostname(); got != id {
						t.Errorf("host name %q, %v; want %q", got, err, id)
					}
					return nil
				})
				if err := errors.Join(n.Close(), ns.Remove(ns.Pin("", id))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	// The last threads may still be on their way out.
	for try := 0; ; try++ {
		strangers, all := 0, threads(t)
		for _, tid := range all {
			if in, err := os.Readlink("/proc/self/task/" + tid + "/ns/net"); err == nil && in != own {
				strangers++
			}
		}
		// Go keeps some threads for later, but not one for each of 300.
		if strangers == 0 && len(all) < len(before)+many {
			break
		}
		if try > 10000 {
			t.Fatalf("%d of %d threads are in a pod's namespace; at first there were %d threads", strangers, len(all), len(before))
		}
	}
}

func threads(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func BenchmarkMake(b *testing.B) {
	for name, r := range map[string]ns.Request{
		"all":     fullRequest("bench"),
		"ipc+uts": {ID: "bench", IPC: true, UTS: true, Hostname: "bench"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n, err := ns.Make(b.Context(), r)
				if err == nil {
					err = errors.Join(n.Close(), ns.Remove(ns.Pin("", "bench")))
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDo(b *testing.B) {
	n := makeFor(b, ns.Request{ID: "bench-do", Net: true})
	b.ReportAllocs()
	for b.Loop() {
		if err := ns.Do(n.Net, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
