// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execStream runs a command whose input we type.
func (n *node) execStream(ctx context.Context, command, typed string) (string, error) {
	r, err := n.runtime.Exec(ctx, &cri.ExecRequest{ContainerId: n.container, Cmd: []string{command}, Stdin: true, Stdout: true})
	if err != nil {
		return "", err
	}
	e, err := remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, r.Url)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(typed), Stdout: &out})
	return out.String(), err
}

// forward asks the pod's server through a port of our own.
func (n *node) forward(ctx context.Context) (string, error) {
	r, err := n.runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: n.pod, Port: []int32{8080}})
	if err != nil {
		return "", err
	}
	at, err := url.Parse(r.Url)
	if err != nil {
		return "", err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return "", err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at)
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return "", err
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		return "", err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	ports, err := f.GetPorts()
	if err != nil || len(ports) != 1 {
		return "", errors.Join(fmt.Errorf("%d ports", len(ports)), err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	text, err := httpGet(ctx, client, "http://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local)))+"/")
	close(stop)
	return text, errors.Join(err, <-done)
}
