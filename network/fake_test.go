// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// A fakePlugin is this test binary, run by its name in a folder of plugins. Its configuration says what
// it does.
type fakePlugin struct {
	CNIVersion string          `json:"cniVersion"`
	Log        string          `json:"log"` // a file to which each call is added
	Do         map[string]deed `json:"do"`  // by command
	PrevResult json.RawMessage `json:"prevResult"`
}

// A deed is what a fakePlugin does instead of success.
type deed struct {
	Say      string `json:"say,omitempty"`      // on stdout
	SayErr   string `json:"sayErr,omitempty"`   // on stderr
	Flood    int    `json:"flood,omitempty"`    // bytes on stdout, and as many on stderr
	Exit     int    `json:"exit,omitempty"`     //
	Wait     string `json:"wait,omitempty"`     // until someone opens this FIFO, deaf to SIGTERM
	Delegate string `json:"delegate,omitempty"` // the same in a child
	Leave    string `json:"leave,omitempty"`    // the same in a child that is not waited for
	Escape   string `json:"escape,omitempty"`   // the same in a child with a session of its own
}

// A call is one line of the log.
type call struct {
	Pid     int
	Plugin  string
	Command string
	Pod     string
	NetNS   string
	IfName  string
	Args    string
	Path    string // CNI_PATH
	Env     []string
	Conf    map[string]any
}

const delegateEnv = "BERTH_NETWORK_TEST_DELEGATE"

// setUp is for TestMain.
func setUp() {
	// A plugin with the race detector would wait a second at its end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
}

// playPlugin plays the plugin that the environment asks for, and does not return then.
func playPlugin() {
	if what, asked := os.LookupEnv(delegateEnv); asked {
		log, fifo, _ := strings.Cut(what, "\n")
		add(log, call{Pid: os.Getpid(), Plugin: filepath.Base(os.Args[0]), Command: "waits"})
		waitFor(fifo)
		add(log, call{Pid: os.Getpid(), Plugin: filepath.Base(os.Args[0]), Command: "delegate"})
		os.Exit(0)
	}
	command, asked := os.LookupEnv("CNI_COMMAND")
	if !asked {
		return
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		die(err)
	}
	var p fakePlugin
	c := call{
		Pid:    os.Getpid(),
		Plugin: filepath.Base(os.Args[0]), Command: command, Pod: os.Getenv("CNI_CONTAINERID"), NetNS: os.Getenv("CNI_NETNS"),
		IfName: os.Getenv("CNI_IFNAME"), Args: os.Getenv("CNI_ARGS"), Path: os.Getenv("CNI_PATH"), Env: os.Environ(),
	}
	if err := json.Unmarshal(stdin, &p); err != nil {
		die(err)
	}
	if err := json.Unmarshal(stdin, &c.Conf); err != nil {
		die(err)
	}
	add(p.Log, c)
	p.play(command)
	os.Exit(0)
}

func (p fakePlugin) play(command string) {
	do, special := p.Do[command]
	if do.Wait != "" {
		signal.Ignore(syscall.SIGTERM)
		waitFor(do.Wait)
	}
	for _, fifo := range []string{do.Delegate, do.Leave, do.Escape} {
		if fifo == "" {
			continue
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), delegateEnv+"="+p.Log+"\n"+fifo)
		cmd.Stdout = os.Stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: fifo == do.Escape}
		if err := cmd.Start(); err != nil {
			die(err)
		}
		if fifo != do.Leave {
			_ = cmd.Wait()
		}
	}
	if do.Flood > 0 {
		go fmt.Fprint(os.Stderr, strings.Repeat("e", do.Flood))
		for range 1000 {
			fmt.Print(strings.Repeat("x", do.Flood/1000))
		}
	}
	fmt.Fprint(os.Stderr, do.SayErr)
	fmt.Print(do.Say)
	if special && do.Say == "" && do.Wait+do.Delegate+do.Leave+do.Escape == "" || command != "ADD" || do.Say != "" {
		os.Exit(do.Exit)
	}
	if len(p.PrevResult) > 0 {
		fmt.Printf("%s", p.PrevResult)
		return
	}
	fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"veth0"},{"name":%q,"sandbox":%q}],"ips":[{"address":"10.1.0.5/24","gateway":"10.1.0.1","interface":1}]}`,
		p.CNIVersion, os.Getenv("CNI_IFNAME"), os.Getenv("CNI_NETNS"))
}

// waitFor waits until someone opens the FIFO for writing, as a person's finger would.
func waitFor(fifo string) {
	f, err := os.Open(fifo)
	if err != nil {
		die(err)
	}
	_, _ = io.Copy(io.Discard, f)
	f.Close()
}

func add(log string, c call) {
	b, err := json.Marshal(c)
	if err != nil {
		die(err)
	}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		die(err)
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		die(err)
	}
	f.Close()
}

func die(err error) {
	fmt.Fprintln(os.Stderr, "fake plugin:", err)
	os.Exit(99)
}
