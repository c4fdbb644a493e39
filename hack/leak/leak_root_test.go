// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package leak_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
)

// mount mounts and unmounts when the test ends.
func mount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func TestMounts(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	for _, d := range []string{"tmpfs", "overlay", "lower", "upper", "work", "bound", "with space"} {
		mkdir(t, filepath.Join(dir, d))
	}
	for _, d := range []string{"bind", "overlay", "foreign"} {
		mkdir(t, filepath.Join(elsewhere, d))
	}
	layers := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	for _, c := range []struct {
		name   string
		target string
		leave  func(target string)
		want   string // nothing: not the test's own
	}{
		{"below", dir + "/tmpfs", func(p string) { mount(t, "leak", p, "tmpfs", 0, "") }, " (tmpfs, leak)"},
		{"name with a space", dir + "/with space", func(p string) { mount(t, "leak", p, "tmpfs", 0, "") }, " (tmpfs, leak)"},
		{"bind mount of a folder below", elsewhere + "/bind", func(p string) { mount(t, dir+"/bound", p, "", unix.MS_BIND, "") }, ""},
		{"overlay of folders below", elsewhere + "/overlay", func(p string) { mount(t, "overlay", p, "overlay", 0, layers) }, " (overlay, overlay)"},
		{"elsewhere", elsewhere + "/foreign", func(p string) { mount(t, "leak", p, "tmpfs", 0, "") }, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			report := checked(t, func(*recorder) { c.leave(c.target) }, leak.Under(dir), once())
			if c.want == "none" {
				mustBeClean(t, report)
				return
			}
			mustMention(t, report, "leak: 1 left behind", "mount "+c.target+c.want)
		})
	}
	t.Run("below a folder of Mounts", func(t *testing.T) {
		report := checked(t, func(*recorder) { mount(t, "leak", elsewhere, "tmpfs", 0, "") }, leak.Mounts(elsewhere), once())
		mustMention(t, report, "leak: 1 left behind", "mount "+elsewhere+" ")
	})
	t.Run("unmounted in a clean-up", func(t *testing.T) {
		mustBeClean(t, checked(t, func(r *recorder) {
			target := dir + "/tmpfs"
			if err := unix.Mount("leak", target, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			r.Cleanup(func() {
				if err := unix.Unmount(target, 0); err != nil {
					t.Error(err)
				}
			})
		}, leak.Under(dir)))
	})
}

func TestFilesStaysInTheFileSystem(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir+"/m")
	report := checked(t, func(*recorder) {
		mount(t, "leak", dir+"/m", "tmpfs", 0, "")
		mkdir(t, dir+"/m/inside")
	}, leak.Files(dir), leak.Under(dir), once())
	mustMention(t, report, "leak: 1 left behind", "mount "+dir+"/m ")
}

// onOwnThread gives the rest of the test a thread with namespaces of its own. The thread is never
// unlocked, so that the runtime ends it with the test's goroutine.
func onOwnThread(t *testing.T, flags int) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(flags); err != nil {
		t.Fatal(err)
	}
}

// TestMountsOnTheHost runs itself again in a mount namespace of its own. The checker is in there; what
// is left, is left out here, where pid 1 sees it.
func TestMountsOnTheHost(t *testing.T) {
	const folder = "LEAK_TEST_FOLDER"
	if outer := os.Getenv(folder); outer != "" {
		// Else the mount outside would come in by propagation and be found here.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		report := checked(t, func(*recorder) {
			fmt.Println("ready")
			if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}, leak.Under(outer), once())
		mustMention(t, report, "leak: 1 left behind", "mount "+outer+" on the host (tmpfs, leak)")
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMountsOnTheHost$")
	cmd.Env = append(os.Environ(), folder+"="+dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	first, _ := out.ReadString('\n')
	if first == "ready\n" {
		mount(t, "leak", dir, "tmpfs", 0, "")
		fmt.Fprintln(in, "left")
	}
	rest, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || first != "ready\n" {
		t.Errorf("inside: %v\n%s%s", err, first, rest)
	}
}

func run(t *testing.T, name string, arg ...string) {
	t.Helper()
	if out, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(arg, " "), err, out)
	}
}

// pin makes a network namespace and a file that pins it.
func pin(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, name) })
	bind(t, name)
}

// bind makes a network namespace and binds it on a file.
func bind(t *testing.T, name string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", name, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestNetNS(t *testing.T) {
	unique := "leak-test-" + strconv.Itoa(os.Getpid())
	for name, path := range map[string]string{
		"in a folder of the test": filepath.Join(t.TempDir(), unique),
		"in /run/netns":           filepath.Join("/run/netns", unique),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err == nil {
				t.Cleanup(func() { remove(t, filepath.Dir(path)) })
			}
			pattern := strings.TrimPrefix(filepath.Dir(path)+"/leak-test-*", "/run/netns/")
			report := checked(t, func(*recorder) { pin(t, path) }, leak.NetNS(pattern), once())
			mustMention(t, report, "leak: 1 left behind", "netns "+path+" (net:[")

			mustBeClean(t, checked(t, func(*recorder) {}, leak.NetNS(pattern), once()))
			mustBeClean(t, checked(t, func(*recorder) { pin(t, path+"-other") }, leak.NetNS("absent-*"), once()))
		})
	}
	t.Run("another one under an old name", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), unique)
		pin(t, path)
		report := checked(t, func(*recorder) {
			bind(t, path) // over the first
		}, leak.NetNS(path), once())
		mustMention(t, report, "leak: 1 left behind", "netns "+path+" (net:[")
	})
	t.Run("file that pins nothing", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), unique)
		report := checked(t, func(*recorder) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, leak.NetNS(path), once())
		mustMention(t, report, "netns "+path+" (a file that pins nothing)")
	})
}

