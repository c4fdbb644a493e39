// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/cri/streaming"
)

func TestValidation(t *testing.T) {
	s := serve(t, streaming.Config{}, fake{})
	exec := func(r *cri.ExecRequest) func() (string, error) { return func() (string, error) { return s.GetExec(r) } }
	attach := func(r *cri.AttachRequest) func() (string, error) {
		return func() (string, error) { return s.GetAttach(r) }
	}
	forward := func(r *cri.PortForwardRequest) func() (string, error) {
		return func() (string, error) { return s.GetPortForward(r) }
	}
	cmd := []string{"sh"}
	for name, tt := range map[string]struct {
		get func() (string, error)
		ok  bool
	}{
		"exec":                      {exec(&cri.ExecRequest{ContainerId: "c", Cmd: cmd, Stdin: true, Stdout: true, Stderr: true}), true},
		"exec, tty":                 {exec(&cri.ExecRequest{ContainerId: "c", Cmd: cmd, Stdin: true, Stdout: true, Tty: true}), true},
		"exec without container":    {exec(&cri.ExecRequest{Cmd: cmd, Stdin: true}), false},
		"exec without command":      {exec(&cri.ExecRequest{ContainerId: "c", Stdin: true}), false},
		"exec of nothing":           {exec(&cri.ExecRequest{ContainerId: "c", Cmd: []string{""}, Stdin: true}), false},
		"exec without streams":      {exec(&cri.ExecRequest{ContainerId: "c", Cmd: cmd, Tty: true}), false},
		"exec, tty and stderr":      {exec(&cri.ExecRequest{ContainerId: "c", Cmd: cmd, Stdin: true, Tty: true, Stderr: true}), false},
		"nil exec":                  {exec(nil), false},
		"attach":                    {attach(&cri.AttachRequest{ContainerId: "c", Stdout: true}), true},
		"attach without container":  {attach(&cri.AttachRequest{Stdout: true}), false},
		"attach without streams":    {attach(&cri.AttachRequest{ContainerId: "c"}), false},
		"attach, tty and stderr":    {attach(&cri.AttachRequest{ContainerId: "c", Stderr: true, Tty: true}), false},
		"forward":                   {forward(&cri.PortForwardRequest{PodSandboxId: "p"}), true},
		"forward, ports":            {forward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{1, 65535}}), true},
		"forward without pod":       {forward(&cri.PortForwardRequest{Port: []int32{1}}), false},
		"forward to port 0":         {forward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{0}}), false},
		"forward to port 65536":     {forward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{65536}}), false},
		"forward to too many ports": {forward(&cri.PortForwardRequest{PodSandboxId: "p", Port: make([]int32, 128)}), false},
	} {
		u, err := tt.get()
		if tt.ok && (err != nil || !strings.HasPrefix(u, "http://127.0.0.1:")) || !tt.ok && (!errors.Is(err, streaming.ErrInvalid) || u != "") {
			t.Errorf("%s: %q, %v", name, u, err)
		}
	}
}

func TestListen(t *testing.T) {
	for addr, want := range map[string]error{
		"": nil, "127.0.0.1:0": nil, "localhost:0": nil, "[::1]:0": nil, "127.9.9.9:0": nil,
		":0": streaming.ErrPlaintext, "0.0.0.0:0": streaming.ErrPlaintext, "[::]:0": streaming.ErrPlaintext, "192.0.2.1:0": streaming.ErrPlaintext,
	} {
		s := streaming.New(streaming.Config{Addr: addr}, fake{})
		if _, err := s.GetAttach(&cri.AttachRequest{ContainerId: "c", Stdout: true}); !errors.Is(err, streaming.ErrNotListening) {
			t.Errorf("before Listen: %v", err)
		}
		if err := s.Serve(t.Context()); !errors.Is(err, streaming.ErrNotListening) {
			t.Errorf("Serve before Listen: %v", err)
		}
		if err := s.Listen(t.Context()); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", addr, err, want)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := s.Serve(t.Context()); err != nil {
			t.Errorf("Serve after Close: %v", err)
		}
		if err := s.Listen(t.Context()); want == nil && !errors.Is(err, streaming.ErrClosed) {
			t.Errorf("Listen after Close: %v", err)
		}
	}
}

func TestServeEndsWithContext(t *testing.T) {
	s := streaming.New(streaming.Config{}, fake{})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	cancel()
	if err := await(t, done, "Serve"); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	cert := httptest.NewTLSServer(nil)
	defer cert.Close()
	s := serve(t, streaming.Config{Addr: "0.0.0.0:0", TLS: &tls.Config{Certificates: cert.TLS.Certificates}}, fake{exec: func(_ context.Context, c call) error {
		_, err := io.Copy(c.out, c.in)
		return errors.Join(err, streaming.ExitError{Code: 4})
	}})
	overEach(t, func(t *testing.T, open opener) {
		u := execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true})
		if !strings.HasPrefix(u, "https://127.0.0.1:") {
			t.Errorf("URL %s", u)
		}
		var out bytes.Buffer
		err := open(t, u).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out})
		if err == nil || !strings.Contains(err.Error(), "exit code 4") || out.String() != "hello" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

// ask sends one request and returns the answer's status and body.
func ask(t *testing.T, u, method string, header ...string) (int, string) {
	t.Helper()
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", parsed.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := method + " " + parsed.RequestURI() + " HTTP/1.1\r\n"
	if !strings.HasPrefix(header[len(header)-1], "Host:") {
		text += "Host: " + parsed.Host + "\r\n"
	}
	fmt.Fprint(conn, text+strings.Join(header, "\r\n")+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := ""
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		body = string(b)
	}
	return resp.StatusCode, body
}

