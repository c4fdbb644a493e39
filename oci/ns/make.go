// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Namespaces are a pod's own; one that was not asked for is nil. Whoever has them closes them.
type Namespaces struct {
	Net, IPC, UTS *os.File
}

// Close lets go of the descriptors. The network namespace stays, by its pin.
func (n *Namespaces) Close() error {
	if n == nil {
		return nil
	}
	var errs []error
	for _, f := range []**os.File{&n.Net, &n.IPC, &n.UTS} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}

// Make makes the namespaces that r asks for, with their settings; the loopback interface of a new
// network namespace is up.
//
// A network namespace is pinned at Pin(r.PinDir, r.ID); fs.ErrExist if something is there already:
// what an earlier try has left is for Remove to take away. After an error Make has left no pin.
//
// ctx ends the waiting: to make a network namespace the kernel waits for those that are being taken
// down. What comes of it then is thrown away by a goroutine that ends when the kernel has answered.
func Make(ctx context.Context, r Request) (*Namespaces, error) {
	return makeSteps(ctx, r, func(string) {})
}

// makeSteps calls step after each step with its name, as in the package's documentation.
func makeSteps(ctx context.Context, r Request, step func(name string)) (*Namespaces, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !r.Net && !r.IPC && !r.UTS {
		return &Namespaces{}, nil
	}
	type result struct {
		made *Namespaces
		err  error
	}
	done := make(chan result)
	go func() {
		var made Namespaces
		err := onThread(func() error { return r.fill(&made, step) })
		if err != nil {
			_ = made.Close()
		}
		select {
		case done <- result{&made, err}:
		case <-ctx.Done():
			_ = made.Close()
		}
	}()
	var got result
	select {
	case got = <-done:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the kernel to make namespaces: %w", context.Cause(ctx))
	}
	if got.err != nil {
		return nil, got.err
	}
	if r.Net {
		// By the caller's own goroutine, so that nothing is done to the pin once Make has returned.
		if err := r.pin(got.made.Net, step); err != nil {
			_ = got.made.Close()
			return nil, err
		}
	}
	return got.made, nil
}

// fill makes the namespaces on the calling thread, which is of no further use.
func (r Request) fill(made *Namespaces, step func(string)) error {
	flags := 0
	for _, kind := range r.kinds(made) {
		flags |= kind.flag
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, kind := range r.kinds(made) {
		f, err := os.Open("/proc/thread-self/ns/" + kind.name)
		if err != nil {
			return err
		}
		*kind.file = f
	}
	step("unshare")
	if err := r.sysctls(); err != nil {
		return err
	}
	step("sysctls")
	if r.Hostname != "" {
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", r.Hostname, err)
		}
	}
	step("hostname")
	if r.Net {
		// After the sysctls: what IPv6 is to be like is settled when an interface comes up.
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	step("loopback")
	return nil
}

type kind struct {
	name string
	flag int
	file **os.File
}

func (r Request) kinds(made *Namespaces) []kind {
	var list []kind
	if r.Net {
		list = append(list, kind{"net", unix.CLONE_NEWNET, &made.Net})
	}
	if r.IPC {
		list = append(list, kind{"ipc", unix.CLONE_NEWIPC, &made.IPC})
	}
	if r.UTS {
		list = append(list, kind{"uts", unix.CLONE_NEWUTS, &made.UTS})
	}
	return list
}

// sysctls writes the settings. Which namespace a file below /proc/sys stands for is decided by the
// thread that opens it.
func (r Request) sysctls() error {
	settings, err := r.settings()
	if err != nil || len(settings) == 0 {
		return err
	}
	root, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/sys", Err: err}
	}
	defer unix.Close(root)
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return fmt.Errorf("statfs /proc/sys: %w", err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("/proc/sys is no procfs: file system type %#x", st.Type)
	}
	for _, s := range settings {
		if err := writeBelow(root, s); err != nil {
			return fmt.Errorf("sysctl %s = %q: %w", s.name, s.value, err)
		}
	}
	return nil
}

// writeBelow writes one setting. Its path has been checked, and openat2 checks it again: it never
// leaves /proc/sys, not by a link and not by what is mounted there (binfmt_misc is).
func writeBelow(root int, s setting) error {
	how := unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(root, s.path, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// One write, since each is a setting of its own.
	n, err := unix.Write(fd, []byte(s.value))
	if err == nil && n != len(s.value) {
		err = fmt.Errorf("the kernel took %d of %d bytes", n, len(s.value))
	}
	return err
}

// Loopback sets the loopback interface of a network namespace up, which gives it 127.0.0.1 and ::1.
// Make has done so for the namespaces that it has made.
func Loopback(ns *os.File) error { return Do(ns, loopbackUp) }

// loopbackUp works in the network namespace of the calling thread.
func loopbackUp() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: socket: %w", err)
	}
	defer unix.Close(sock)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := unix.IoctlIfreq(sock, unix.SIOCGIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: read flags: %w", err)
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: set up: %w", err)
	}
	return nil
}
