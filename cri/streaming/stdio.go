// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	rc "k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	// chunk is the most that goes out in one frame, so that no frame needs much memory on either side.
	chunk = 32 << 10
	// maxResize bounds the JSON of one terminal size.
	maxResize = 1 << 10
)

// A terminal is a client's end of an exec or attach.
type terminal struct {
	in     io.Reader // nil if the client did not ask for it, like the others
	out    io.WriteCloser
	err    io.WriteCloser
	resize io.Reader
	status io.Writer
	coded  bool // status is JSON (since v4), else the text of a failure
	close  func()
}

// serveStdio serves an exec or an attach.
func (s *Server) serveStdio(ctx context.Context, h *hijacker, r *http.Request, x session, ws bool) {
	var t *terminal
	if ws {
		t = openWebSocket(ctx, h, r, x.stdio)
	} else {
		t = s.openSPDY(ctx, h, r, x.stdio)
	}
	if t == nil {
		return
	}
	var helpers sync.WaitGroup
	var sizes chan Size
	if t.resize != nil {
		sizes = make(chan Size, 1)
		helpers.Go(func() { readSizes(t.resize, sizes) })
	}
	// A stream that the server ends says so, whether Exec has noticed yet or not: a SPDY client takes an end
	// without a status for a success.
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		if cause := context.Cause(ctx); !over(cause) {
			t.report(cause)
		}
		t.close()
	})
	var err error
	if x.kind == kindExec {
		err = s.streams.Exec(ctx, x.id, x.cmd, t.in, t.out, t.err, x.stdio.tty, sizes)
	} else {
		err = s.streams.Attach(ctx, x.id, t.in, t.out, t.err, x.stdio.tty, sizes)
	}
	if stop() {
		t.report(err)
		h.conn.finished.Store(true)
		t.close()
	} else {
		<-told
	}
	helpers.Wait()
}

// Status is what kubectl expects at the end, as in apimachinery's metav1.Status.
type status struct {
	Status  string   `json:"status,omitempty"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes,omitempty"`
}

type cause struct {
	Type    string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// report tells the client how it ended. If that cannot be told, there is nobody to tell that to.
func (t *terminal) report(err error) {
	st := status{Status: "Success"}
	if exit, ok := errors.AsType[ExitError](err); ok {
		st = status{
			Status: "Failure", Reason: rc.NonZeroExitCodeReason,
			Details: &details{Causes: []cause{{Type: rc.ExitCodeCauseType, Message: strconv.Itoa(exit.Code)}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
		}
	} else if err != nil {
		st = status{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: err.Error()}
	}
	text := []byte(st.Message)
	if t.coded {
		text, _ = json.Marshal(st) // strings and numbers only
	}
	if len(text) > 0 {
		_, _ = t.status.Write(text)
	}
}

// readSizes passes on the sizes that a client sends, the newest if nobody takes them, and throws away
// what is none: a stream that is not read holds up the others of its connection.
func readSizes(r io.Reader, sizes chan Size) {
	defer close(sizes)
	limited := &io.LimitedReader{R: r}
	dec := json.NewDecoder(limited)
	for {
		var size Size
		limited.N = maxResize
		if dec.Decode(&size) != nil {
			_, _ = io.Copy(io.Discard, r)
			return
		}
		select {
		case <-sizes:
		default:
		}
		sizes <- size // never waits: it has room, and nobody else sends
	}
}

// An input tells a client that has gone from one that has closed its input.
type input struct {
	gone func() error
	io.Reader
}

func (r input) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		if cause := r.gone(); cause != nil {
			return n, cause
		}
	}
	return n, err
}

// An output writes frames of bounded size, to a client that is there.
type output struct {
	gone func() error
	w    io.WriteCloser
	once *sync.Once
}

func (o output) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if cause := o.gone(); cause != nil {
			return done, cause
		}
		n, err := o.w.Write(p[done:min(len(p), done+chunk)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Close tells the client that no more comes, where the protocol can say that.
func (o output) Close() error {
	var err error
	o.once.Do(func() { err = o.w.Close() })
	return err
}

// newTerminal wraps streams for the daemon's use. gone is the cause by which ctx has ended, or nil.
func newTerminal(ctx context.Context, want stdio, in io.Reader, out, err io.WriteCloser) *terminal {
	gone := func() error {
		if ctx.Err() == nil {
			return nil
		}
		return context.Cause(ctx)
	}
	t := &terminal{}
	if want.in {
		t.in = input{gone, in}
	}
	if want.out {
		t.out = output{gone, out, new(sync.Once)}
	}
	if want.err {
		t.err = output{gone, err, new(sync.Once)}
	}
	return t
}
