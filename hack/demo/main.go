// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/hack/leak"
)

func main() {
	bin := flag.String("bin", "bin", "folder of the programs")
	once := flag.Bool("once", false, "end when all is shown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := demo(ctx, *bin, *once); err != nil {
		fmt.Fprintln(os.Stderr, "\nfailed:", err)
		os.Exit(1)
	}
}

// step does one thing and says how long it took.
func step(what string, fn func() (string, error)) error {
	began := time.Now()
	result, err := fn()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Printf("%9.1f ms  %-28s %s\n", float64(time.Since(began).Microseconds())/1000, what, result)
	return nil
}

// demo does it all.
func demo(ctx context.Context, bin string, once bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("a node needs root: sudo make run")
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	n, err := newNode(bin)
	if err != nil {
		return err
	}
	before, err := leak.Take(leak.Under(n.base, n.state), leak.Cgroups(n.name), leak.Mounts(n.netns),
		leak.Links(n.bridge, "veth*"), leak.Iptables(n.name), leak.Files(n.base, n.state), leak.Grace(10*time.Second))
	if err != nil {
		return err
	}
	defer func() {
		// Ctrl-C ends the showing, not the cleaning up.
		cerr := n.close(context.WithoutCancel(ctx))
		left, serr := before.Settle(context.WithoutCancel(ctx))
		cerr = errors.Join(cerr, serr)
		for _, l := range left {
			fmt.Println("left behind:", l)
		}
		if len(left) == 0 && cerr == nil {
			fmt.Println("\nall is removed: no process, mount, network namespace, interface, rule, control group or file is left")
		} else {
			cerr = errors.Join(cerr, fmt.Errorf("%d things are left behind", len(left)))
		}
		err = errors.Join(err, cerr)
	}()
	if err := n.start(ctx); err != nil {
		return err
	}
	if err := show(ctx, n); err != nil {
		return fmt.Errorf("%w\n%s", err, n.said())
	}
	if once || ctx.Err() != nil {
		return nil
	}
	fmt.Printf(`
The node goes on until Ctrl-C. In another terminal:

  export CONTAINER_RUNTIME_ENDPOINT=unix://%s
  crictl pods
  crictl ps
  crictl exec -it %.13s sh
  crictl logs -f %.13s
  curl http://%s:8080/
  %s status --socket %s
`, n.socket, n.container, n.container, n.ip, filepath.Join(bin, "berth"), n.socket)
	<-ctx.Done()
	return nil
}

// show does what a kubelet does, and what no kubelet would.
func show(ctx context.Context, n *node) error {
	fmt.Printf("\nA pod, as a kubelet asks for it (%s)\n\n", n.socket)
	if err := run(ctx, n); err != nil {
		return err
	}
	fmt.Print("\nAny process may die\n\n")
	before, err := n.pid(ctx)
	if err != nil {
		return err
	}
	for _, death := range []struct {
		what string
		kill func(context.Context) error
	}{
		{"kill -9 the daemon", n.killDaemon},
		{"kill -9 the executor", n.killExecutor},
		{"kill -9 the keeper", n.killKeeper},
	} {
		if err := step(death.what, func() (string, error) { return "", death.kill(ctx) }); err != nil {
			return err
		}
		if err := step("  HTTP", func() (string, error) { return n.get(ctx) }); err != nil {
			return err
		}
		err := step("  ContainerStatus", func() (string, error) {
			now, err := n.pid(ctx)
			if err == nil && now != before {
				err = fmt.Errorf("process %d, and it was %d", now, before)
			}
			return fmt.Sprintf("running, process %d as before", now), err
		})
		if err != nil {
			return err
		}
		if err := step("  ExecSync", func() (string, error) { return n.exec(ctx, "echo", "still here") }); err != nil {
			return err
		}
	}
	return step("logs", n.logs)
}

// run runs a pod with one container.
func run(ctx context.Context, n *node) error {
	for _, s := range []struct {
		what string
		do   func() (string, error)
	}{
		{"Status", func() (string, error) { return n.ready(ctx) }},
		{"PullImage", func() (string, error) {
			r, err := n.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: n.image}})
			return short(r.GetImageRef()), err
		}},
		{"RunPodSandbox", func() (string, error) {
			r, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: n.podConfig()})
			n.pod = r.GetPodSandboxId()
			return short(n.pod), err
		}},
		{"PodSandboxStatus", func() (string, error) {
			r, err := n.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: n.pod})
			n.ip = r.GetStatus().GetNetwork().GetIp()
			return n.ip, err
		}},
		{"CreateContainer", func() (string, error) {
			r, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
				PodSandboxId: n.pod, SandboxConfig: n.podConfig(), Config: n.containerConfig(),
			})
			n.container = r.GetContainerId()
			return short(n.container), err
		}},
		{"StartContainer", func() (string, error) {
			_, err := n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: n.container})
			return "", err
		}},
		{"HTTP to the pod's address", func() (string, error) { return n.get(ctx) }},
		{"ExecSync", func() (string, error) { return n.exec(ctx, "uname", "-sr") }},
		{"Exec (streams)", func() (string, error) { return n.execStream(ctx, "cat", "typed by the client") }},
		{"PortForward", func() (string, error) { return n.forward(ctx) }},
		{"ContainerStats", func() (string, error) {
			r, err := n.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: n.container})
			s := r.GetStats()
			return fmt.Sprintf("%d kB of memory, %.1f ms of CPU", s.GetMemory().GetWorkingSetBytes().GetValue()>>10,
				float64(s.GetCpu().GetUsageCoreNanoSeconds().GetValue())/1e6), err
		}},
		{"logs", n.logs},
	} {
		if err := step(s.what, s.do); err != nil {
			return err
		}
	}
	return nil
}

func short(id string) string {
	if len(id) > 19 {
		return id[:19]
	}
	return id
}
