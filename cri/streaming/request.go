// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"fmt"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kinds of session, which are the first parts of their URLs' paths, as kubelets and crictl know them.
const (
	kindExec    = "exec"
	kindAttach  = "attach"
	kindForward = "portforward"
)

// maxPorts bounds the ports of one PortForwardRequest: over WebSocket each has two channels, whose
// number is one byte, and 255 is reserved.
const maxPorts = 127

// A session is what a client may do with one URL.
type session struct {
	kind  string
	id    string   // of the container, or of the pod
	cmd   []string // exec
	stdio stdio    // exec and attach
	ports []int32  // port-forward; none: any
}

// stdio says which streams a client asked for.
type stdio struct {
	in, out, err, tty bool
}

// GetExec returns the URL at which one client may run req's command, once, before the token expires.
func (s *Server) GetExec(req *cri.ExecRequest) (string, error) {
	if len(req.GetCmd()) == 0 || req.GetCmd()[0] == "" {
		return "", fmt.Errorf("%w: cmd is empty", ErrInvalid)
	}
	io := stdio{in: req.GetStdin(), out: req.GetStdout(), err: req.GetStderr(), tty: req.GetTty()}
	if err := io.check(req.GetContainerId()); err != nil {
		return "", err
	}
	return s.url(session{kind: kindExec, id: req.GetContainerId(), cmd: slices.Clone(req.GetCmd()), stdio: io})
}

// GetAttach returns the URL at which one client may attach to req's container, once, before the token
// expires.
func (s *Server) GetAttach(req *cri.AttachRequest) (string, error) {
	io := stdio{in: req.GetStdin(), out: req.GetStdout(), err: req.GetStderr(), tty: req.GetTty()}
	if err := io.check(req.GetContainerId()); err != nil {
		return "", err
	}
	return s.url(session{kind: kindAttach, id: req.GetContainerId(), stdio: io})
}

// GetPortForward returns the URL at which one client may forward any number of connections to req's
// pod, before the token expires. Where req names ports, it is to those only. A SPDY client names the
// port with each connection, so that a kubelet names none here.
func (s *Server) GetPortForward(req *cri.PortForwardRequest) (string, error) {
	if req.GetPodSandboxId() == "" {
		return "", fmt.Errorf("%w: pod_sandbox_id is empty", ErrInvalid)
	}
	ports := req.GetPort()
	if len(ports) > maxPorts {
		return "", fmt.Errorf("%w: %d ports, at most %d", ErrInvalid, len(ports), maxPorts)
	}
	for _, p := range ports {
		if p < 1 || p > 65535 {
			return "", fmt.Errorf("%w: port %d", ErrInvalid, p)
		}
	}
	return s.url(session{kind: kindForward, id: req.GetPodSandboxId(), ports: slices.Clone(ports)})
}

// check holds what api.proto says of ExecRequest and AttachRequest.
func (s stdio) check(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%w: container_id is empty", ErrInvalid)
	case s.tty && s.err:
		return fmt.Errorf("%w: stderr with tty, which has one stream for both", ErrInvalid)
	case !s.in && !s.out && !s.err:
		return fmt.Errorf("%w: none of stdin, stdout and stderr", ErrInvalid)
	}
	return nil
}
