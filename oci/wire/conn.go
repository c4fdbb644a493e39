// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of the connection itself. Errors that the other side answers are of
// type [*Error].
var (
	// ErrMalformed is returned for a packet that no peer of this protocol sends.
	// The connection is of no further use.
	ErrMalformed = errors.New("malformed message")

	// ErrTooLarge is returned by Send for a body above MaxBody or more than
	// MaxFiles descriptors.
	ErrTooLarge = errors.New("message too large")

	// ErrNoFile is returned by Message.Take for a descriptor that did not come.
	ErrNoFile = errors.New("descriptor missing from message")
)

const (
	magic      = 0xbe17
	headerSize = 16
	flagMemfd  = 1

	// maxInline is the largest body that travels in the packet: well under the
	// smallest default of net.core.wmem_default (212,992 bytes, of which the
	// kernel counts its own overhead).
	maxInline = 64 << 10

	// MaxBody bounds a body, in bytes. A CRI request is at most 16 MiB, and the
	// spec made from it is of the same order.
	MaxBody = 64 << 20

	// MaxFiles bounds the descriptors of one message. SCM_MAX_FD is 253.
	MaxFiles = 64
)

// Kind tells requests, their answers and the rest apart.
type Kind uint8

// The kinds of a message. See the drawing in the package's documentation.
const (
	Request  Kind = 1
	Response Kind = 2
	Event    Kind = 3
	Cancel   Kind = 4
)

// Message is one packet. A received Message owns its files until they are taken.
type Message struct {
	Kind  Kind
	Op    Op
	ID    uint64 // of the request, chosen by its sender, unique on a connection
	Body  []byte // JSON, or empty
	Files []*os.File
}

// Decode reads the body into v. An unknown field is no error: a newer peer may
// know more.
func (m *Message) Decode(v any) error {
	if len(m.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("%s: %w: %w", m.Op, ErrMalformed, err)
	}
	return nil
}

// Take hands descriptor i over to the caller, who closes it.
func (m *Message) Take(i int) (*os.File, error) {
	if i < 0 || i >= len(m.Files) || m.Files[i] == nil {
		return nil, fmt.Errorf("%s: descriptor %d: %w", m.Op, i, ErrNoFile)
	}
	f := m.Files[i]
	m.Files[i] = nil
	return f, nil
}

// Close closes the descriptors that were not taken.
func (m *Message) Close() {
	for i, f := range m.Files {
		if f != nil {
			f.Close()
			m.Files[i] = nil
		}
	}
}

// Conn is one end of a connection. Send may be called by many goroutines at
// once, Recv by one.
type Conn struct {
	f *os.File // SOCK_SEQPACKET, non-blocking: the runtime's poller waits

	// One packet at a time, so that a waiter for room is not overtaken for ever. A lock
	// that can be waited for with a context: it is held by who has put something in.
	sending chan struct{}

	// Of the goroutine that receives.
	buf []byte
	oob []byte
}

// NewConn takes over f, a connected SOCK_SEQPACKET unix socket.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()   // also where it fails: the caller has given it away
	fd := int(f.Fd()) // also makes it blocking, which is undone at once
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("set non-blocking: %w", err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("dup: %w", err)
	}
	return &Conn{
		f:       os.NewFile(uintptr(dup), "wire"), // non-blocking by now, so it joins the poller
		sending: make(chan struct{}, 1),
		buf:     make([]byte, headerSize+maxInline),
		oob:     make([]byte, unix.CmsgSpace((MaxFiles+1)*4)),
	}, nil
}

// Dial connects to the socket at path; it waits, until ctx ends, while too many
// others wait to be accepted there. ECONNREFUSED means that no process holds the
// listening end any more; ENOENT that none ever did.
func Dial(ctx context.Context, path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := connect(ctx, fd, path); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect %s: %w", path, err)
	}
	return NewConn(os.NewFile(uintptr(fd), path))
}

// connect asks again and again where the backlog is full: a unix socket has no event
// for room in it.
func connect(ctx context.Context, fd int, path string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Peer returns the process at the other end, as it was when it connected or
// began to listen (SO_PEERCRED).
func (c *Conn) Peer() (*unix.Ucred, error) {
	var cred *unix.Ucred
	err := c.control(func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	return cred, err
}

// Close ends the connection: Send and Recv, also those under way, return
// os.ErrClosed.
func (c *Conn) Close() error { return c.f.Close() }

// number returns f's descriptor and, unlike File.Fd, leaves its blocking mode as
// it is. It is valid as long as f is.
func number(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	if err := rc.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return -1, closedOr(f, err)
	}
	return n, nil
}

func (c *Conn) control(fn func(fd int) error) error {
	rc, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return closedOr(c.f, err)
	}
	return ferr
}

// closedOr returns os.ErrClosed where f is closed, and else err: what a
// syscall.RawConn returns then has no name outside the standard library.
func closedOr(f *os.File, err error) error {
	if _, serr := f.Stat(); errors.Is(serr, os.ErrClosed) {
		return os.ErrClosed
	}
	return err
}

// Send writes m, waiting for room. The files of m stay the caller's. It returns
// EPIPE or ECONNRESET when the other side has closed; ErrTooLarge, and an error
// about a file, leave the connection as it was.
func (c *Conn) Send(m *Message) error { return c.SendContext(context.Background(), m) }

