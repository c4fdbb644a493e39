// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Versions of the protocol that this package speaks. A peer is accepted if the
// ranges meet; the highest common one is used.
const (
	MinVersion = 1
	MaxVersion = 1
)

// Op names what a request asks for. Numbers are never used again.
type Op uint16

// The operations. The comment gives request, descriptors and answer.
const (
	OpHello     Op = 1  // Hello → HelloReply; first on a connection
	OpPodCreate Op = 2  // PodCreate + a descriptor for each name in Namespaces → nothing
	OpPodDelete Op = 3  // Target → nothing
	OpCreate    Op = 4  // Create → Created
	OpStart     Op = 5  // Target → nothing
	OpSignal    Op = 6  // Signal → nothing
	OpKillAll   Op = 7  // Target → nothing, once no process of it is left
	OpDelete    Op = 8  // Target → nothing
	OpUpdate    Op = 9  // Update → nothing
	OpExec      Op = 10 // Exec + stdio descriptors → Created, once it runs
	OpExecKill  Op = 11 // ExecTarget → nothing, once its tree is reaped
	OpAttach    Op = 12 // Attach + a descriptor for each stream → AttachReply, at its end
	OpResize    Op = 13 // Resize → nothing
	OpCloseIn   Op = 14 // Target → nothing, once stdin is at its end for the container
	OpReopenLog Op = 15 // Target → nothing, once the new file exists and takes all that follows
	OpStats     Op = 16 // Targets → StatsReply
	OpObserve   Op = 17 // nothing → Observed
	OpEvents    Op = 18 // nothing → Exit as events, until cancelled
	OpAck       Op = 19 // Ack → nothing
	OpReplace   Op = 20 // Replace → nothing, before the executor makes room for the next
	OpReport    Op = 21 // nothing → Report
	OpQuit      Op = 22 // nothing → nothing; ends the executor and the keeper, and no container
)

// String returns the operation's name, for errors and logs.
func (op Op) String() string {
	names := [...]string{
		OpHello: "hello", OpPodCreate: "pod create", OpPodDelete: "pod delete", OpCreate: "create",
		OpStart: "start", OpSignal: "signal", OpKillAll: "kill all", OpDelete: "delete",
		OpUpdate: "update", OpExec: "exec", OpExecKill: "exec kill", OpAttach: "attach",
		OpResize: "resize", OpCloseIn: "close stdin", OpReopenLog: "reopen log", OpStats: "stats",
		OpObserve: "observe", OpEvents: "events", OpAck: "ack", OpReplace: "replace", OpReport: "report", OpQuit: "quit",
	}
	if int(op) < len(names) && names[op] != "" {
		return names[op]
	}
	return fmt.Sprintf("op %d", uint16(op))
}

// Code says what kind of error an answer is. Codes are only ever added.
type Code string

// The codes of an Error.
const (
	NotFound    Code = "not found"   // no such pod, container or exec
	Exists      Code = "exists"      // the id is taken by something else
	Invalid     Code = "invalid"     // the request cannot be right, whatever the state
	BadState    Code = "bad state"   // not in this state: exec in an exited container
	Failed      Code = "failed"      // the kernel or the container's content refused
	Canceled    Code = "canceled"    // the caller stopped waiting
	Unsupported Code = "unsupported" // this executor, or this kernel, cannot
	Crashed     Code = "crashed"     // the request panicked; it was unwound
	Lost        Code = "lost"        // whether it was done is not known; it is not done again
)

