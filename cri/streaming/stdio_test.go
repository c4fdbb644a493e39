// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/cri/streaming"
)

type opener = func(t *testing.T, url string) remotecommand.Executor

func TestExecStatus(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		code int    // of the client's error
		text string // part of it
	}{
		{name: "0"},
		{name: "3", err: streaming.ExitError{Code: 3}, code: 3, text: "exit code 3"},
		{name: "signal", err: fmt.Errorf("exec: %w", streaming.ExitError{Code: 137}), code: 137},
		{name: "could not run", err: errTest, text: errTest.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			overEach(t, func(t *testing.T, open opener) {
				s := serve(t, streaming.Config{}, fake{exec: func(_ context.Context, c call) error {
					if c.id != "c1" || strings.Join(c.cmd, " ") != "cat -" || c.in != nil || c.err != nil || c.tty || c.resize != nil {
						t.Errorf("called with %+v", c)
					}
					fmt.Fprint(c.out, "hello")
					return tt.err
				}})
				var out bytes.Buffer
				err := open(t, execURL(t, s, &cri.ExecRequest{Stdout: true})).
					StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out})
				var exit clientexec.CodeExitError
				switch {
				case tt.err == nil && err != nil, tt.err != nil && err == nil:
					t.Errorf("client's error is %v, of %v", err, tt.err)
				case tt.code != 0 && (!errors.As(err, &exit) || exit.Code != tt.code), tt.code == 0 && errors.As(err, &exit):
					t.Errorf("client's error is %#v, want code %d", err, tt.code)
				case err != nil && !strings.Contains(err.Error(), tt.text):
					t.Errorf("client's error is %q, want %q in it", err, tt.text)
				}
				if out.String() != "hello" {
					t.Errorf("stdout %q", out.String())
				}
			})
		})
	}
}

// Both outputs and the end of input, with more of each than any buffer has.
func TestExecStreams(t *testing.T) {
	const size = 8 << 20
	want := sum(t, pattern(size))
	overEach(t, func(t *testing.T, open opener) {
		s := serve(t, streaming.Config{}, fake{exec: func(_ context.Context, c call) error {
			if got := sum(t, c.in); got != want {
				t.Error("stdin is not what was sent")
			}
			var wg sync.WaitGroup
			for _, w := range []io.Writer{c.out, c.err} {
				wg.Go(func() {
					if _, err := io.Copy(w, pattern(size)); err != nil {
						t.Errorf("write: %v", err)
					}
				})
			}
			wg.Wait()
			return streaming.ExitError{Code: 7}
		}})
		out, errOut := sha256.New(), sha256.New()
		err := open(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true, Stderr: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: pattern(size), Stdout: out, Stderr: errOut})
		if err == nil || !strings.Contains(err.Error(), "exit code 7") {
			t.Errorf("client's error is %v", err)
		}
		if [32]byte(out.Sum(nil)) != want || [32]byte(errOut.Sum(nil)) != want {
			t.Error("output is not what was written")
		}
	})
}

func TestExec100MB(t *testing.T) {
	const size = 100 << 20
	want := sum(t, pattern(size))
	overEach(t, func(t *testing.T, open opener) {
		s := serve(t, streaming.Config{}, fake{exec: func(_ context.Context, c call) error {
			_, err := io.Copy(c.out, c.in)
			return err
		}})
		out := sha256.New()
		err := open(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: pattern(size), Stdout: out})
		if err != nil {
			t.Errorf("client's error is %v", err)
		}
		if [32]byte(out.Sum(nil)) != want {
			t.Error("what came back is not what was sent")
		}
	})
}

// A command that ends with its input unread loses neither its last words nor its status: the socket of a
// server that closes it with input unread sends a reset, which overtakes both.
func TestExecInputUnread(t *testing.T) {
	overEach(t, func(t *testing.T, open opener) {
		s := serve(t, streaming.Config{}, fake{exec: func(_ context.Context, c call) error {
			if _, err := io.ReadFull(c.in, make([]byte, 1<<20)); err != nil {
				t.Errorf("stdin: %v", err)
			}
			_, _ = io.Copy(c.out, pattern(1<<20))
			return streaming.ExitError{Code: 9}
		}})
		out := sha256.New()
		// As `yes | kubectl exec -i`: the input has no end.
		err := open(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: pattern(1 << 26), Stdout: out})
		if err == nil || !strings.Contains(err.Error(), "exit code 9") {
			t.Errorf("client's error is %v", err)
		}
		if want := sum(t, pattern(1<<20)); [32]byte(out.Sum(nil)) != want {
			t.Error("output is not what was written")
		}
	})
}

type sizes chan remotecommand.TerminalSize

