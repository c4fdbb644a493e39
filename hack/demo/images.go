// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// images is a registry on the loopback interface.
type images struct {
	server *http.Server
	addr   string
}

func serveImages() (*images, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i := &images{addr: l.Addr().String(), server: &http.Server{
		Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 10 * time.Second,
	}}
	go func() { _ = i.server.Serve(l) }()
	return i, nil
}

func (i *images) close() { i.server.Close() }

// applets are the commands of busybox that the image has.
func applets() []string {
	return []string{"sh", "cat", "echo", "ls", "ps", "uname", "wget", "sleep", "ip", "hostname", "id", "env", "top", "mount", "df"}
}

// push makes an image of a static busybox and of a web server, and pushes it.
func (i *images) push(ctx context.Context, web string) (string, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("%w (the Debian package busybox-static has it; make deps installs it)", err)
	}
	server, err := os.ReadFile(web)
	if err != nil {
		return "", err
	}
	var base, app archive
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		base.add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	base.add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\n"))
	base.add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	base.add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, a := range applets() {
		base.add(tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	app.add(tar.Header{Name: "bin/web", Mode: 0o755}, server)
	img := empty.Image
	for _, a := range []*archive{&base, &app} {
		layer, err := a.layer()
		if err != nil {
			return "", err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return "", err
		}
	}
	img, err = mutate.Config(img, v1.Config{Cmd: []string{"/bin/web"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		return "", err
	}
	tag, err := name.NewTag(i.addr + "/demo/web:1")
	if err != nil {
		return "", err
	}
	return tag.String(), remote.Write(tag, img, remote.WithContext(ctx))
}

// archive is a layer's.
type archive struct {
	buf bytes.Buffer
	tar *tar.Writer
	err error
}

func (a *archive) add(h tar.Header, content []byte) {
	if a.tar == nil {
		a.tar = tar.NewWriter(&a.buf)
	}
	h.Size = int64(len(content))
	a.err = errors.Join(a.err, a.tar.WriteHeader(&h))
	_, err := a.tar.Write(content)
	a.err = errors.Join(a.err, err)
}

func (a *archive) layer() (v1.Layer, error) {
	if err := errors.Join(a.err, a.tar.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(a.buf.Bytes())), nil })
}
