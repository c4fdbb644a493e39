// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store"
)

const (
	maxResult = 1 << 20 // bytes of stdout; a result of many addresses and routes has some tens of KiB
	maxWords  = 4 << 10 // bytes of each part of an error, and of stderr

	// pipeGrace is how long what a plugin has left running may keep its pipes after it has ended.
	pipeGrace = 2 * time.Second
	// killGrace is how long a killed plugin is waited for. One that is not gone by then is in an
	// uninterruptible wait (D), which no signal ends.
	killGrace = 5 * time.Second

	// Each plugin that does not die costs a thread of ours until it does.
	maxStuckPerPod = 4
	maxStuck       = 64

	busyTries = 6 // starts of a binary that someone has open for writing
	busyWait  = 100 * time.Millisecond
)

// runner runs the plugins of one operation for libcni.
type runner struct {
	command string // "ADD", ...

	pod   store.PodID // empty for what concerns no pod
	lock  *os.File    // handed to the plugins, see record.go; nil: none
	stuck *stuckPlugins
	kill  func(pgid int) error
	find  func(plugin string, dirs []string) (string, error)
	grace time.Duration // for a killed plugin, and for a folder to answer

	killed bool // one of the plugins was
}

var _ invoke.Exec = (*runner)(nil)

func killGroup(pgid int) error { return unix.Kill(-pgid, unix.SIGKILL) }

// FindInPath is part of invoke.Exec. A folder may be on a file server that is gone, and then the answer
// never comes.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	fail := &PluginError{Plugin: words(plugin, maxWords), Command: r.command}
	if fail.Err = r.stuck.check(r.pod); fail.Err != nil {
		return "", fail
	}
	type answer struct {
		path string
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		path, err := r.find(plugin, dirs)
		done <- answer{path, err}
	}()
	patience := time.NewTimer(r.grace)
	defer patience.Stop()
	select {
	case got := <-done:
		if fail.Err = got.err; got.err != nil {
			return "", fail
		}
		return got.path, nil
	case <-patience.C:
		r.stuck.add(r.pod)
		go func() { <-done; r.stuck.remove(r.pod) }()
		fail.Err = fmt.Errorf("%w: %s: no answer for %v", ErrTimeout, strings.Join(dirs, ", "), r.grace)
		return "", fail
	}
}

func findPlugin(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("%w in %s", ErrNoPlugin, strings.Join(dirs, ", "))
	}
	return path, nil
}

// Decode is part of invoke.Exec.
func (r *runner) Decode(b []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(b)
}

// ExecPlugin is part of invoke.Exec: it runs a plugin and returns what it wrote, or a *PluginError.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	fail := &PluginError{Plugin: filepath.Base(path), Command: r.command}
	if err := r.stuck.check(r.pod); err != nil {
		fail.Err = err
		return nil, fail
	}
	got := r.run(ctx, path, stdin, pluginEnv(environ))
	r.killed = r.killed || got.killed
	if got.err == nil && r.command == "ADD" {
		// Before libcni has it, whose conversions do not expect a null among the addresses.
		if _, err := ParseResult(got.stdout); err != nil {
			got.err = err
			fail.Msg = words(string(got.stdout), 200)
			fail.Msg = fmt.Sprintf("%v: it wrote %q", err, fail.Msg)
		}
	} else if got.err != nil {
		fail.say(got)
	}
	if got.err != nil {
		fail.Err = got.err
		return nil, fail
	}
	return got.stdout, nil
}

// say takes over what a plugin said about its failure.
func (e *PluginError) say(got output) {
	var said types.Error
	if json.Unmarshal(got.stdout, &said) == nil && (said.Code != 0 || said.Msg != "") {
		e.Code, e.Msg, e.Details = said.Code, words(said.Msg, maxWords), words(said.Details, maxWords)
	}
	e.Stderr = words(string(got.stderr), maxWords)
	if e.Stderr == "" && e.Code == 0 && e.Msg == "" {
		e.Stderr = words(string(got.stdout), maxWords)
	}
	if exit := (*exec.ExitError)(nil); !errors.As(got.err, &exit) && e.Msg != "" {
		// It was about to say something when it was killed: say that, too.
		e.Msg = fmt.Sprintf("%v: %s", got.err, e.Msg)
	}
}