// SendContext is Send that waits for room, and for its turn, no longer than ctx. A
// message that was not sent by then is not sent at all, and the connection is as it
// was.
func (c *Conn) SendContext(ctx context.Context, m *Message) error {
	if len(m.Body) > MaxBody || len(m.Files) > MaxFiles {
		return fmt.Errorf("%s: %d bytes, %d descriptors: %w", m.Op, len(m.Body), len(m.Files), ErrTooLarge)
	}
	packet := make([]byte, headerSize, headerSize+min(len(m.Body), maxInline))
	binary.LittleEndian.PutUint16(packet[0:], magic)
	packet[2] = byte(m.Kind)
	binary.LittleEndian.PutUint16(packet[4:], uint16(m.Op))
	binary.LittleEndian.PutUint64(packet[8:], m.ID)

	defer runtime.KeepAlive(m.Files)
	fds := make([]int, 0, len(m.Files)+1)
	for _, f := range m.Files {
		fd, err := number(f)
		if err != nil {
			return fmt.Errorf("%s: descriptor: %w", m.Op, err)
		}
		fds = append(fds, fd)
	}
	if len(m.Body) > maxInline {
		body, err := memfdWith(m.Body)
		if err != nil {
			return fmt.Errorf("%s: body: %w", m.Op, err)
		}
		defer unix.Close(body)
		packet[3] |= flagMemfd
		fds = append(fds, body)
	} else {
		packet = append(packet, m.Body...)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := c.write(ctx, packet, oob); err != nil {
		return fmt.Errorf("%s: send: %w", m.Op, err)
	}
	return nil
}

func (c *Conn) write(ctx context.Context, packet, oob []byte) error {
	rc, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-c.sending }()
	if ctx.Done() != nil {
		cut := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = c.f.SetWriteDeadline(time.Unix(1, 0)) // fails only if it is closed
			close(cut)
		})
		defer func() {
			if !stop() {
				<-cut
				_ = c.f.SetWriteDeadline(time.Time{})
			}
		}()
	}
	var serr error
	err = rc.Write(func(fd uintptr) bool {
		for {
			serr = unix.Sendmsg(int(fd), packet, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if !errors.Is(serr, unix.EINTR) {
				return !errors.Is(serr, unix.EAGAIN)
			}
		}
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	case err != nil:
		return closedOr(c.f, err)
	}
	return serr
}

// memfdWith returns a sealed memfd that holds b.
func memfdWith(b []byte) (int, error) {
	fd, err := unix.MemfdCreate("berth-wire", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	for rest := b; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return -1, fmt.Errorf("memfd: write: %w", err)
		}
		rest = rest[max(n, 0):]
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("memfd: seal: %w", err)
	}
	return fd, nil
}

// Recv waits for the next message. It returns io.EOF when the other side has
// closed.
func (c *Conn) Recv() (*Message, error) {
	rc, err := c.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		n, oobn, flags int
		rerr           error
	)
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), c.buf, c.oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			// ECONNRESET comes once, before what is still queued, when the other side closed
			// without having read all of ours. What it said before that counts.
			if !errors.Is(rerr, unix.EINTR) && !errors.Is(rerr, unix.ECONNRESET) {
				return !errors.Is(rerr, unix.EAGAIN)
			}
		}
	})
	if err != nil {
		return nil, closedOr(c.f, err)
	}
	if rerr != nil {
		return nil, fmt.Errorf("receive: %w", rerr)
	}
	files, err := parseFiles(c.oob[:oobn])
	m := &Message{Files: files}
	if err == nil {
		err = c.parse(m, n, flags)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (c *Conn) parse(m *Message, n, flags int) error {
	if n == 0 && len(m.Files) == 0 {
		return io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return fmt.Errorf("truncated packet: %w", ErrMalformed)
	}
	inMemfd, err := decodeHeader(m, c.buf[:n])
	if err != nil {
		return err
	}
	if inMemfd {
		if len(m.Files) == 0 || len(m.Body) > 0 {
			return fmt.Errorf("body in %d descriptors and %d bytes: %w", len(m.Files), len(m.Body), ErrMalformed)
		}
		last := len(m.Files) - 1
		body := m.Files[last]
		m.Files = m.Files[:last]
		defer body.Close()
		if m.Body, err = readMemfd(body); err != nil {
			return err
		}
	}
	if len(m.Files) > MaxFiles {
		return fmt.Errorf("%d descriptors: %w", len(m.Files), ErrMalformed)
	}
	return nil
}

// decodeHeader fills m from a packet; the body is copied, since the buffer is
// used again.
func decodeHeader(m *Message, packet []byte) (inMemfd bool, err error) {
	if len(packet) < headerSize || binary.LittleEndian.Uint16(packet) != magic {
		return false, fmt.Errorf("bad header: %w", ErrMalformed)
	}
	m.Kind = Kind(packet[2])
	m.Op = Op(binary.LittleEndian.Uint16(packet[4:]))
	m.ID = binary.LittleEndian.Uint64(packet[8:])
	if m.Kind < Request || m.Kind > Cancel {
		return false, fmt.Errorf("kind %d: %w", m.Kind, ErrMalformed)
	}
	if zero := binary.LittleEndian.Uint16(packet[6:]); packet[3]&^flagMemfd != 0 || zero != 0 {
		return false, fmt.Errorf("flags %#x, reserved %#x: %w", packet[3], zero, ErrMalformed)
	}
	m.Body = append([]byte(nil), packet[headerSize:]...)
	return packet[3]&flagMemfd != 0, nil
}

func readMemfd(f *os.File) ([]byte, error) {
	// Sealed, so that the sender cannot change it between the check and the use.
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if err != nil || seals&want != want {
		return nil, fmt.Errorf("body is no sealed memfd: %w", ErrMalformed)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("body: %w: %w", ErrMalformed, err)
	}
	if st.Size() > MaxBody {
		return nil, fmt.Errorf("body of %d bytes: %w", st.Size(), ErrTooLarge)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("body: %w: %w", ErrMalformed, err) // opened for writing only
	}
	return b, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w: %w", ErrMalformed, err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, fmt.Errorf("control message: %w: %w", ErrMalformed, err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}
