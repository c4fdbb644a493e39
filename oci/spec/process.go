// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPath is what a container's PATH is where neither the image nor the pod says.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process decides what runs, as whom, and with which environment and limits.
func (b *builder) process() error {
	p := b.spec.Process
	var err error
	if p.Args, err = b.args(); err != nil {
		return err
	}
	if p.Cwd, err = b.cwd(); err != nil {
		return err
	}
	if p.Env, err = b.env(); err != nil {
		return err
	}
	if p.Rlimits, err = rlimits(b.Rlimits); err != nil {
		return err
	}
	if _, err := StopSignal(b.Container.GetStopSignal(), b.Image.StopSignal); err != nil {
		return err
	}
	p.User = specs.User{UID: b.User.UID, GID: b.User.GID, AdditionalGids: slices.Clone(b.User.Groups)}
	p.Terminal = b.Container.GetTty()
	p.NoNewPrivileges = b.security.GetNoNewPrivs()
	return nil
}

// args merges as the kubelet promises and docker does: command replaces the image's entrypoint, and
// its cmd with it; args replaces cmd.
func (b *builder) args() ([]string, error) {
	command, args := b.Container.GetCommand(), b.Container.GetArgs()
	if len(command) == 0 {
		if len(args) == 0 {
			args = b.Image.Cmd
		}
		// ENTRYPOINT [""] is docker's way to take back that of the image below.
		if !slices.Equal(b.Image.Entrypoint, []string{""}) {
			command = b.Image.Entrypoint
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, invalid("container.command", "there is none, and the image names none")
	}
	for i, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("container.command", "word %d (%.80q): a zero byte", i, a)
		}
	}
	return all, nil
}

// cwd is made by the executor where the image does not have it.
func (b *builder) cwd() (string, error) {
	if dir := b.Container.GetWorkingDir(); dir != "" {
		return path.Clean(dir), checkPath("container.working_dir", dir)
	}
	// An image's may be relative: docker takes it from the root.
	dir := path.Join("/", b.Image.WorkingDir)
	return dir, checkPath("image.config.WorkingDir", dir)
}

// environment keeps variables in the order in which they first came, each with its last value.
type environment struct {
	list  []string
	index map[string]int
}

func (e *environment) set(name, value string) {
	if i, ok := e.index[name]; ok {
		e.list[i] = name + "=" + value
		return
	}
	e.index[name] = len(e.list)
	e.list = append(e.list, name+"="+value)
}

// env is what the node says, then what the image says, then what the pod says.
func (b *builder) env() ([]string, error) {
	e := environment{
		list:  make([]string, 0, 4+len(b.Image.Env)+len(b.Container.GetEnvs())),
		index: make(map[string]int),
	}
	e.set("PATH", defaultPath)
	if b.Container.GetTty() {
		e.set("TERM", "xterm")
	}
	hostname := b.NodeHostname
	if b.Pod.GetHostname() != "" && b.own().UTS {
		hostname = b.Pod.GetHostname()
	}
	if hostname != "" {
		e.set("HOSTNAME", hostname)
	}
	// So that nobody has to look it up in the container, as libcontainer otherwise does for each exec.
	e.set("HOME", b.User.home())
	for _, kv := range b.Image.Env {
		// What is no variable cannot be one: an image that says so has always run all the same.
		name, value, ok := strings.Cut(kv, "=")
		if ok && name != "" && !strings.ContainsRune(kv, 0) {
			e.set(name, value)
		}
	}
	for i, kv := range b.Container.GetEnvs() {
		name, value := kv.GetKey(), kv.GetValue() // any bytes but zero, since cri-api 0.36.3
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			return nil, invalid(at("container.envs", i)+".key", "%.80q: want a name without '=' and zero bytes", name)
		case slices.Contains(value, 0):
			// The value may be a secret.
			return nil, invalid(at("container.envs", i)+".value", "the value of %.80q has a zero byte", name)
		}
		e.set(name, string(value))
	}
	return e.list, nil
}

// home is the user's home folder, "/" where the image knows of none that can be one.
func (u User) home() string {
	if !strings.HasPrefix(u.Home, "/") || hasControl(u.Home) || !utf8.ValidString(u.Home) {
		return "/"
	}
	return u.Home
}

// unlimited is RLIM_INFINITY.
const unlimited = ^uint64(0)

// DefaultRlimits are the limits of containers where the configuration names none. They are always
// explicit: what the daemon was started with is nothing that a container should see.
func DefaultRlimits() []specs.POSIXRlimit {
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_CORE", Soft: 0, Hard: unlimited},
		{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288},
	}
}

// rlimits returns the configured ones, and of the defaults those that are not among them, by name.
func rlimits(configured []specs.POSIXRlimit) ([]specs.POSIXRlimit, error) {
	list := slices.Clone(configured)
	for i, r := range list {
		field := fmt.Sprintf("configuration: limit %q", r.Type)
		if !strings.HasPrefix(r.Type, "RLIMIT_") {
			return nil, invalid(field, "want a name like RLIMIT_NOFILE")
		}
		if r.Soft > r.Hard {
			return nil, invalid(field, "soft %d is above hard %d", r.Soft, r.Hard)
		}
		if hasLimit(list[:i], r.Type) {
			return nil, invalid(field, "given twice")
		}
	}
	for _, r := range DefaultRlimits() {
		if !hasLimit(list, r.Type) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b specs.POSIXRlimit) int { return strings.Compare(a.Type, b.Type) })
	return list, nil
}

func hasLimit(list []specs.POSIXRlimit, name string) bool {
	return slices.ContainsFunc(list, func(r specs.POSIXRlimit) bool { return r.Type == name })
}
