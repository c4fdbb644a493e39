// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

var errFlags = errors.New("flags")

// run is main with everything that it touches as arguments. It returns the exit status: 1 where a phase
// failed, 2 where none could begin.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	cfg, targets, jsonFile, err := parse(args, errOut)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(errOut, "bench: %v\n", err)
		return 2
	}
	report, err := runBench(ctx, cfg, targets, errOut)
	if err != nil {
		fmt.Fprintf(errOut, "bench: %v\n", err)
		return 2
	}
	report.print(out)
	if jsonFile != "" {
		text, err := json.MarshalIndent(report, "", "  ")
		if err == nil {
			err = os.WriteFile(jsonFile, append(text, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintf(errOut, "bench: %v\n", err)
			return 1
		}
	}
	if len(report.Failures) > 0 {
		return 1
	}
	return 0
}

// parse reads the flags.
func parse(args []string, errOut io.Writer) (*config, []target, string, error) {
	var (
		cfg      = &config{logLines: 2_000_000, timeout: 2 * time.Minute}
		a, b     target
		jsonFile string
		names    []string
		flags    = flag.NewFlagSet("bench", flag.ContinueOnError)
	)
	for _, p := range phases() {
		names = append(names, p.name)
	}
	flags.SetOutput(errOut)
	targetFlags(flags, "", "endpoint", &a)
	targetFlags(flags, "peer-", "peer", &b)
	flags.StringVar(&cfg.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "`image` of the pods: with /bin/sh, true, sleep, cat, head, yes")
	flags.IntVar(&cfg.pods, "pods", 100, "idle pods for memory, lists and restart")
	flags.IntVar(&cfg.rounds, "rounds", 3, "rounds")
	flags.IntVar(&cfg.lives, "lives", 40, "pods in each phase of lives, in each round")
	flags.IntVar(&cfg.execs, "execs", 200, "execs, lists and bare forks, in each round")
	phaseList := flags.String("phases", strings.Join(names, ","), "what to measure")
	flags.Func("pull", "`image` to pull and unpack, taken away before and after; may be repeated", func(s string) error {
		cfg.pulls = append(cfg.pulls, s)
		return nil
	})
	flags.StringVar(&jsonFile, "json", "", "write everything to this `file` as well")
	flags.StringVar(&cfg.logDir, "log-dir", os.TempDir(), "`folder` for the logs of the pods, in a folder of their own")
	flags.StringVar(&cfg.disk, "disk", "", "`folder` on the disk whose fsync is measured; without it that of the logs")
	flags.StringVar(&cfg.cgroupParent, "cgroup-parent", "", "`cgroup` of the pods, in the form of the runtime's cgroup driver")
	if err := flags.Parse(args); err != nil {
		return nil, nil, "", err
	}
	if cfg.disk == "" {
		cfg.disk = cfg.logDir
	}
	cfg.phases = strings.Split(*phaseList, ",")
	if len(cfg.pulls) == 0 {
		cfg.phases = slices.DeleteFunc(cfg.phases, func(p string) bool { return p == "pull" })
	}
	targets := []target{a}
	if b.address != "" {
		targets = append(targets, b)
	}
	return cfg, targets, jsonFile, check(cfg, targets, names, flags.Args())
}

// targetFlags adds the flags of one endpoint.
func targetFlags(flags *flag.FlagSet, prefix, name string, t *target) {
	flags.StringVar(&t.address, name, "", "the "+name+": `unix:///...`")
	flags.Func(prefix+"pid", "another process of the "+name+"; may be repeated", func(s string) error {
		pid, err := strconv.Atoi(s)
		t.pids = append(t.pids, pid)
		return err
	})
	flags.Func(prefix+"process", "`name` of processes of the "+name+" that are nobody's children, as containerd-shim-runc-v2 or conmon; may be repeated", func(s string) error {
		t.processes = append(t.processes, s)
		return nil
	})
	flags.StringVar(&t.restart, prefix+"restart", "", "shell `command` that kills the daemon, $DAEMON_PID, and starts it again in the background")
}

// check refuses flags that make no sense.
func check(cfg *config, targets []target, names, rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("%w: %q is not a flag", errFlags, rest[0])
	}
	if targets[0].address == "" {
		return fmt.Errorf("%w: -endpoint is missing", errFlags)
	}
	if len(targets) > 1 && targets[0].address == targets[1].address {
		return fmt.Errorf("%w: -peer is the endpoint itself", errFlags)
	}
	for _, p := range cfg.phases {
		if !slices.Contains(names, p) {
			return fmt.Errorf("%w: no phase %q; there are %s", errFlags, p, strings.Join(names, ", "))
		}
	}
	if min(cfg.pods, cfg.rounds, cfg.lives, cfg.execs) < 1 {
		return fmt.Errorf("%w: -pods, -rounds, -lives and -execs begin at 1", errFlags)
	}
	// Another folder's log would be the runtime's to find.
	if !filepath.IsAbs(cfg.logDir) {
		return fmt.Errorf("%w: -log-dir %s is not absolute", errFlags, cfg.logDir)
	}
	if slices.Contains(cfg.pulls, cfg.image) {
		return fmt.Errorf("%w: -pull takes %s away, which the pods need", errFlags, cfg.image)
	}
	return nil
}
