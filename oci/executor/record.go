// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// record is what the next executor must know of a container. It is written
// before anything is done for it (Process zero), and again once it has a process.
type record struct {
	ID        string
	Pod       string
	Process   wire.Created
	Cgroup    map[string]string // as libcontainer names it; empty until made
	CgroupArg string            // what was asked for, to find it when Cgroup is not yet known
	Systemd   bool
	LogPath   string
	LogMax    int
	LogFile   fileID // of the open log file
	TTY       bool
	Stdin     bool
	StdinOnce bool
	OwnRoot   bool // the executor mounted the root
}

// fileID tells one file from another that took its name.
type fileID struct{ Dev, Ino uint64 }

// execRecord is what the next executor must know of an exec'd process.
type execRecord struct {
	ID, Exec string
	Process  wire.Created
	Sub      string // its own cgroup below the container's, "" for none
}

// files names what lies in the state folder.
//
//	STATE/
//	  keeper.lock keeper.pid       the keeper's
//	  executor.sock                requests
//	  exit/PID-START               written by the keeper
//	  m/ID/rootfs, m/POD/shm       mount points
//	  lc/ID/                       libcontainer's
//	  p/POD                        a pod: its record
//	  p/POD.exit                   how its pause process ended, if that has
//	  c/ID/record                  a container: its record
//	  c/ID/stdout, stderr          FIFOs
//	  c/ID/tail                    where its log stands; see tailfile.go
//	  c/ID/exit                    how it ended, until it is deleted; exit.tmp keeps room for it
//	  c/ID/acked                   the exit was acknowledged
//	  c/ID/x/EXEC                  an exec'd process: its record
//	  c/ID/x/EXEC.exit             how it ended, until acknowledged; EXEC.exit.tmp as above
//	  log/2-N                      journals of the pump, in their second layout
//
// The folder is on a tmpfs: nothing in it is worth more than the processes it
// tells of, which a reboot ends too.
type files struct{ state string }

func (f files) socket() string               { return filepath.Join(f.state, "executor.sock") }
func (f files) libcontainer() string         { return filepath.Join(f.state, "lc") }
func (f files) pods() string                 { return filepath.Join(f.state, "p") }
func (f files) pod(id string) string         { return filepath.Join(f.state, "p", id) }
func (f files) podExit(id string) string     { return f.pod(id) + ".exit" }
func (f files) containers() string           { return filepath.Join(f.state, "c") }
func (f files) container(id string) string   { return filepath.Join(f.state, "c", id) }
func (f files) in(id, name string) string    { return filepath.Join(f.state, "c", id, name) }
func (f files) slice(path string) string     { return filepath.Join(f.state, "slice", filepath.Base(path)) }
func (f files) execs(id string) string       { return filepath.Join(f.state, "c", id, "x") }
func (f files) exec(id, exec string) string  { return filepath.Join(f.state, "c", id, "x", exec) }
func (f files) journal(n int) string         { return filepath.Join(f.state, "log", "2-"+strconv.Itoa(n)) }
func (f files) keeperExit(key string) string { return filepath.Join(f.state, "exit", key) }
func (f files) execFIFO(id string) string    { return filepath.Join(f.state, "lc", id, "exec.fifo") }

func (f files) exit(id, exec string) string {
	if exec == "" {
		return f.in(id, "exit")
	}
	return f.exec(id, exec) + ".exit"
}

func (f files) makeFolders() error {
	for _, d := range []string{"lc", "p", "c", "log", "exit", "slice"} {
		if err := os.MkdirAll(filepath.Join(f.state, d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// write puts v at path so that a reader sees the old or the new, never a part.
func write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// exitRoom is what is kept free for an exit: a page of the tmpfs, and an exit is a few
// hundred bytes.
const exitRoom = 4096

// reserve makes room for an exit file before there is anything to tell: when the state
// folder is full, an end that cannot be written down would be told to nobody.
func reserve(path string) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, exitRoom); err != nil {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}

// writeExit is write, into the room that was reserved. Where it fails that stays.
func writeExit(path string, exit *wire.Exit) error {
	b, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY, 0o600) // not truncated: that would give the room away
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Truncate(int64(len(b)))
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// key names a process in the keeper and in exit/.
func key(p wire.Created) string { return fmt.Sprintf("%d-%d", p.PID, p.Start) }

// keeperExit reads what the keeper wrote for a process it waited for:
// "exited STATUS NANOSECONDS" or "killed SIGNAL NANOSECONDS".
func (f files) readKeeperExit(p wire.Created) (unix.WaitStatus, time.Time, error) {
	b, err := os.ReadFile(f.keeperExit(key(p)))
	if err != nil {
		return 0, time.Time{}, err
	}
	return parseKeeperExit(string(b))
}

func parseKeeperExit(text string) (unix.WaitStatus, time.Time, error) {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return 0, time.Time{}, fmt.Errorf("exit file of %d words", len(fields))
	}
	status, err := strconv.ParseUint(fields[1], 10, 8)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("exit file: %w", err)
	}
	ns, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("exit file: %w", err)
	}
	switch fields[0] {
	case "exited":
		return unix.WaitStatus(status << 8), time.Unix(0, ns), nil
	case "killed":
		return unix.WaitStatus(status & 0x7f), time.Unix(0, ns), nil
	}
	return 0, time.Time{}, fmt.Errorf("exit file: %q", fields[0])
}
