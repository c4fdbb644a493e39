// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

// Only commit what -rewrite has changed if you understand what caused it.
var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata give into them")

// TestScripts runs the lifecycles in testdata/*.txt. A line that begins with "> " is a
// command, the lines up to the next one are what it is to print:
//
//	> pod NAME [attempt=N] [host] [hostname=H] [bad=FIELD]    RunPodSandbox
//	> container POD NAME [attempt=N] [image=I] [arg=A] [mount=PATH]
//	> start | remove CONTAINER, stop CONTAINER GRACE, stop-pod | remove-pod POD
//	> exit CONTAINER CODE, deaf CONTAINER, lose CONTAINER     what a process does, or the executor loses
//	> end-pause POD, garble CONTAINER                         what the executor tells of at the next start
//	> fail | hang | panic POINT, heal POINT                   at a step's effect
//	> kill, boot, reboot                                      berth, or the machine
//	> sleep DURATION, settle                                  simulated time; until nothing moves
//	> list, node, events
//
// A command that ends with "&" goes on while others run; its result is printed by the
// command "wait NUMBER". Ids are shown as the names of what they belong to.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file) == "states.txt" {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = newScript(t).run(string(b)) })
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Error(firstDifference(string(b), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	command := ""
	for i := range max(len(w), len(g)) {
		switch {
		case i >= len(g):
			return fmt.Sprintf("line %d, after %q: want %q, got no more", i+1, command, w[i])
		case i >= len(w):
			return fmt.Sprintf("line %d, after %q: got %q, want no more", i+1, command, g[i])
		case w[i] != g[i]:
			return fmt.Sprintf("line %d, after %q: got %q, want %q", i+1, command, g[i], w[i])
		}
		if strings.HasPrefix(w[i], "> ") {
			command = w[i]
		}
	}
	return ""
}

type script struct {
	t     *testing.T
	n     *node
	l     *life
	dead  []*life
	names map[string]string    // id → name
	ids   map[string]string    // name → id
	jobs  []chan func() string // what a command that went on has to say, called in the script's order

	events chan string
	boots  int
}

func newScript(t *testing.T) *script {
	s := &script{t: t, n: newNode(t), names: make(map[string]string), ids: make(map[string]string)}
	s.n.cfg.AsyncDelay = time.Hour
	s.boot()
	s.recover(s.l)
	return s
}

func (s *script) boot() {
	s.n.cfg.BootID = fmt.Sprintf("00000000-0000-4000-8000-%012d", s.boots)
	s.l = s.n.boot(-1, nil)
	s.events = make(chan string, 1000)
	l, events := s.l, s.events
	go func() {
		_ = l.rt.Events(context.Background(), func(e Event) error {
			kind := [...]string{"created", "started", "stopped", "deleted"}[e.Kind]
			if e.Container != "" {
				events <- kind + " " + string(e.Container)
			} else {
				events <- kind + " " + string(e.Pod)
			}
			return nil
		})
	}()
	synctest.Wait() // it has subscribed
}

func (s *script) recover(l *life) string { return result("", l.rt.Recover(s.t.Context())) }

func result(ok string, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	return cmp.Or(ok, "ok")
}

// run runs all commands and returns the script with what they print.
func (s *script) run(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "> "):
			fmt.Fprintf(&out, "%s\n%s\n", line, s.named(strings.TrimSuffix(s.command(line[2:]), "\n")))
		case line == "":
			fmt.Fprintln(&out)
		}
	}
	if !s.l.dead {
		s.l.end()
	}
	for _, l := range s.dead {
		l.end() // what it waited for has been simulated away by now
	}
	for _, w := range s.n.wrongs() {
		s.t.Error(w)
	}
	return out.String()
}

// named puts names in the place of ids.
func (s *script) named(text string) string {
	for id, name := range s.names {
		text = strings.ReplaceAll(text, id, name)
	}
	return text
}

func (s *script) command(line string) string {
	words := strings.Fields(line)
	if words[0] == "boot" {
		s.boot()
	}
	if words[len(words)-1] == "&" {
		done := make(chan func() string, 1)
		s.jobs = append(s.jobs, done)
		l := s.l
		go func() { done <- s.begin(l, words[:len(words)-1]) }()
		synctest.Wait()
		return fmt.Sprintf("goes on as %d", len(s.jobs))
	}
	text := s.begin(s.l, words)()
	synctest.Wait()
	return text
}

