// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A state folder without room is the case that is met in practice: the zombie stays
// until there is some.
func TestFullTmpfs(t *testing.T) {
	r := newRig(t)
	r.listenAt(filepath.Join(r.dir, "control"))
	cmd := exec.Command(self(t), "mounted", r.state, self(t), "64k")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	r.start(cmd)
	r.next()
	r.state = fmt.Sprintf("/proc/%d/root%s", r.keeper.pid, r.state) // as the keeper sees it
	pipe := r.fifo("pipe")
	c := r.child(fmt.Sprintf("read x <%s; exit 5", pipe.path))
	r.put("c/" + c.key())
	r.kill()

	filler := filepath.Join(r.state, "filler")
	f, err := os.OpenFile(filler, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	began := time.Now()
	pipe.tell(t, "")
	eventually(t, "the keeper tells of it", func() bool { return strings.Contains(r.said(), "exit file "+c.key()) })
	if !strings.Contains(r.said(), unix.ENOSPC.Error()) && !strings.Contains(r.said(), "No space left") {
		t.Errorf("it does not say why:\n%s", r.said())
	}
	if s, text := c.state(), r.exitFile(c); s != "Z" || text != "" {
		t.Errorf("the process is %q with exit file %q, want a zombie without", s, text)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	r.wantExit(c, "exited 5", began)
	left, err := filepath.Glob(filepath.Join(r.state, "exit", "*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
