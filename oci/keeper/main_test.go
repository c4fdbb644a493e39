// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/keeper"
)

// The test binary is the keeper (the constructor of keeper.c sees to that), an
// executor, and the test, which is the subreaper of both.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "executor" {
		if err := play(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintf(os.Stderr, "executor[%d]: %v\n", os.Getpid(), err)
		}
		os.Exit(1)
	}
	if len(os.Args) == 5 && os.Args[1] == "mounted" {
		fmt.Fprintln(os.Stderr, keeperOnTmpfs(os.Args[2], os.Args[3], os.Args[4]))
		os.Exit(1)
	}
	if len(os.Args) == 4 && os.Args[1] == "ignoring" {
		signal.Ignore(unix.SIGCHLD)
		fmt.Fprintln(os.Stderr, unix.Exec("/proc/self/exe", []string{"berth-executor", "keeper", os.Args[2], os.Args[3]}, os.Environ()))
		os.Exit(1)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// What was left open for us is not for our children.
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	os.Exit(m.Run())
}

// rawMode makes executors that speak the protocol by hand and never read.
const rawMode = "BERTH_KEEPER_TEST_RAW=1"

// file tells one open file from another.
type file struct{ Dev, Ino uint64 }

type held struct {
	Name  string
	Files []file
}

// greeting is what an executor says of itself when it has started.
type greeting struct {
	PID, Parent int
	Exe         string
	Open        []int    // descriptors at the start
	Four        file     // descriptor 4, if it is open
	Blocked     string   // signals, as /proc/self/status has them
	Held        []held   // what the keeper handed over
	Args        []string // of the process
}

// order is what a test has an executor do.
type order struct {
	Do     string
	Name   string
	Paths  []string // files to be opened, with "w:" for writing
	Script string
	Text   string
	N      int
}

// report is what came of it.
type report struct {
	Err   string
	PID   int
	Start uint64
	N     int
	Said  map[string]int // what the keeper said, and how often
}

// actor is a process that plays the executor.
type actor struct {
	state, exe string
	client     *keeper.Client
	fds        map[string][]int
}

func play(state, exe string) error {
	g := greeting{PID: os.Getpid(), Parent: os.Getppid(), Args: os.Args}
	g.look()
	a := &actor{state: state, exe: exe, fds: make(map[string][]int)}
	if os.Getenv("BERTH_KEEPER_TEST_RAW") == "" {
		client, list, err := keeper.Open(3)
		if err != nil {
			return err
		}
		a.client = client
		for _, h := range list {
			entry := held{Name: h.Name}
			for _, fd := range h.FDs {
				entry.Files = append(entry.Files, identify(fd))
			}
			a.fds[h.Name] = h.FDs
			g.Held = append(g.Held, entry)
		}
		go func() {
			<-client.Lost()
			fmt.Fprintf(os.Stderr, "executor[%d]: becomes the keeper: %v\n", os.Getpid(), client.Become(state, exe))
			os.Exit(1)
		}()
	}
	conn, err := net.Dial("unix", filepath.Join(state, "control"))
	if err == nil {
		err = a.obey(conn, g)
	}
	// The test has gone, and so must we.
	if a.client != nil {
		err = errors.Join(err, a.client.Quit())
	}
	return err
}

func (g *greeting) look() {
	g.Exe, _ = os.Readlink("/proc/self/exe")
	for fd := range 1000 {
		// The runtime of Go opens an eventpoll and an eventfd of its own.
		to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err == nil && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/fs/cgroup") {
			g.Open = append(g.Open, fd)
		}
	}
	g.Four = identify(4)
	status, _ := os.ReadFile("/proc/self/status")
	_, after, _ := strings.Cut(string(status), "SigBlk:\t")
	g.Blocked, _, _ = strings.Cut(after, "\n")
}

// identify tells what is open under a number; nothing is the zero value.
func identify(fd int) file {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return file{}
	}
	return file{Dev: st.Dev, Ino: st.Ino}
}

