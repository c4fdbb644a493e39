// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package registry_test

import (
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/image/registry"
)

// TestFullDisk fetches what does not fit: the error says so, the registry is not asked again, and the
// connection is let go of.
func TestFullDisk(t *testing.T) {
	folder := t.TempDir()
	leak.Check(t, leak.Mounts(folder))
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := start(t, nil)
	img := s.image(t, "app", "v1", 64<<20)
	ended := make(chan struct{})
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
		<-r.Context().Done()
		close(ended)
	})
	err := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), img.layers[0], openStoreAt(t, folder), nil)
	wantErr(t, err, unix.ENOSPC)
	wantText(t, err, s.host+"/app:v1: ", "storing blob "+img.layers[0].Digest.String(), "no space left on device")
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the connection is still there")
	}
	if n := len(s.asked()); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
