// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-cri/berth/cri/streaming"
	"github.com/berth-cri/berth/hack/leak"
)

// patience is for what must happen, on a machine that does much else.
const patience = 30 * time.Second

// fake is Streams made of functions.
type fake struct {
	exec    func(context.Context, call) error
	attach  func(context.Context, call) error
	forward func(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error
}

// call is what Exec or Attach were called with.
type call struct {
	id       string
	cmd      []string
	in       io.Reader
	out, err io.WriteCloser
	tty      bool
	resize   <-chan streaming.Size
}

var _ streaming.Streams = fake{}

func (f fake) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan streaming.Size) error {
	return f.exec(ctx, call{id, cmd, in, out, err, tty, resize})
}

func (f fake) Attach(ctx context.Context, id string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan streaming.Size) error {
	return f.attach(ctx, call{id, nil, in, out, err, tty, resize})
}

func (f fake) PortForward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
	return f.forward(ctx, pod, port, stream)
}

// serve starts a server that ends with the test, which fails if anything of it stays.
func serve(t *testing.T, cfg streaming.Config, f fake) *streaming.Server {
	t.Helper()
	leak.Check(t, leak.Goroutines(), leak.Descriptors())
	cfg.Log = klog.Background()
	s := streaming.New(cfg, f)
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// transports are the ways in which a client may come.
func transports() map[string]func(u string) (remotecommand.Executor, error) {
	return map[string]func(u string) (remotecommand.Executor, error){
		"SPDY": func(u string) (remotecommand.Executor, error) {
			parsed, err := url.Parse(u)
			if err != nil {
				return nil, err
			}
			return remotecommand.NewSPDYExecutor(clientConfig(), http.MethodPost, parsed)
		},
		"WebSocket": func(u string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(clientConfig(), http.MethodGet, u)
		},
	}
}

func clientConfig() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// overEach runs a test over SPDY and over WebSocket.
func overEach(t *testing.T, test func(t *testing.T, open func(t *testing.T, url string) remotecommand.Executor)) {
	for name, open := range transports() {
		t.Run(name, func(t *testing.T) {
			test(t, func(t *testing.T, u string) remotecommand.Executor {
				t.Helper()
				e, err := open(u)
				if err != nil {
					t.Fatal(err)
				}
				return e
			})
		})
	}
}

func execURL(t *testing.T, s *streaming.Server, req *cri.ExecRequest) string {
	t.Helper()
	req.ContainerId, req.Cmd = "c1", []string{"cat", "-"}
	u, err := s.GetExec(req)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func forwardURL(t *testing.T, s *streaming.Server) string {
	t.Helper()
	u, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// dialer opens SPDY connections to u.
func dialer(t *testing.T, u string) httpstream.Dialer {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, parsed)
}

// forwardTo runs client-go's port-forward, as kubectl does, and returns the address to connect to. What
// the client has to say at the end is sent on the channel.
func forwardTo(t *testing.T, u string) (addr string, ended <-chan error) {
	t.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	fw, err := portforward.NewOnAddressesForStreaming(dialer(t, u), []string{"127.0.0.1"}, []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- fw.ForwardPorts() })
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
	})
	await(t, ready, "the port-forward")
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return (&url.URL{Host: "127.0.0.1:" + itoa(int(ports[0].Local))}).Host, done
}

func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s has not come", what)
		panic("unreachable")
	}
}

// pattern is a reader of n bytes that are not all the same.
func pattern(n int64) io.Reader { return io.LimitReader(&counter{}, n) }

// A counter repeats a block whose length, a prime, fits no buffer's.
type counter struct {
	block []byte
	at    int
}

func (c *counter) Read(p []byte) (int, error) {
	if c.block == nil {
		c.block = make([]byte, 65521)
		for i := range c.block {
			c.block[i] = byte(i) ^ byte(i>>8)*31
		}
	}
	n := copy(p, c.block[c.at:])
	c.at = (c.at + n) % len(c.block)
	return n, nil
}

func sum(t *testing.T, r io.Reader) [sha256.Size]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Errorf("read: %v", err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// locked is a buffer that a client fills while a test looks.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

var errTest = errors.New("no such file")

func itoa(n int) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}