func (q sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func TestTerminal(t *testing.T) {
	for _, kind := range []string{"exec", "attach"} {
		t.Run(kind, func(t *testing.T) {
			overEach(t, func(t *testing.T, open opener) {
				got := make(chan streaming.Size)
				run := func(ctx context.Context, c call) error {
					if !c.tty || c.err != nil {
						t.Errorf("called with %+v", c)
					}
					for range 2 {
						got <- <-c.resize
					}
					_, err := io.Copy(c.out, c.in)
					return err
				}
				s := serve(t, streaming.Config{}, fake{exec: run, attach: run})
				u := execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true, Tty: true})
				if kind == "attach" {
					var err error
					if u, err = s.GetAttach(&cri.AttachRequest{ContainerId: "c1", Stdin: true, Stdout: true, Tty: true}); err != nil {
						t.Fatal(err)
					}
				}
				queue, out, done := make(sizes), new(locked), make(chan error, 1)
				stdin, typed := io.Pipe()
				go func() {
					done <- open(t, u).StreamWithContext(t.Context(), remotecommand.StreamOptions{
						Stdin: stdin, Stdout: out, Tty: true, TerminalSizeQueue: queue,
					})
				}()
				for _, want := range []streaming.Size{{Width: 80, Height: 24}, {Width: 200, Height: 65535}} {
					queue <- remotecommand.TerminalSize{Width: want.Width, Height: want.Height}
					if size := await(t, got, "the size"); size != want {
						t.Errorf("size %v, want %v", size, want)
					}
				}
				close(queue)
				fmt.Fprint(typed, "exit\n")
				typed.Close()
				if err := await(t, done, "the end"); err != nil {
					t.Error(err)
				}
				if out.b.String() != "exit\n" {
					t.Errorf("echo %q", out.b.String())
				}
			})
		})
	}
}