// begin runs one command, which may go on beside others, and returns what makes its
// output: of two that give the same id, which is the first does not depend on luck.
func (s *script) begin(l *life, words []string) func() string {
	switch words[0] {
	case "pod":
		return s.pod(s.t.Context(), l, words[1], words[2:])
	case "container":
		return s.container(s.t.Context(), l, words[1], words[2], words[3:])
	default:
		text := s.do(l, words)
		return func() string { return text }
	}
}

// do runs one command that names no ids.
func (s *script) do(l *life, words []string) string {
	ctx, arg := s.t.Context(), func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	id := func(i int) string { return s.ids[arg(i)] }
	switch words[0] {
	case "start":
		return result("", l.rt.StartContainer(ctx, id(1)))
	case "stop":
		grace, err := time.ParseDuration(arg(2))
		return result("", errors.Join(err, l.rt.StopContainer(ctx, id(1), grace)))
	case "remove":
		return result("", l.rt.RemoveContainer(ctx, id(1)))
	case "stop-pod":
		return result("", l.rt.StopPod(ctx, id(1)))
	case "remove-pod":
		return result("", l.rt.RemovePod(ctx, id(1)))
	case "sleep":
		d, err := time.ParseDuration(arg(1))
		time.Sleep(d) //nolint:forbidigo // simulated time
		return result("", err)
	case "settle":
		return ""
	case "wait":
		n, err := strconv.Atoi(arg(1))
		if err != nil {
			return err.Error()
		}
		return (<-s.jobs[n-1])()
	case "list":
		return s.list()
	case "events":
		var b strings.Builder
		for len(s.events) > 0 {
			fmt.Fprintln(&b, <-s.events)
		}
		return b.String()
	case "kill", "boot", "reboot":
		return s.lives(words[0])
	default:
		return s.meddle(words[0], arg(1), arg(2))
	}
}

// lives ends or begins a process, or the machine.
func (s *script) lives(what string) string {
	if what == "boot" {
		return s.recover(s.l)
	}
	s.l.pmu.Lock()
	s.l.dead = true
	s.l.pmu.Unlock()
	s.l.db.Abandon()
	s.dead = append(s.dead, s.l)
	if what == "kill" {
		return "ok"
	}
	s.boots++
	s.n.mu.Lock()
	clear(s.n.pods)
	clear(s.n.containers)
	clear(s.n.pins)
	s.n.mu.Unlock()
	s.boot()
	return s.recover(s.l)
}

// meddle changes what the simulated parts do.
func (s *script) meddle(what, on, arg string) string {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	id := s.ids[on]
	point := strings.ReplaceAll(on, "-", " ")
	switch what {
	case "exit":
		code, err := strconv.Atoi(arg)
		if err != nil || s.n.containers[id] == nil {
			return "no such container"
		}
		s.n.endLocked(id, code)
	case "deaf":
		s.n.deaf[id] = true
	case "end-pause":
		s.n.pauseless[id] = true
	case "garble":
		s.n.garbled[id] = true
	case "lose":
		delete(s.n.containers, id)
	case "fail":
		s.n.fails[point] = errors.New("planted: " + point)
	case "hang":
		s.n.hangs[point] = make(chan struct{})
	case "panic":
		s.n.panics[point] = true
	case "heal":
		if healed := s.n.hangs[point]; healed != nil {
			close(healed)
		}
		delete(s.n.fails, point)
		delete(s.n.hangs, point)
		delete(s.n.panics, point)
	case "node":
		var b strings.Builder
		for _, set := range []struct {
			what string
			ids  map[string]bool
		}{{"pod", s.n.pods}, {"pin", s.n.pins}, {"attached", s.n.attached}, {"rootfs", s.n.rootfs}} {
			s.line(&b, set.what, slices.Collect(maps.Keys(set.ids)))
		}
		var ids []string
		for id, c := range s.n.containers {
			ids = append(ids, id+":"+string(c.state))
		}
		s.line(&b, "container", ids)
		return cmp.Or(b.String(), "nothing")
	default:
		return "no such command"
	}
	return "ok"
}

