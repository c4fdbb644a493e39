// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// node is a berth with all that it needs, in folders of its own.
type node struct {
	bin, name     string
	base, state   string // on a disk; on a tmpfs
	socket, log   string
	bridge, netns string
	config        string
	registry      *images
	image         string

	daemon  *exec.Cmd
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient

	pod, container, ip string
}

// newNode says where everything will be.
func newNode(bin string) (*node, error) {
	id := strings.ToLower(rand.Text()[:6])
	n := &node{bin: bin, name: "berth-demo-" + id, bridge: "bdemo" + id}
	n.base = filepath.Join("/var/tmp", n.name)
	n.state = filepath.Join("/dev/shm", n.name)
	n.socket, n.log = filepath.Join(n.state, "berth.sock"), filepath.Join(n.base, "berth.log")
	n.netns, n.config = filepath.Join(n.state, "netns"), filepath.Join(n.base, "config.toml")
	for _, p := range []string{"berth", "berth-executor", "cni/bridge", "cni/host-local", "demo-web"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return nil, fmt.Errorf("%w (make run builds it)", err)
		}
	}
	return n, nil
}

// start makes folders, registry and daemon.
func (n *node) start(ctx context.Context) error {
	fmt.Print("A node\n\n")
	for _, d := range []string{n.base, n.state, filepath.Join(n.base, "cni"), filepath.Join(n.base, "logs")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	err := step("registry with one image", func() (string, error) {
		var err error
		if n.registry, err = serveImages(); err != nil {
			return "", err
		}
		n.image, err = n.registry.push(ctx, filepath.Join(n.bin, "demo-web"))
		return n.image, err
	})
	if err != nil {
		return err
	}
	if err := n.configure(); err != nil {
		return err
	}
	return step("berth", func() (string, error) {
		if err := n.startDaemon(ctx); err != nil {
			return "", err
		}
		v, err := n.runtime.Version(ctx, &cri.VersionRequest{})
		return fmt.Sprintf("%s %s, process %d", v.GetRuntimeName(), v.GetRuntimeVersion(), n.daemon.Process.Pid), err
	})
}

// configure writes the configurations of berth and of its network, which is one bridge.
func (n *node) configure() error {
	conf := map[string]any{
		"cniVersion": "1.0.0", "name": n.name,
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": n.bridge, "isGateway": true, "hairpinMode": true,
			"ipam": map[string]any{
				"type": "host-local", "dataDir": filepath.Join(n.base, "ipam"),
				"ranges": [][]map[string]string{{{"subnet": "10.231.0.0/24"}}},
			},
		}},
	}
	b, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.base, "cni", "10-demo.conflist"), b, 0o644); err != nil {
		return err
	}
	text := fmt.Sprintf(`root = %q
state = %q
[cri]
socket = %q
[executor]
binary = %q
cgroup = "/%s/executor"
[network]
conf_dir = %q
bin_dirs = [%q]
netns_dir = %q
`, filepath.Join(n.base, "root"), filepath.Join(n.state, "berth"), n.socket, filepath.Join(n.bin, "berth-executor"), n.name,
		filepath.Join(n.base, "cni"), filepath.Join(n.bin, "cni"), n.netns)
	return os.WriteFile(n.config, []byte(text), 0o644)
}

// startDaemon starts berth and waits until it serves.
func (n *node) startDaemon(ctx context.Context) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.daemon = exec.Command(filepath.Join(n.bin, "berth"), "serve", "--config", n.config)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.daemon.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	if err := n.daemon.Start(); err != nil {
		return err
	}
	if n.conn == nil {
		n.conn, err = grpc.NewClient("unix://"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		n.runtime, n.images = cri.NewRuntimeServiceClient(n.conn), cri.NewImageServiceClient(n.conn)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err = n.runtime.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
	return err
}

func (n *node) ready(ctx context.Context) (string, error) {
	s, err := n.runtime.Status(ctx, &cri.StatusRequest{})
	for _, c := range s.GetStatus().GetConditions() {
		if !c.Status {
			return "", fmt.Errorf("%s: %s", c.Type, c.Message)
		}
	}
	return "runtime and network are ready", err
}

func (n *node) podConfig() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "demo", Uid: n.name}, Hostname: "web",
		LogDirectory: filepath.Join(n.base, "logs"), Labels: map[string]string{"app": "web"},
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.231.0.1"}},
		Linux:     &cri.LinuxPodSandboxConfig{CgroupParent: "/" + n.name + "/pod"},
	}
}

