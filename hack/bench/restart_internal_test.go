// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The test program is the daemon that is killed, too, where it finds this in its environment.
const daemonSocket = "BENCH_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(daemonSocket); socket != "" {
		fmt.Fprintln(os.Stderr, serveForever(socket))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveForever is a fake that keeps its state beside its socket and writes a line when it listens.
func serveForever(socket string) error {
	f := newFake("mortal")
	f.file = socket + ".state"
	switch text, err := os.ReadFile(f.file); {
	case err == nil:
		if err := json.Unmarshal(text, &f.state); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	return f.server().Serve(listener)
}

// mortal starts a fake as a process of its own; whoever listens when the test ends is killed.
func mortal(t *testing.T) target {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	daemon := exec.Command(os.Args[0])
	daemon.Env = append(os.Environ(), daemonSocket+"="+socket)
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	at := target{address: "unix://" + socket}
	t.Cleanup(func() {
		if pid, err := (&endpoint{target: at}).daemon(); err == nil && pid != daemon.Process.Pid {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		daemon.Process.Kill()
		daemon.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return at
}

func TestAllThere(t *testing.T) {
	f := newFake("forgetful")
	e, err := dial(t.Context(), target{address: f.serve(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.conn.Close()
	s := &session{endpoint: e, standing: []*pod{{container: "c1"}, {container: "c2"}}}
	for _, test := range []struct {
		name   string
		second cri.ContainerState
		fail   string
		ready  bool
		ok     bool
	}{
		{"runs", cri.ContainerState_CONTAINER_RUNNING, "", true, true},
		{"ended", cri.ContainerState_CONTAINER_EXITED, "", true, false},
		{"unknown", cri.ContainerState_CONTAINER_UNKNOWN, "", true, false},
		{"forgotten", -1, "", true, false},
		{"network not ready", cri.ContainerState_CONTAINER_RUNNING, "", false, false},
		{"no answer", cri.ContainerState_CONTAINER_RUNNING, "ListContainers", true, false},
	} {
		f.mu.Lock()
		f.fail, f.networkDown = test.fail, !test.ready
		f.state.Containers = map[string]*fakeContainer{"c1": {State: cri.ContainerState_CONTAINER_RUNNING}}
		if test.second >= 0 {
			f.state.Containers["c2"] = &fakeContainer{State: test.second}
		}
		f.mu.Unlock()
		if err := s.allThere(t.Context()); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestRestart(t *testing.T) {
	again := func(socket string) string {
		return fmt.Sprintf("kill -9 $DAEMON_PID; %s=%s exec %s >/dev/null 2>&1 &", daemonSocket, socket, os.Args[0])
	}
	for _, test := range []struct {
		name    string
		command func(socket string) string
		want    string
	}{
		{"comes back", again, ""},
		{"is not killed", func(string) string { return "true" }, "wait for the end of the daemon"},
		{"stays away", func(string) string { return "kill -9 $DAEMON_PID" }, "wait for the pods after the restart"},
		{"the command fails", func(socket string) string { return again(socket) + " exit 3" }, "exit status 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := mortal(t)
			at.restart = test.command(strings.TrimPrefix(at.address, "unix://"))
			cfg := configFor(t, "lists", "restart")
			if test.want != "" && test.want != "exit status 3" {
				cfg.timeout = time.Second
			}
			r, err := runBench(t.Context(), cfg, []target{at}, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			f, measured := r.figure("restart", at.address, "killed until all listed")
			if measured != (test.want == "") || measured && f.P50 <= 0 {
				t.Errorf("%+v", f)
			}
			if test.want == "" && len(r.Failures) > 0 ||
				test.want != "" && (len(r.Failures) == 0 || r.Failures[0].Phase != "restart" || !strings.Contains(r.Failures[0].Error, test.want)) {
				t.Errorf("failures: %+v", r.Failures)
			}
		})
	}
}