// words makes of what a plugin wrote one line that can stand in an error and in a log.
func words(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Join(strings.FieldsFunc(s, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }), " ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}

// pluginEnv is the environment of a plugin. It is the daemon's, with a PATH that
// finds iptables, and without what systemd has told the daemon alone: a plugin that answered for it
// would be taken for it.
func pluginEnv(environ []string) (env []string) {
	path := ""
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH":
			path = value
			continue
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
			continue
		}
		env = append(env, kv)
	}
	dirs := filepath.SplitList(path)
	for _, d := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return append(env, "PATH="+strings.Join(dirs, ":"))
}

// output is how a plugin ended.
type output struct {
	stdout, stderr []byte
	killed         bool
	err            error
}

// run runs a plugin in a process group of its own, which is killed when ctx ends or when the plugin
// writes too much.
func (r *runner) run(ctx context.Context, path string, stdin []byte, env []string) output {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan output, 1)
	go func() {
		// The signal at our death is at that of the thread that started the plugin, and threads end:
		// that of whoever enters a namespace does (oci/ns).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- r.start(ctx, cancel, path, stdin, env)
	}()
	select {
	case got := <-done:
		return got
	case <-ctx.Done():
	}
	patience := time.NewTimer(r.grace)
	defer patience.Stop()
	select {
	case got := <-done:
		return got
	case <-patience.C:
		r.stuck.add(r.pod)
		go func() { // ends with the plugin, if ever: hence the limit
			<-done
			r.stuck.remove(r.pod)
		}()
		return output{killed: true, err: fmt.Errorf("%w; killed %v ago, and it does not end", context.Cause(ctx), r.grace)}
	}
}

func (r *runner) start(ctx context.Context, cancel context.CancelCauseFunc, path string, stdin []byte, env []string) output {
	for try := 1; ; try++ {
		stdout, stderr := &result{over: func() { cancel(ErrTooMuch) }}, &tail{}
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = env
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Stdout, cmd.Stderr = stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
		cmd.WaitDelay = pipeGrace
		cmd.Cancel = func() error {
			if err := r.kill(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
				return err
			}
			return os.ErrProcessDone
		}
		if r.lock != nil {
			cmd.ExtraFiles = []*os.File{r.lock}
		}
		err := cmd.Run()
		if errors.Is(err, unix.ETXTBSY) && try < busyTries {
			// It is being replaced. The wait is short: a copy is written in one go.
			select {
			case <-time.After(busyWait):
				continue
			case <-ctx.Done():
			}
		}
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil // it has ended well; what it left running has our pipes
		}
		killed := ctx.Err() != nil
		if err != nil && killed {
			err = context.Cause(ctx)
		}
		return output{stdout: stdout.buf.Bytes(), stderr: stderr.last(), killed: killed, err: err}
	}
}

// result keeps what a plugin writes, and stops it where that is too much.
type result struct {
	buf  bytes.Buffer
	over func()
}

func (w *result) Write(p []byte) (int, error) {
	if free := maxResult - w.buf.Len(); len(p) > free {
		w.buf.Write(p[:free])
		w.over()
		return len(p), nil
	}
	return w.buf.Write(p)
}

// tail keeps the end of what is written.
type tail struct{ buf []byte }

func (w *tail) Write(p []byte) (int, error) {
	n := len(p)
	p = p[max(0, n-maxWords):]
	if len(w.buf)+len(p) > 4*maxWords {
		w.buf = append(w.buf[:0], w.last()...)
	}
	w.buf = append(w.buf, p...)
	return n, nil
}

func (w *tail) last() []byte { return w.buf[max(0, len(w.buf)-maxWords):] }

// stuckPlugins counts the plugins that were killed and have not ended.
type stuckPlugins struct {
	mu sync.Mutex
	// +checklocks:mu
	pods map[store.PodID]int
	// +checklocks:mu
	all int
}

func (s *stuckPlugins) check(pod store.PodID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[pod] >= maxStuckPerPod || s.all >= maxStuck {
		return fmt.Errorf("%w: %d of this pod, %d in all", ErrStuck, s.pods[pod], s.all)
	}
	return nil
}

func (s *stuckPlugins) add(pod store.PodID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods == nil {
		s.pods = make(map[store.PodID]int)
	}
	s.pods[pod]++
	s.all++
}

func (s *stuckPlugins) remove(pod store.PodID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.pods[pod]--; s.pods[pod] == 0 {
		delete(s.pods, pod)
	}
}