func (n *node) containerConfig() *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "web"}, Image: &cri.ImageSpec{Image: n.image}, LogPath: "web.log",
		Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100}},
	}
}

// get asks the pod's server by the pod's address.
func (n *node) get(ctx context.Context) (string, error) {
	return httpGet(ctx, http.DefaultClient, "http://"+n.ip+":8080/")
}

// httpGet asks until somebody listens: a container that was started is not yet a server.
func httpGet(ctx context.Context, client *http.Client, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if errors.Is(err, unix.ECONNREFUSED) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return strings.TrimSpace(string(b)), err
	}
}

func (n *node) exec(ctx context.Context, args ...string) (string, error) {
	r, err := n.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: n.container, Cmd: args, Timeout: 10})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.GetStdout())), err
}

// pid is the container's first process.
func (n *node) pid(ctx context.Context) (int, error) {
	r, err := n.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: n.container, Verbose: true})
	if err != nil {
		return 0, err
	}
	if r.Status.State != cri.ContainerState_CONTAINER_RUNNING {
		return 0, fmt.Errorf("container is %s: %s", r.Status.State, r.Status.Message)
	}
	var info struct{ PID int }
	return info.PID, errors.Join(json.Unmarshal([]byte(r.Info["info"]), &info), nil)
}

// logs shows the end of the container's log.
func (n *node) logs() (string, error) {
	b, err := os.ReadFile(filepath.Join(n.base, "logs", "web.log"))
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return fmt.Sprintf("%d lines, the last: %s", len(lines), lines[len(lines)-1]), nil
}

func (n *node) killDaemon(ctx context.Context) error {
	if err := n.daemon.Process.Kill(); err != nil {
		return err
	}
	_ = n.daemon.Wait()
	return n.startDaemon(ctx)
}

// processes are those that the daemon does not own.
func (n *node) processes(ctx context.Context) (executor, keeper int, err error) {
	s, err := n.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return 0, 0, err
	}
	var r struct{ PID, KeeperPID int }
	err = json.Unmarshal([]byte(s.Info["executor"]), &r)
	return r.PID, r.KeeperPID, err
}

func (n *node) killExecutor(ctx context.Context) error {
	pid, _, err := n.processes(ctx)
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

func (n *node) killKeeper(ctx context.Context) error {
	_, pid, err := n.processes(ctx)
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// said is the end of what the daemon had to say.
func (n *node) said() string {
	b, _ := os.ReadFile(n.log)
	if i := len(b) - 4000; i > 0 {
		b = b[i:]
	}
	return "berth said: ..." + string(b)
}

// close removes all that was made.
func (n *node) close(ctx context.Context) error {
	fmt.Print("\nTaking it down\n\n")
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	try := func(what string, fn func() error) {
		errs = append(errs, step(what, func() (string, error) { return "", fn() }))
	}
	if n.pod != "" {
		try("StopPodSandbox", func() error {
			_, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: n.pod})
			return err
		})
		try("RemovePodSandbox", func() error {
			_, err := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: n.pod})
			return err
		})
	}
	if n.daemon != nil {
		try("berth", func() error {
			if n.conn != nil {
				n.conn.Close()
			}
			return errors.Join(n.daemon.Process.Signal(unix.SIGTERM), n.daemon.Wait())
		})
		try("executor and keeper", func() error {
			out, err := exec.CommandContext(ctx, filepath.Join(n.bin, "berth"), "executor", "stop", "--config", n.config).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
			}
			return err
		})
	}
	if n.registry != nil {
		n.registry.close()
	}
	try("bridge, mounts, cgroups, files", func() error { return errors.Join(n.removeKernels(ctx), os.RemoveAll(n.base), os.RemoveAll(n.state)) })
	return errors.Join(errs...)
}

// removeKernels removes what berth leaves for the next start of it: a bind mount of each
// folder that it made shared, empty cgroups, and the plugin's bridge.
func (n *node) removeKernels(ctx context.Context) error {
	var errs []error
	for _, m := range []string{n.netns, filepath.Join(n.state, "berth", "executor", "m")} {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	if _, err := os.Stat("/sys/class/net/" + n.bridge); err == nil {
		if out, err := exec.CommandContext(ctx, "ip", "link", "delete", n.bridge).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("ip link delete %s: %w: %s", n.bridge, err, bytes.TrimSpace(out)))
		}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.name)
	for _, d := range append(dirs, "/sys/fs/cgroup/"+n.name) {
		for _, sub := range []string{"executor", "pod", ""} {
			if err := os.Remove(filepath.Join(d, sub)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
