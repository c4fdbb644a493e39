// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// shmSize is the size of a pod's /dev/shm, in bytes, as with the other runtimes. Who
// wants another mounts a memory-backed volume there.
const shmSize = 64 << 20

// errStale says that an object ended between being found and being used.
var errStale = errors.New("has ended meanwhile")

// RunPod makes a pod sandbox and returns its id when it is ready. A request that
// comes again joins the first, or gets the same id. Another request of the same name
// and attempt replaces a pod in which nothing was made yet, else it is ErrExists.
func (rt *Runtime) RunPod(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (store.PodID, error) {
	if err := rt.checkPod(cfg, handler); err != nil {
		return "", err
	}
	digest, err := digestOf(cfg)
	if err != nil {
		return "", err
	}
	if handler != "" {
		digest = content.FromBytes([]byte(digest.String() + " " + handler))
	}
	meta := cfg.GetMetadata()
	name := podName{meta.GetName(), meta.GetNamespace(), meta.GetUid(), meta.GetAttempt()}
	for {
		p := rt.claimPod(name, digest, cfg, handler)
		if p.digest != digest {
			if err := rt.makeRoom(ctx, p); err != nil {
				return "", err
			}
			continue
		}
		err := p.operate(ctx, "run", p.run)
		if errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			return "", err
		}
		return p.id, nil
	}
}

// checkPod refuses what no pod can be made of, before anything is made.
func (rt *Runtime) checkPod(cfg *cri.PodSandboxConfig, handler string) error {
	meta := cfg.GetMetadata()
	switch {
	case meta == nil:
		return fmt.Errorf("%w: the pod has no metadata", ErrInvalid)
	case meta.GetName() == "":
		return fmt.Errorf("%w: metadata.name is empty", ErrInvalid)
	}
	if _, ok := rt.cfg.Handlers[handler]; !ok {
		return fmt.Errorf("%w: %q is not in the configuration", ErrNoHandler, handler)
	}
	if err := spec.CheckPod(cfg, rt.cfg.Features); err != nil {
		return err
	}
	if _, err := rt.cfg.Driver.Pod(cfg.GetLinux().GetCgroupParent()); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	want := spec.PodNamespaces(cfg)
	r := ns.Request{
		ID: "pod", Net: want.Net, IPC: want.IPC, UTS: want.UTS,
		Hostname: cfg.GetHostname(), Sysctls: cfg.GetLinux().GetSysctls(), PinDir: rt.cfg.PinDir,
	}
	if err := r.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// digestOf tells configurations apart.
func digestOf(m proto.Message) (content.Digest, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	return content.FromBytes(b), nil
}

// claimPod returns the pod of a name, which is new if there was none.
func (rt *Runtime) claimPod(name podName, digest content.Digest, cfg *cri.PodSandboxConfig, handler string) *pod {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if p := rt.podNames[name]; p != nil {
		return p
	}
	p := rt.newPod(store.NewPodID(), name, digest)
	p.config, p.handler = proto.CloneOf(cfg), handler
	rt.pods[p.id], rt.podNames[name] = p, p
	return p
}

// makeRoom takes back a pod that was made with another configuration and in which
// no container has been made.
func (rt *Runtime) makeRoom(ctx context.Context, p *pod) error {
	if p.isGone() {
		return nil
	}
	err := p.operate(ctx, "make room", func(ctx context.Context) error {
		switch s := p.state(); {
		case p.isGone():
			return nil
		case s == PodReady && len(p.containersOf()) == 0:
			if err := p.stopAll(ctx); err != nil {
				return err
			}
			return p.removeAll(ctx)
		case s == PodReady:
			return fmt.Errorf("pod %s/%s attempt %d is %s, which was made with another configuration and has containers: %w",
				p.name.namespace, p.name.name, p.name.attempt, p.id, ErrExists)
		default:
			return p.existsError(s)
		}
	})
	return err
}

func (p *pod) existsError(s PodState) error {
	return fmt.Errorf("pod %s/%s attempt %d is %s, %s: %w", p.name.namespace, p.name.name, p.name.attempt, p.id, s, ErrExists)
}

// run makes the pod, unless that has been done.
func (p *pod) run(ctx context.Context) error {
	if p.isGone() {
		return errStale
	}
	switch s := p.state(); s {
	case PodReady:
		return nil
	case "":
	default:
		return p.existsError(s)
	}
	config, err := proto.Marshal(p.config)
	if err != nil {
		return fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	if err := p.begin(ctx, first{config: config}); err != nil {
		return p.fell(ctx, withUndo(err, p.leave(ctx, stepRecord)))
	}
	if err := climb(ctx, p, p.rt.podSteps); err != nil {
		return p.fell(ctx, err)
	}
	err = p.change(ctx, climbed, func(r *store.Pod) {
		if p.attached != nil {
			r.Network.Attachment = p.attached
		}
	})
	if err != nil {
		return p.fell(ctx, withUndo(err, unwind(ctx, p, p.rt.podSteps)))
	}
	p.mu.Lock()
	p.config, p.attached, p.durable = nil, nil, nil
	p.mu.Unlock()
	p.rt.cfg.Log.V(1).Info("Pod is ready", "pod", p.id, "namespace", p.name.namespace, "name", p.name.name)
	p.rt.feed.pod(p, EventStarted)
	return nil
}

// fell ends a creation that failed: nothing is left, or what is left is shown and
// tried again.
func (p *pod) fell(ctx context.Context, err error) error {
	if left := (*fallError)(nil); !errors.As(err, &left) {
		p.forget()
		return err
	}
	p.park(ctx, err)
	return err
}

// park shows a pod of which something could not be taken back, and has it tried again.
func (p *pod) park(ctx context.Context, why error) {
	p.mu.Lock()
	r, ok := p.rt.cfg.Store.Pod(p.id)
	if ok && PodState(r.State) == PodCreating {
		r.State, r.Reason, r.Message = string(PodFailed), "CreateFailed", why.Error()
		if err := p.put(ctx, r); err != nil {
			p.rt.cfg.Log.Error(err, "State of a pod is not written", "pod", p.id)
		}
	}
	p.mu.Unlock()
	p.rt.cfg.Log.Error(why, "Pod is left to be cleaned up", "pod", p.id)
	p.again("settle", p.settle)
}
