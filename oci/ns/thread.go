// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Do runs fn inside the network namespace ns, and returns what it returns. It is for what has to
// happen in a pod's network and needs no process there: a socket that fn makes stays in the namespace
// wherever it is used later.
//
// fn alone is inside. A goroutine that it starts is not, so that a dialler is given an address and no
// name (net.Dialer resolves names in goroutines of its own).
//
// A panic in fn goes on in the caller, with the stack of where it began; fn that calls runtime.Goexit
// (as t.FailNow does) gives an error.
//
// ns stays the caller's.
func Do(ns *os.File, fn func() error) error {
	return onThread(func() error {
		if err := enter(ns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

// enter moves the calling thread.
func enter(ns *os.File, kind int) error {
	conn, err := ns.SyscallConn()
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	var serr error
	// Control, and not Fd: ns cannot be closed, and its number taken by something else, meanwhile.
	if err := conn.Control(func(fd uintptr) { serr = unix.Setns(int(fd), kind) }); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	if serr != nil {
		return fmt.Errorf("enter namespace %s: %w", ns.Name(), serr)
	}
	return nil
}

var errExited = errors.New("ended by runtime.Goexit")

// panicked carries a panic from the thread where it began to the caller, whose boundary recovers it.
type panicked struct {
	value any
	stack []byte
}

func (p panicked) Error() string { return fmt.Sprintf("%v\n\nin a namespace:\n%s", p.value, p.stack) }

// onThread runs fn on a thread that ends when fn does, so that fn may do to it what it likes.
func onThread(fn func() error) error {
	done := make(chan struct{})
	err, crash := errExited, (*panicked)(nil)
	go func() {
		defer close(done)
		// Never unlocked: with its goroutine the thread ends, and with it what was done to it.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread, which would not end. Keep it, so that the next try gets another.
			defer runtime.UnlockOSThread()
			defer func() { crash = recovered(recover()) }()
			err = onThread(fn)
			return
		}
		defer func() { crash = recovered(recover()) }()
		err = fn()
	}()
	<-done
	if crash != nil {
		panic(*crash)
	}
	return err
}

// recovered adds the stack to what recover returned; nil if that was nothing.
func recovered(value any) *panicked {
	switch v := value.(type) {
	case nil:
		return nil
	case panicked:
		return &v
	default:
		return &panicked{value: v, stack: debug.Stack()}
	}
}