// Error is an answer that is an error.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, &Error{Code: NotFound}) compare the code alone.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// Answer is the body of every response: Err, or what the Op answers.
type Answer struct {
	Err   *Error          `json:"err,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// Hello opens a connection.
type Hello struct {
	Min, Max int // versions spoken
}

// HelloReply answers Hello.
type HelloReply struct {
	Version   int    // chosen
	Build     string // the executor's own version, for people
	PID       int    // of the executor
	KeeperPID int
	Boot      string // the executor's start, unique: a changed value means a new executor
}

// Target names a container (or, for the pod operations, a pod).
type Target struct {
	ID string
}

// Targets names containers; none means all.
type Targets struct {
	IDs []string
}

// PodCreate hands over what the containers of a pod share. Repeating it with the
// same id is no error and changes nothing.
type PodCreate struct {
	ID         string
	ShmSize    int64    // bytes of /dev/shm; 0: none is made
	Namespaces []string // "ipc", "uts", "net", "user": one descriptor each, in this order
	// SharePID makes a PID namespace for all containers, whose first process is the
	// executor's own and sits in a cgroup at PauseCgroup, as in a spec's CgroupsPath.
	SharePID    bool
	PauseCgroup string
	Systemd     bool // the driver that PauseCgroup is for
}

// Create makes a container: its root file system mounted, its process waiting to
// start. The log file exists when it returns.
//
// Three things in Spec are filled in by the executor, which alone knows them: the
// root's path; a namespace whose path is [FromPod], which is the one that the pod
// holds, or begins with [FromContainer], which is that of another container; a
// bind mount whose source is [PodShm].
type Create struct {
	ID     string
	Pod    string // "" for none
	Spec   *specs.Spec
	Env    [][]byte `json:",omitempty"` // see EnvBytes
	Rootfs Rootfs
	// Systemd says which driver Spec.Linux.CgroupsPath is for: "/a/b" with
	// cgroupfs, "a-b.slice:prefix:name" with systemd.
	Systemd bool

	LogPath string // "" for none
	LogMax  int    // bytes of content in a log record; 0: 16384

	Stdin     bool // a pipe stays open for attach; else /dev/null
	StdinOnce bool // closed when the first attach that had stdin ends
	TTY       bool
	Console   Size

	NoPivot      bool
	NoNewKeyring bool
}

// Placeholders in a Create's Spec.
const (
	FromPod       = "pod"
	FromContainer = "container:" // and the id
	PodShm        = "pod:shm"
)

// Rootfs describes the root file system's mount. image/overlay makes it, the
// executor mounts it.
type Rootfs struct {
	// Bind, if set, is a directory that is used as it is.
	Bind string `json:",omitempty"`
	// Lower layers, the topmost first, with Upper and Work on one file system.
	Lower       []string `json:",omitempty"`
	Upper, Work string   `json:",omitempty"`
	Volatile    bool     `json:",omitempty"` // no sync at unmount (kernel 5.10)
}

// Size of a terminal, in characters. Zero leaves it alone.
type Size struct {
	Width, Height uint16
}

// Created tells the process that was made.
type Created struct {
	PID   int
	Start uint64 // clock ticks after boot, field 22 of /proc/PID/stat
}

// Signal sends one signal to the container's first process.
type Signal struct {
	ID     string
	Signal int
}

// Update changes a container's resources: all of them or, with an error, none.
type Update struct {
	ID        string
	Resources *specs.LinuxResources
}

// Exec runs one more process in a container, at most once: the id is recorded before
// the process is let go, and until the exit is acknowledged a repeated request is
// answered Exists, or Lost where its executor died in the middle. Not more than 4
// execs of a pod, and 64 of a node, are on their way to their program at a time; one
// more waits 5 s, and is then refused with Failed. Without a terminal the descriptors
// are stdin, stdout, stderr, each present as its flag says; with one there is a
// single descriptor, a unix socket to which the terminal's master is sent.
type Exec struct {
	ID      string // container
	Exec    string // this process; unique within the container
	Process *specs.Process
	Env     [][]byte `json:",omitempty"` // see EnvBytes
	Stdin   bool
	Stdout  bool
	Stderr  bool
	// OwnCgroup puts it into a cgroup of its own, so that ExecKill takes the
	// whole tree and nothing else.
	OwnCgroup bool
}

// EnvBytes is what the Env of a request must be. The kernel takes any bytes in a
// process's environment, and JSON only UTF-8: in a string, anything else becomes
// U+FFFD, silently. So where there is such a variable the whole environment travels as
// bytes too, and these count. Else it is nil, and p's own counts.
func EnvBytes(p *specs.Process) [][]byte {
	if p == nil || !slices.ContainsFunc(p.Env, func(v string) bool { return !utf8.ValidString(v) }) {
		return nil
	}
	var env [][]byte
	for _, v := range p.Env {
		env = append(env, []byte(v))
	}
	return env
}

// ExecTarget names an exec'd process.
type ExecTarget struct {
	ID, Exec string
}

// Attach copies between the container's streams and the descriptors that come
// with it, in the order stdin, stdout, stderr. A terminal has no stderr.
type Attach struct {
	ID                    string
	Stdin, Stdout, Stderr bool
}

// AttachReply ends an attach.
type AttachReply struct {
	Dropped int64 // bytes that were not delivered because the client did not keep up
}

// Resize sets the size of a container's terminal.
type Resize struct {
	ID   string
	Size Size
}

// Ack says that an exit has been recorded; it is not told again.
type Ack struct {
	ID, Exec string
}

// Exit tells how a process ended.
type Exit struct {
	ID        string    `json:"id"`
	Exec      string    `json:"exec,omitempty"` // "" for the container's first process
	PID       int       `json:"pid"`
	Start     uint64    `json:"start"`
	Code      int       `json:"code"`   // exit status, or 128 + signal
	Signal    int       `json:"signal"` // 0 if it exited by itself
	At        time.Time `json:"at"`
	OOMKilled bool      `json:"oom,omitempty"`
	// Lost says that nobody could wait for the process and the kernel no longer
	// knows: Code is then 255 and Reason says what is known.
	Lost   bool   `json:"lost,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// StatsReply has, for each container that is there, the JSON form of the package
// oci/cgroup's Stats.
type StatsReply map[string]json.RawMessage

// State of a container in the executor.
type State string

// The states: Creating is seen only by a request that comes in the middle.
const (
	Creating  State = "creating"
	IsCreated State = "created"
	Running   State = "running"
	Exited    State = "exited"
)

// Observed is all that the executor holds.
type Observed struct {
	Pods       []string
	Containers []Container
	Execs      []ExecState
	// PausesEnded has the pods, by Exit.ID, whose pause process has ended although it
	// should not: killed by hand, or for want of memory. The kernel has then killed all
	// that shared their PID namespace, and no container can be made in them. To make
	// such a pod again is no retry: it is taken back and made anew.
	PausesEnded []Exit `json:",omitempty"`
	// Unreadable has the containers that run, or ran, and of which nothing else is known.
	Unreadable []Unreadable `json:",omitempty"`
}

// Unreadable is a container whose record the executor cannot read: damaged, or
// written by a later version. It goes on as it is, its id is taken, and it can only
// be deleted, which kills what runs in it.
type Unreadable struct {
	ID     string
	Record string // path of its file
	Why    string
}

// Container as the executor sees it.
type Container struct {
	ID      string
	Pod     string
	State   State
	Process Created
	Cgroup  map[string]string // controller → path; v2: "" → path
	Exit    *Exit             `json:",omitempty"`
}

// ExecState is an exec'd process that runs or whose exit is not acknowledged.
type ExecState struct {
	ID, Exec string
	Process  Created
	Exit     *Exit `json:",omitempty"`
}

// Replace makes room for a new binary, of the executor, the keeper or both.
type Replace struct {
	Executor string // path of the next executor; "" leaves it
	Keeper   string // path of the next keeper; "" leaves it
}

// Report is what people and metrics want to know of the executor itself.
type Report struct {
	Build      string
	PID        int
	KeeperPID  int
	Started    time.Time
	Containers int
	Execs      int
	Attached   int
	Held       int // names held by the keeper
	LogBytes   uint64
	LogDropped uint64 // bytes that no log file would take
	Discarded  uint64 // bytes written by what outlived its container
	Panics     uint64
}