func (a *actor) obey(conn net.Conn, g greeting) error {
	enc, dec := json.NewEncoder(conn), json.NewDecoder(conn)
	if err := enc.Encode(g); err != nil {
		return err
	}
	for {
		var o order
		if err := dec.Decode(&o); err != nil {
			return err
		}
		var r report
		if err := a.do(o, &r); err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
}

func (a *actor) do(o order, r *report) error {
	switch o.Do {
	case "put":
		fds, err := open(o.Paths)
		if err != nil {
			return err
		}
		a.fds[o.Name] = fds
		return a.client.Put(o.Name, fds...)
	case "delete":
		return a.client.Delete(o.Name)
	case "close": // our own ends, whatever the keeper holds
		for _, fd := range a.fds[o.Name] {
			unix.Close(fd)
		}
		delete(a.fds, o.Name)
		return nil
	case "names":
		r.N = a.client.Names()
		return nil
	case "exe":
		return a.client.SetExecutor(o.Paths[0])
	case "replace":
		return a.client.Replace(o.Paths[0])
	case "quit":
		return a.client.Quit()
	case "child":
		return a.child(o, r)
	case "clone":
		return a.clone(r)
	case "many":
		return a.many(o)
	case "churn":
		return a.churn(o)
	case "raw":
		return a.raw(o)
	case "read":
		r.Said = make(map[string]int)
		return a.read(o, r.Said)
	}
	return fmt.Errorf("unknown order %q", o.Do)
}

func open(paths []string) ([]int, error) {
	var fds []int
	for _, path := range paths {
		flags := unix.O_RDONLY
		if p, ok := strings.CutPrefix(path, "w:"); ok {
			path, flags = p, unix.O_WRONLY
		}
		fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// child starts a script, which nobody here waits for. With N of 2 it is a
// grandchild of which the parent has ended, and so the keeper's child.
func (a *actor) child(o order, r *report) error {
	if o.N == 2 {
		out, err := exec.Command("/bin/sh", "-c", "("+o.Script+") >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			return err
		}
		if r.PID, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
			return err
		}
	} else {
		cmd := exec.Command("/bin/sh", "-c", o.Script)
		if err := cmd.Start(); err != nil {
			return err
		}
		r.PID = cmd.Process.Pid
	}
	var err error
	_, r.Start, err = procStat(r.PID)
	return err
}

// clone makes a child that ends at once, without a SIGCHLD.
func (a *actor) clone(r *report) error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, 0, 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	for pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	r.PID = int(pid)
	return nil
}

// many puts N names at once, each with two descriptors.
func (a *actor) many(o order) error {
	errs := make(chan error)
	for i := range o.N {
		go func() {
			fds, err := open(o.Paths)
			if err == nil {
				err = a.client.Put(fmt.Sprintf("%s/%d", o.Name, i), fds...)
			}
			errs <- err
		}()
	}
	var err error
	for range o.N {
		err = errors.Join(err, <-errs)
	}
	return err
}

// churn puts and deletes names in many goroutines while the keeper is replaced N
// times by one of the two first paths. What stays is put-G-I with I even.
func (a *actor) churn(o order) error {
	var (
		wg   sync.WaitGroup
		errs = make(chan error, 100)
		stop = make(chan struct{})
	)
	for g := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("put-%d-%d", g, i%50)
				fds, err := open(o.Paths[2:])
				if err == nil {
					err = a.client.Put(name, fds...)
				}
				if err == nil && i%2 == 1 {
					err = a.client.Delete(name)
				}
				if err != nil {
					errs <- fmt.Errorf("%s: %w", name, err)
					return
				}
			}
		})
	}
	for i := range o.N {
		if err := a.client.Replace(o.Paths[i%2]); err != nil {
			errs <- err
		}
		// Answered by the next image, so the replacements do not merge into one.
		if err := a.client.Put("round", 0); err != nil {
			errs <- err
		}
	}
	close(stop)
	wg.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

// raw sends a packet as it is, N times, with its number in the place of "%d".
func (a *actor) raw(o order) error {
	fds, err := open(o.Paths)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for i := range max(o.N, 1) {
		text := strings.ReplaceAll(o.Text, "%d", strconv.Itoa(i))
		if err := unix.Sendmsg(3, []byte(text), oob, nil, unix.MSG_NOSIGNAL); err != nil {
			return err
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil
}

// read reads what the keeper has to say, up to Text and N times "gone".
func (a *actor) read(o order, said map[string]int) error {
	b := make([]byte, 4096)
	for said[o.Text] == 0 || said["gone"] < o.N {
		n, err := unix.Read(3, b)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		said[string(b[:n])]++
	}
	return nil
}

// procStat reads a process's state and start time.
func procStat(pid int) (state string, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], start, err
}

// keeperOnTmpfs becomes a keeper whose state folder is a tmpfs of this size, in a
// mount namespace of its own.
func keeperOnTmpfs(state, exe, size string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	// What the test listens on stays reachable.
	control := filepath.Join(filepath.Dir(state), "control")
	if err := unix.Mount("berth-keeper-test", state, "tmpfs", 0, "size="+size); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := os.Symlink(control, filepath.Join(state, "control")); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", []string{"berth-executor", "keeper", state, exe}, os.Environ())
}