func spdyHeader(more ...string) []string {
	return append([]string{"Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"}, more...)
}

func wsHeader(more ...string) []string {
	return append([]string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}, more...)
}

func TestRequests(t *testing.T) {
	s := serve(t, streaming.Config{HeaderTimeout: time.Second}, fake{exec: func(context.Context, call) error { return nil }})
	for _, tt := range []struct {
		name   string
		method string
		header []string
		status int
	}{
		{"SPDY", "POST", spdyHeader(), 101},
		{"SPDY by GET", "GET", spdyHeader(), 101},
		{"WebSocket", "GET", wsHeader(), 101},
		{"PUT", "PUT", spdyHeader(), 405},
		{"OPTIONS, as a browser's preflight", "OPTIONS", spdyHeader(), 405},
		{"no upgrade", "GET", []string{"Accept: */*"}, 400},
		{"another upgrade", "GET", []string{"Connection: Upgrade", "Upgrade: h2c"}, 400},
		{"a body", "POST", spdyHeader("Content-Length: 5"), 400},
		{"a body without length", "POST", spdyHeader("Transfer-Encoding: chunked"), 400},
		{"a web page", "GET", wsHeader("Origin: http://evil.example"), 403},
		{"a web page of no origin", "GET", wsHeader("Origin: null"), 403},
		{"a web page's fetch", "GET", wsHeader("Sec-Fetch-Site: same-origin"), 403},
		{"DNS rebinding", "GET", wsHeader("Host: evil.example:80"), 403},
		{"localhost", "GET", wsHeader("Host: localhost:80"), 101},
		{"IPv6", "GET", wsHeader("Host: [::1]"), 101},
		{"a browser's terminal by a kubelet", "GET", wsHeader("X-Forwarded-For: 10.0.0.1", "Origin: https://dashboard.example", "Host: node-1:10250"), 101},
		{"an old protocol", "POST", []string{"Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: channel.k8s.io"}, 403},
		{"no protocol", "POST", []string{"Connection: Upgrade", "Upgrade: SPDY/3.1"}, 400},
		{"a huge header", "GET", wsHeader("X: " + strings.Repeat("x", 100<<10)), 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			good := execURL(t, s, &cri.ExecRequest{Stdout: true})
			status, body := ask(t, good, tt.method, tt.header...)
			if status != tt.status {
				t.Errorf("status %d, want %d: %s", status, tt.status, body)
			}
			// What is wrong with a request is told alike for tokens that are right and that are wrong.
			bad := good[:len(good)-1] + "_"
			badStatus, badBody := ask(t, bad, tt.method, tt.header...)
			switch {
			case tt.status == 101 || strings.Contains(tt.name, " protocol"):
				if badStatus != 404 {
					t.Errorf("status %d for a wrong token", badStatus)
				}
			case badStatus != status || badBody != body:
				t.Errorf("a wrong token gets %d %q, a right one %d %q", badStatus, badBody, status, body)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	s := serve(t, streaming.Config{MaxTokens: 3}, fake{exec: func(context.Context, call) error { return nil }})
	get := func() string { return execURL(t, s, &cri.ExecRequest{Stdout: true}) }
	u := get()
	token := u[strings.LastIndex(u, "/")+1:]
	if len(token) != 43 || u == get() {
		t.Errorf("token %q", token)
	}
	base := strings.TrimSuffix(u, "exec/"+token)
	var answers []string
	for _, path := range []string{
		"", "exec", "exec/", "exec/" + token[:42], "exec/" + token + "x", "exec/" + token + "/", "exec//" + token, "/exec/" + token,
		"attach/" + strings.Repeat("A", 43), "exec/" + strings.Repeat("A", 43), "debug/" + token[1:], "exec/" + strings.ToUpper(token) + "x",
	} {
		status, body := ask(t, base+path, "GET", wsHeader()...)
		answers = append(answers, fmt.Sprint(status, body))
	}
	for _, a := range answers {
		if a != "404"+"404 page not found\n" {
			t.Errorf("a wrong token gets %q", a)
		}
	}
	if status, _ := ask(t, u, "GET", wsHeader()...); status != 101 {
		t.Errorf("the right token gets %d", status)
	}
	if status, _ := ask(t, u, "GET", wsHeader()...); status != 404 {
		t.Errorf("used twice, it gets %d", status)
	}
	// In the wrong place it is used up.
	u = get()
	for _, kind := range []string{"attach", "exec"} {
		if status, _ := ask(t, strings.Replace(u, "exec", kind, 1), "GET", wsHeader()...); status != 404 {
			t.Errorf("%s gets %d", kind, status)
		}
	}
	get()
	get()
	if _, err := s.GetAttach(&cri.AttachRequest{ContainerId: "c", Stdout: true}); !errors.Is(err, streaming.ErrTooMany) {
		t.Errorf("one too many: %v", err)
	}
}

// A client that takes its time with the request is not waited for (slowloris).
func TestSlowHeader(t *testing.T) {
	s := serve(t, streaming.Config{HeaderTimeout: 50 * time.Millisecond}, fake{})
	u, err := url.Parse(execURL(t, s, &cri.ExecRequest{Stdout: true}))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nX: ")
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) || errors.Is(err, http.ErrHandlerTimeout) || isTimeout(err) {
		t.Errorf("the server waits: %v", err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
