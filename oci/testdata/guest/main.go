// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Guest is the program that runs in the test's containers: one static binary
// with a verb for everything that a test wants a container to do.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	verb, args := "sleep", os.Args[1:]
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	verbs := map[string]func([]string){
		"peek": peek, "sleep": sleep, "exit": exit, "lines": lines, "cat": cat, "echo": echo, "sh": sh,
		"who": who, "flood": flood, "long": long, "raw": raw, "winch": winch, "tree": tree, "survivor": survivor, "blocks": blocks, "blink": blink, "fds": fds,
		"eat": eat, "term": term, "hup": hup, "fork": fork, "size": size, "ls": ls, "mount": mount, "write": write,
		"ipc": ipc, "hostname": hostname, "show": show, "volume": volume,
		"hog": hog,
	}
	fn, ok := verbs[verb]
	if !ok {
		fmt.Fprintln(os.Stderr, "guest: unknown verb", verb)
		os.Exit(64)
	}
	fn(args)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(64)
	}
	return n
}

// sleep [CODE [TEXT]]: says TEXT, sleeps until SIGTERM, then exits with CODE.
func sleep(args []string) {
	code := 0
	if len(args) > 0 {
		code = number(args[0])
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	if len(args) > 1 {
		fmt.Println(args[1]) // from here on SIGTERM is not the end by itself
	}
	<-ch
	os.Exit(code)
}

// exit CODE [MILLISECONDS]
func exit(args []string) {
	if len(args) > 1 {
		time.Sleep(time.Duration(number(args[1])) * time.Millisecond)
	}
	os.Exit(number(args[0]))
}

// lines RATE CODE: numbered lines, RATE a second (0: as fast as it can), until
// SIGTERM; then "END n" and exit CODE.
func lines(args []string) {
	rate, code := number(args[0]), number(args[1])
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	const pad = "........................................................................."
	var tick <-chan time.Time
	if rate > 0 {
		tick = time.NewTicker(10 * time.Millisecond).C
	}
	began, n := time.Now(), 0
	w := bufio.NewWriterSize(os.Stdout, 4096)
	for {
		select {
		case <-stop:
			fmt.Fprintf(w, "END %012d\n", n)
			w.Flush()
			os.Exit(code)
		default:
		}
		burst := 1000
		if rate > 0 {
			select {
			case <-tick:
			case <-time.After(time.Second):
			}
			burst = int(time.Since(began).Seconds()*float64(rate)) - n
		}
		for range burst {
			n++
			fmt.Fprintf(w, "line %012d %s\n", n, pad)
		}
		w.Flush()
	}
}

// cat: stdin to stdout, then "EOF".
func cat([]string) {
	if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("EOF")
}

// echo WORD...: to stdout, and to stderr with "err " before.
func echo(args []string) {
	fmt.Println(strings.Join(args, " "))
	fmt.Fprintln(os.Stderr, "err", strings.Join(args, " "))
}

// sh: one guest command a line, until EOF.
func sh([]string) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		c := exec.Command("/guest", strings.Fields(in.Text())...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			fmt.Println("error", err)
		}
	}
}

// eat MEGABYTES [child CODE]: uses memory; in a child process if it says so, and
// then exits with CODE.
func eat(args []string) {
	if len(args) > 2 {
		c := exec.Command("/guest", "eat", args[0])
		err := c.Run()
		fmt.Println("child", err)
		os.Exit(number(args[2]))
	}
	var held [][]byte
	for range number(args[0]) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	fmt.Println("ate", len(held))
}

// term: says "ready", then which signals come; ends with SIGTERM.
func term([]string) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch)
	fmt.Println("ready")
	for s := range ch {
		if s == syscall.SIGURG {
			continue // the Go runtime's own
		}
		fmt.Println("signal", int(s.(syscall.Signal)))
		if s == syscall.SIGTERM {
			os.Exit(0)
		}
	}
}

// hup FILE: on a terminal; writes "hup" to FILE when SIGHUP comes, and exits 7.
func hup(args []string) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	fmt.Println("ready")
	<-ch
	if err := os.WriteFile(args[0], []byte("hup"), 0o644); err != nil {
		os.Exit(1)
	}
	os.Exit(7)
}

// fork N CODE: leaves N children that sleep and hold stdout, and exits.
func fork(args []string) {
	for range number(args[0]) {
		c := exec.Command("/guest", "sleep")
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("child", c.Process.Pid)
	}
	os.Exit(number(args[1]))
}

// size: the terminal's.
func size([]string) {
	ws, err := winsize()
	fmt.Println(ws, err)
}

// ls DIR...: names of the descriptors or files, one a line.
func ls(args []string) {
	for _, dir := range args {
		entries, err := os.ReadDir(dir)
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		for _, e := range entries {
			to, _ := os.Readlink(dir + "/" + e.Name())
			fmt.Println(e.Name(), to)
		}
	}
}

// mount DIR: a tmpfs with a file "inside" there, then waits for SIGTERM.
func mount(args []string) {
	if err := syscall.Mount("guest", args[0], "tmpfs", 0, ""); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if err := os.WriteFile(args[0]+"/inside", []byte("here"), 0o644); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("mounted")
	sleep(nil)
}

// write FILE TEXT
func write(args []string) {
	if err := os.WriteFile(args[0], []byte(args[1]), 0o644); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// peek DIR: tries to look into what is open, the root, the environment, the program,
// the working directory and the memory of a process.
func peek(args []string) {
	for _, name := range []string{"fd", "root/.", "cwd/."} {
		entries, err := os.ReadDir(args[0] + "/" + name)
		if err != nil || len(entries) > 0 {
			fmt.Println(name, len(entries), err)
		}
	}
	for _, name := range []string{"environ", "maps"} {
		if _, err := os.ReadFile(args[0] + "/" + name); err != nil {
			fmt.Println(name, err)
		}
	}
	if _, err := os.Readlink(args[0] + "/exe"); err != nil {
		fmt.Println("exe", err)
	}
}