func TestClientGoesAway(t *testing.T) {
	for name, visit := range map[string]func(t *testing.T, u string, started <-chan struct{}){
		"SPDY, with a good-bye": func(t *testing.T, u string, started <-chan struct{}) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdin, typed := io.Pipe()
			defer typed.Close()
			e, err := transports()["SPDY"](u)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: io.Discard})
			}()
			await(t, started, "the exec")
			cancel()
			_ = await(t, done, "the client")
		},
		"WebSocket": func(t *testing.T, u string, started <-chan struct{}) {
			conn := webSocket(t, u)
			await(t, started, "the exec")
			_ = conn.NetConn().Close()
		},
		"WebSocket, with a good-bye": func(t *testing.T, u string, started <-chan struct{}) {
			conn := webSocket(t, u)
			await(t, started, "the exec")
			if err := conn.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(gorilla.CloseNormalClosure, "")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			started, ended := make(chan struct{}), make(chan error, 2)
			s := serve(t, streaming.Config{}, fake{exec: func(ctx context.Context, c call) error {
				close(started)
				// What reads comes back, and not with an end of input that nobody sent.
				_, err := io.Copy(io.Discard, c.in)
				ended <- err
				<-ctx.Done()
				_, err = c.out.Write([]byte("too late"))
				ended <- err
				return nil
			}})
			visit(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}), started)
			for _, what := range []string{"read", "write"} {
				err := await(t, ended, what)
				if what == "read" && err == nil && strings.Contains(name, "good-bye") {
					continue // that may end the input first
				}
				if !errors.Is(err, streaming.ErrClientGone) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// webSocket opens one without client-go, whose executor leaves goroutines behind when it is cancelled.
func webSocket(t *testing.T, u string) *gorilla.Conn {
	t.Helper()
	d := gorilla.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, resp, err := d.Dial(strings.Replace(u, "http", "ws", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestIdle(t *testing.T) {
	overEach(t, func(t *testing.T, open opener) {
		ended := make(chan error, 1)
		s := serve(t, streaming.Config{IdleTimeout: 50 * time.Millisecond}, fake{exec: func(ctx context.Context, c call) error {
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil
		}})
		err := open(t, execURL(t, s, &cri.ExecRequest{Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		if err := await(t, ended, "the end"); !errors.Is(err, streaming.ErrIdle) {
			t.Errorf("ended by %v", err)
		}
		if err == nil {
			t.Error("the client took it for a success")
		}
	})
}

// A client that does not read stops its own stream, and neither others nor Close.
func TestSlowClient(t *testing.T) {
	overEach(t, func(t *testing.T, open opener) {
		stuck := make(chan struct{}, 1)
		s := serve(t, streaming.Config{}, fake{exec: func(ctx context.Context, c call) error {
			if c.in != nil {
				fmt.Fprint(c.out, "quick")
				return nil
			}
			_, err := io.Copy(c.out, &notifying{r: pattern(1 << 40), after: 16 << 20, c: stuck})
			return err
		}})
		release, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- open(t, execURL(t, s, &cri.ExecRequest{Stdout: true})).
				StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: blocked(release)})
		}()
		for range 20 {
			var out bytes.Buffer
			err := open(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true})).
				StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out})
			if err != nil || out.String() != "quick" {
				t.Fatalf("beside a slow client: %q, %v", out.String(), err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		close(release)
		_ = await(t, done, "the slow client") // it may have an error, but cannot be told which
		select {
		case <-stuck:
			t.Error("16 MiB went to a client that does not read")
		default:
		}
	})
}

// blocked is a writer that takes nothing until it is released.
type blocked <-chan struct{}

func (b blocked) Write(p []byte) (int, error) {
	<-b
	return len(p), nil
}

// notifying tells when so much has been read.
type notifying struct {
	r     io.Reader
	after int
	c     chan struct{}
}

func (n *notifying) Read(p []byte) (int, error) {
	got, err := n.r.Read(p)
	if n.after -= got; n.after <= 0 && n.after+got > 0 {
		n.c <- struct{}{}
	}
	return got, err
}

func TestCloseEndsStreams(t *testing.T) {
	overEach(t, func(t *testing.T, open opener) {
		started, cause := make(chan struct{}, 100), make(chan error, 100)
		s := serve(t, streaming.Config{}, fake{exec: func(ctx context.Context, c call) error {
			started <- struct{}{}
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return nil
		}})
		const n = 20
		done := make(chan error, n)
		for range n {
			go func() {
				done <- open(t, execURL(t, s, &cri.ExecRequest{Stdout: true})).
					StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
			}()
		}
		for range n {
			await(t, started, "an exec")
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for range n {
			if err := <-cause; !errors.Is(err, streaming.ErrClosed) {
				t.Errorf("cause %v", err)
			}
			if err := await(t, done, "a client"); err == nil {
				t.Error("a client took it for a success")
			}
		}
		if _, err := s.GetExec(&cri.ExecRequest{ContainerId: "c1", Cmd: []string{"true"}, Stdout: true}); !errors.Is(err, streaming.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// Close does not wait for ever for a stream that does not end.
func TestCloseStuck(t *testing.T) {
	release, started := make(chan struct{}), make(chan struct{})
	s := streaming.New(streaming.Config{CloseTimeout: time.Millisecond}, fake{exec: func(context.Context, call) error {
		close(started)
		<-release
		return nil
	}})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.WithoutCancel(t.Context())) }()
	done := make(chan error, 1)
	u := execURL(t, s, &cri.ExecRequest{Stdout: true})
	go func() {
		e, err := transports()["SPDY"](u)
		if err == nil {
			err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		}
		done <- err
	}()
	await(t, started, "the exec")
	if err := s.Close(); !errors.Is(err, streaming.ErrStuck) {
		t.Errorf("Close: %v", err)
	}
	if err := await(t, served, "Serve"); !errors.Is(err, streaming.ErrStuck) {
		t.Errorf("Serve: %v", err)
	}
	close(release)
	_ = await(t, done, "the client")
}

// A client that opens too few streams, the wrong ones, or none, and one that goes before the answers: the
// stream ends, and nothing of it stays.
func TestIncompleteClients(t *testing.T) {
	header := func(kind string) http.Header { return http.Header{"Streamtype": {kind}} }
	for name, streams := range map[string][]string{
		"none": {}, "no error stream": {"stdin", "stdout"}, "twice": {"error", "stdin", "stdin"}, "unknown": {"error", "stdin", "x"},
		"not asked for": {"error", "stdin", "stderr", "resize"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, streaming.Config{CreationTimeout: 100 * time.Millisecond}, fake{exec: func(context.Context, call) error {
				t.Error("ran")
				return nil
			}})
			conn, _, err := dialer(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true})).Dial("v4.channel.k8s.io")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, kind := range streams {
				if _, err := conn.CreateStream(header(kind)); err != nil && name != "twice" && name != "unknown" {
					t.Errorf("%s: %v", kind, err)
				}
			}
			await(t, conn.CloseChan(), "the end")
		})
	}
}

func TestConcurrentStreams(t *testing.T) {
	overEach(t, func(t *testing.T, open opener) {
		s := serve(t, streaming.Config{}, fake{exec: func(_ context.Context, c call) error {
			_, err := io.Copy(c.out, c.in)
			return errors.Join(err, streaming.ExitError{Code: 5})
		}})
		const n, size = 100, 256 << 10
		want := sum(t, pattern(size))
		var wg sync.WaitGroup
		for range n {
			u := execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true})
			wg.Go(func() {
				out := sha256.New()
				err := open(t, u).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: pattern(size), Stdout: out})
				if err == nil || !strings.Contains(err.Error(), "exit code 5") || [32]byte(out.Sum(nil)) != want {
					t.Errorf("one of many: %v", err)
				}
			})
		}
		wg.Wait()
	})
}