func (s *script) line(b *strings.Builder, what string, ids []string) {
	for i := range ids {
		ids[i] = s.named(ids[i])
	}
	slices.Sort(ids)
	if len(ids) > 0 {
		fmt.Fprintf(b, "%s: %s\n", what, strings.Join(ids, " "))
	}
}

func option(words []string, name string) (string, bool) {
	for _, w := range words {
		if k, v, _ := strings.Cut(w, "="); k == name {
			return v, true
		}
	}
	return "", false
}

func (s *script) pod(ctx context.Context, l *life, name string, options []string) func() string {
	cfg := podConfig(name, 0)
	if _, host := option(options, "host"); host {
		cfg = hostPodConfig(name)
	}
	if v, ok := option(options, "attempt"); ok {
		n, _ := strconv.Atoi(v)
		cfg.Metadata.Attempt = uint32(n)
	}
	if v, ok := option(options, "hostname"); ok {
		cfg.Hostname = v
	}
	if v, ok := option(options, "sysctl"); ok {
		cfg.Linux.Sysctls = map[string]string{v: "1"}
	}
	handler, _ := option(options, "handler")
	shown := fmt.Sprintf("%s/%d", name, cfg.Metadata.Attempt)
	before := proto.CloneOf(cfg)
	id, err := l.rt.RunPod(ctx, cfg, handler)
	if !proto.Equal(before, cfg) {
		s.t.Errorf("pod %s: the request was changed", name)
	}
	return func() string { return s.knows(shown, string(id), err) }
}

// knows remembers the name of an id, and says whether it is a new one.
func (s *script) knows(name, id string, err error) string {
	if err != nil {
		return result("", err)
	}
	old := s.ids[name]
	s.ids[name], s.names[id] = id, name
	switch old {
	case "":
		return name
	case id:
		return name + " again"
	default:
		s.names[old] = name + " (old)"
		return name + " anew"
	}
}

func (s *script) container(ctx context.Context, l *life, pod, name string, options []string) func() string {
	cfg := containerConfig(name)
	if v, ok := option(options, "image"); ok {
		cfg.Image.Image = v
	}
	if v, ok := option(options, "attempt"); ok {
		n, _ := strconv.Atoi(v)
		cfg.Metadata.Attempt = uint32(n)
	}
	if v, ok := option(options, "arg"); ok {
		cfg.Args = []string{v}
	}
	if v, ok := option(options, "mount"); ok {
		cfg.Mounts = []*cri.Mount{{HostPath: v, ContainerPath: "/mnt"}}
	}
	id, err := l.rt.CreateContainer(ctx, s.ids[pod], cfg)
	shown := fmt.Sprintf("%s/%s/%d", strings.Split(pod, "/")[0], name, cfg.Metadata.Attempt)
	return func() string { return s.knows(shown, string(id), err) }
}

// list prints what a kubelet would see, and the state that only we know.
func (s *script) list() string {
	var b strings.Builder
	for _, p := range s.l.rt.Pods(nil) {
		if s.names[p.Id] == "" {
			s.names[p.Id] = fmt.Sprintf("%s/%d", p.Metadata.Name, p.Metadata.Attempt)
		}
		st, err := s.l.rt.PodStatus(p.Id)
		if err != nil {
			fmt.Fprintf(&b, "pod %s: %v\n", p.Id, err)
			continue
		}
		r, _ := s.l.db.Pod(store.PodID(p.Id))
		fmt.Fprintf(&b, "pod %s %s (%s) %s\n", p.Id, strings.TrimPrefix(p.State.String(), "SANDBOX_"), r.State,
			strings.TrimSpace(strings.Join([]string{st.Network.Ip, r.Reason, r.Message}, " ")))
	}
	for _, c := range s.l.rt.Containers(nil) {
		st, err := s.l.rt.ContainerStatus(c.Id)
		if err != nil {
			fmt.Fprintf(&b, "container %s: %v\n", c.Id, err)
			continue
		}
		r, _ := s.l.db.Container(store.ContainerID(c.Id))
		fmt.Fprintf(&b, "container %s %s (%s)", c.Id, strings.TrimPrefix(c.State.String(), "CONTAINER_"), r.State)
		if st.FinishedAt > 0 {
			fmt.Fprintf(&b, " %d %s %s", st.ExitCode, st.Reason, st.Message)
		}
		fmt.Fprintln(&b)
	}
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return cmp.Or(strings.Join(lines, "\n"), "nothing")
}