// hierarchies returns the mount points of all cgroup hierarchies, by which the test makes its own
// idea of them: from /proc/mounts, not by the code under test.
func hierarchies(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[2] == "cgroup" || f[2] == "cgroup2" {
			list = append(list, f[1])
		}
	}
	if len(list) == 0 {
		t.Fatal("no cgroup hierarchy is mounted")
	}
	return list
}

// cgroup makes a cgroup with the name in a hierarchy, and removes it when the test ends.
func cgroup(t *testing.T, hierarchy, name string) string {
	t.Helper()
	dir := filepath.Join(hierarchy, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestCgroups(t *testing.T) {
	name := "leak-test-" + strconv.Itoa(os.Getpid())
	for _, h := range hierarchies(t) {
		t.Run(filepath.Base(h), func(t *testing.T) {
			for _, c := range []struct{ test, pattern string }{
				{"by path", "/" + name},
				{"by component", "*-test-" + strconv.Itoa(os.Getpid())},
			} {
				t.Run(c.test, func(t *testing.T) {
					report := checked(t, func(*recorder) {
						cgroup(t, h, name+"-other")
						cgroup(t, cgroup(t, h, name), "inner")
					}, leak.Cgroups(c.pattern), once())
					mustMention(t, report, "leak: 2 left behind",
						"cgroup "+h+"/"+name+" (0 processes)", "cgroup "+h+"/"+name+"/inner (0 processes)")
				})
			}
			t.Run("removed in a clean-up", func(t *testing.T) {
				mustBeClean(t, checked(t, func(r *recorder) {
					dir := filepath.Join(h, name)
					mkdir(t, dir)
					r.Cleanup(func() { remove(t, dir) })
				}, leak.Cgroups("/"+name)))
			})
			t.Run("process in it", func(t *testing.T) {
				dir := cgroup(t, h, name)
				// A cpuset of v1 takes no process before it has been given CPUs and memory.
				for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
					if value, err := os.ReadFile(filepath.Join(h, f)); err == nil {
						if err := os.WriteFile(filepath.Join(dir, f), value, 0); err != nil {
							t.Fatal(err)
						}
					}
				}
				var pid int
				report := checked(t, func(*recorder) {
					pid = orphan(t, "/bin/sh")
					if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
						t.Fatal(err)
					}
				}, leak.Cgroups("/"+name), once())
				mustMention(t, report, "leak: 1 left behind", fmt.Sprintf("process pid %d (sh), in cgroup /%s: ", pid, name))
			})
		})
	}
}

func TestLinks(t *testing.T) {
	for _, c := range []struct {
		name     string
		patterns []string
		want     []string
	}{
		{"all", nil, []string{"leak: 3 left behind", "link leakbr0 (index ", "link leakve0 (index ", "link leakve1 (index "}},
		{"named", []string{"leakbr*", "absent"}, []string{"leak: 1 left behind", "link leakbr0 (index "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onOwnThread(t, unix.CLONE_NEWNET)
			run(t, "ip", "link", "add", "leakbr9", "type", "bridge") // was there before
			report := checked(t, func(r *recorder) {
				run(t, "ip", "link", "add", "leakbr0", "type", "bridge")
				run(t, "ip", "link", "add", "leakve0", "type", "veth", "peer", "name", "leakve1")
				run(t, "ip", "link", "add", "leakve2", "type", "veth", "peer", "name", "leakve3")
				r.Cleanup(func() { run(t, "ip", "link", "del", "leakve2") })
			}, leak.Links(c.patterns...), once())
			mustMention(t, report, c.want...)
		})
	}
}

func TestIptables(t *testing.T) {
	for _, c := range []struct {
		name  string
		words []string
		want  []string
	}{
		{"all", nil, []string{"leak: 4 left behind", "filter: chain LEAK", "filter: -A LEAK -j ACCEPT", "filter: -A OTHER -j DROP", "(iptables)"}},
		{"named", []string{"LEAK"}, []string{"leak: 2 left behind", "filter: chain LEAK", "filter: -A LEAK -j ACCEPT"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onOwnThread(t, unix.CLONE_NEWNET)
			iptables := func(arg ...string) { run(t, "iptables", append([]string{"-w"}, arg...)...) }
			iptables("-N", "OTHER") // was there before, as was this rule, once
			iptables("-A", "OTHER", "-j", "DROP")
			report := checked(t, func(r *recorder) {
				iptables("-N", "LEAK")
				iptables("-A", "LEAK", "-j", "ACCEPT")
				iptables("-A", "OTHER", "-j", "DROP")
				iptables("-A", "OTHER", "-j", "RETURN")
				iptables("-A", "OTHER", "-s", "10.1.2.3", "-j", "RETURN")
				r.Cleanup(func() { iptables("-D", "OTHER", "-s", "10.1.2.3", "-j", "RETURN") })
			}, leak.Iptables(c.words...), once())
			mustMention(t, report, c.want...)
		})
	}
	t.Run("tool is missing", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := leak.Take(leak.Iptables()); err == nil {
			t.Error("what cannot be read cannot be checked")
		}
	})
}
