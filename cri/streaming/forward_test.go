// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-cri/berth/cri/streaming"
)

// toPod is what a daemon does, with addr for the pod's.
func toPod(addr string) fake {
	return fake{forward: func(ctx context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return streaming.Forward(ctx, stream, conn.(*net.TCPConn))
	}}
}

// pod listens as a pod would, and runs a function for each connection.
func pod(t *testing.T, handle func(conn *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// forward opens one connection over a SPDY session.
func forward(t *testing.T, conn httpstream.Connection, id int) (data, errs httpstream.Stream) {
	t.Helper()
	h := http.Header{}
	h.Set("port", "80")
	h.Set("requestID", strconv.Itoa(id))
	h.Set("streamType", "error")
	errs, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	errs.Close()
	h.Set("streamType", "data")
	if data, err = conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	return data, errs
}

func dial(t *testing.T, u string) httpstream.Connection {
	t.Helper()
	conn, _, err := dialer(t, u).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestForwardHTTP(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body) // first, since HTTP/1 servers do not read after they have written
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(web.Close)
	var mu sync.Mutex
	seen := make(map[string]bool)
	f := toPod(web.Listener.Addr().String())
	inner := f.forward
	f.forward = func(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
		mu.Lock()
		seen[fmt.Sprint(pod, " ", port)] = true
		mu.Unlock()
		return inner(ctx, pod, port, stream)
	}
	s := serve(t, streaming.Config{}, f)
	addr, _ := forwardTo(t, forwardURL(t, s))
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
			defer client.CloseIdleConnections()
			size := int64(1000 << (i % 12))
			resp, err := client.Post("http://"+addr+"/", "text/plain", pattern(size))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if sum(t, resp.Body) != sum(t, pattern(size)) {
				t.Errorf("%d bytes came back changed", size)
			}
		})
	}
	wg.Wait()
	if len(seen) != 1 || !seen["p1 80"] {
		t.Errorf("forwarded to %v", seen)
	}
}

// Each direction ends by itself, and what was sent before arrives.
func TestForwardHalfClose(t *testing.T) {
	const size = 8 << 20
	want := sum(t, pattern(size))
	for name, handle := range map[string]func(*net.TCPConn){
		"the client first": func(conn *net.TCPConn) {
			if sum(t, conn) != want {
				t.Error("the pod got something else")
			}
			_, _ = io.Copy(conn, pattern(size))
		},
		"the pod first": func(conn *net.TCPConn) {
			_, _ = io.Copy(conn, pattern(size))
			_ = conn.CloseWrite()
			if sum(t, conn) != want {
				t.Error("the pod got something else")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan struct{})
			s := serve(t, streaming.Config{}, toPod(pod(t, func(conn *net.TCPConn) {
				defer close(done)
				handle(conn)
			})))
			data, errs := forward(t, dial(t, forwardURL(t, s)), 1)
			send := func() {
				if _, err := io.Copy(data, pattern(size)); err != nil {
					t.Error(err)
				}
				if err := data.Close(); err != nil {
					t.Error(err)
				}
			}
			if name == "the client first" {
				send()
			}
			if sum(t, data) != want {
				t.Error("the client got something else")
			}
			if name == "the pod first" {
				send()
			}
			if text, err := io.ReadAll(errs); err != nil || len(text) > 0 {
				t.Errorf("error stream: %q, %v", text, err)
			}
			await(t, done, "the pod")
		})
	}
}

// Connections that end badly leave the session of their client, and its other connections, alone
// (kubernetes/kubernetes issue 74551: "lost connection to pod").
func TestForwardGoesOn(t *testing.T) {
	for name, handle := range map[string]func(*net.TCPConn){
		"the pod closes at once": func(*net.TCPConn) {},
		"the pod resets": func(conn *net.TCPConn) {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.SetLinger(0)
		},
		"the client closes": func(conn *net.TCPConn) {
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close() // as a web server whose client has gone
			})
			_, _ = io.Copy(conn, &counter{})
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, streaming.Config{}, toPod(pod(t, handle)))
			addr, ended := forwardTo(t, forwardURL(t, s))
			for range 8 {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				// Much more than any queue on the way takes.
				_, _ = io.Copy(conn, pattern(4<<20))
				if name == "the client closes" {
					_, _ = io.CopyN(io.Discard, conn, 1<<20)
				} else {
					_, _ = io.Copy(io.Discard, conn)
				}
				conn.Close()
			}
			select {
			case err := <-ended:
				t.Errorf("the session ended: %v", err)
			default:
			}
		})
	}
}

// A pod that sends without end hears of a client that has reset its stream.
func TestForwardClientResets(t *testing.T) {
	done := make(chan struct{})
	s := serve(t, streaming.Config{}, toPod(pod(t, func(conn *net.TCPConn) {
		defer close(done)
		_, _ = io.Copy(conn, &counter{})
	})))
	data, _ := forward(t, dial(t, forwardURL(t, s)), 1)
	if _, err := io.CopyN(io.Discard, data, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := data.Reset(); err != nil {
		t.Fatal(err)
	}
	await(t, done, "the pod's end")
}

// What PortForward leaves unread does not stop the client's other connections.
func TestForwardUnread(t *testing.T) {
	s := serve(t, streaming.Config{}, fake{forward: func(_ context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
		_, err := io.CopyN(stream, stream, 3)
		return err
	}})
	conn := dial(t, forwardURL(t, s))
	for i := range 20 {
		data, errs := forward(t, conn, i)
		if _, err := io.Copy(data, io.MultiReader(strings.NewReader("abc"), pattern(4<<20))); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(data); err != nil || string(got) != "abc" {
			t.Fatalf("connection %d: %q, %v", i, got, err)
		}
		if text, _ := io.ReadAll(errs); len(text) > 0 {
			t.Errorf("connection %d: %s", i, text)
		}
		conn.RemoveStreams(data, errs)
	}
}

func TestForwardError(t *testing.T) {
	s := serve(t, streaming.Config{}, fake{forward: func(context.Context, string, int32, io.ReadWriteCloser) error { return errTest }})
	data, errs := forward(t, dial(t, forwardURL(t, s)), 1)
	if text, err := io.ReadAll(errs); err != nil || !strings.Contains(string(text), "port 80 to pod p1: "+errTest.Error()) {
		t.Errorf("error stream: %q, %v", text, err)
	}
	if text, err := io.ReadAll(data); err != nil || len(text) > 0 {
		t.Errorf("data stream: %q, %v", text, err)
	}
}

func TestForwardRefusals(t *testing.T) {
	s := serve(t, streaming.Config{CreationTimeout: 50 * time.Millisecond}, fake{forward: func(context.Context, string, int32, io.ReadWriteCloser) error {
		t.Error("forwarded")
		return nil
	}})
	u, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p1", Port: []int32{80, 81}})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, u)
	for name, h := range map[string][3]string{
		"no port": {"", "data", "1"}, "port 0": {"0", "data", "2"}, "port 65536": {"65536", "data", "3"}, "port -1": {"-1", "data", "4"},
		"not asked for": {"82", "data", "5"}, "kind": {"80", "stdin", "6"}, "no id": {"80", "data", ""}, "no kind": {"80", "", "7"},
	} {
		if _, err := conn.CreateStream(http.Header{"Port": {h[0]}, "Streamtype": {h[1]}, "Requestid": {h[2]}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Half a pair is reset in time, and its number is free again; another port's half is no match.
	for range 2 {
		lone, err := conn.CreateStream(http.Header{"Port": {"80"}, "Streamtype": {"data"}, "Requestid": {"8"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.CreateStream(http.Header{"Port": {"81"}, "Streamtype": {"error"}, "Requestid": {"8"}}); err == nil {
			t.Error("a pair of two ports was accepted")
		}
		if _, err := io.ReadAll(lone); err != nil {
			t.Error(err)
		}
	}
}

// A client that goes away ends its connections, also those that nobody reads or writes.
func TestForwardClientGoesAway(t *testing.T) {
	ended := make(chan error, 2)
	started := make(chan struct{}, 2)
	s := serve(t, streaming.Config{}, fake{forward: func(ctx context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
		started <- struct{}{}
		_, err := stream.Read(make([]byte, 1))
		ended <- err
		return nil
	}})
	conn := dial(t, forwardURL(t, s))
	for i := range 2 {
		forward(t, conn, i)
		await(t, started, "the forward")
	}
	conn.Close()
	for range 2 {
		if err := await(t, ended, "the end"); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v", err)
		}
	}
}

func TestForwardWebSocket(t *testing.T) {
	s := serve(t, streaming.Config{}, toPod(pod(t, func(conn *net.TCPConn) {
		_, _ = io.CopyN(conn, conn, 5)
	})))
	u, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p1", Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	d := gorilla.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}
	conn, resp, err := d.Dial(strings.Replace(u, "http", "ws", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	defer conn.Close()
	if err := conn.WriteMessage(gorilla.BinaryMessage, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		_, m, err := conn.ReadMessage()
		if err != nil {
			break
		}
		got = append(got, m...)
	}
	// The port on each channel, then the data, then the end, since the pod's is the end of both.
	if want := []byte("\x00\x50\x00\x01\x50\x00\x00hello"); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
