// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		asked cri.Signal
		image string
		want  syscall.Signal // 0: refused
	}{
		{0, "", 15},
		{0, "SIGQUIT", 3},
		{0, "QUIT", 3},
		{0, "sigquit", 3},
		{0, "SIGCLD", 17},
		{0, "SIGPOLL", 29},
		{0, "SIGIOT", 6},
		{0, "3", 3},
		{0, "64", 64},
		{0, "33", 33},
		{0, "SIGRTMIN", 34},
		{0, "RTMIN+3", 37},
		{0, "rtmin+0", 34},
		{0, "SIGRTMAX-2", 62},
		{0, "SIGRTMIN+30", 64},
		{0, "SIGRTMAX-30", 34},
		{cri.Signal_SIGNAL_SIGUSR1, "SIGQUIT", 10},
		{cri.Signal_SIGNAL_SIGRTMINPLUS15, "", 49},
		{cri.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50},
		{cri.Signal_SIGNAL_SIGRTMAX, "nonsense", 64}, // the image's does not count

		{0, "0", 0},
		{0, "65", 0},
		{0, "-9", 0},
		{0, "+9", 0},
		{0, " 9", 0},
		{0, "9 ", 0},
		{0, "0x9", 0},
		{0, "9999999999999999999999", 0},
		{0, "SIG", 0},
		{0, "SIG9", 0},
		{0, "SIGSIGTERM", 0},
		{0, "SIGNONE", 0},
		{0, "SIGRTMIN-1", 0},
		{0, "SIGRTMIN+31", 0},
		{0, "SIGRTMAX+1", 0},
		{0, "SIGRTMAX-31", 0},
		{0, "SIGRTMIN3", 0},
		{0, "SIGRTMIN+", 0},
		{0, "SIGRTMIN+-1", 0},
		{0, "SIGTERM\x00", 0},
		{999, "", 0},
		{-1, "", 0},
	} {
		got, err := spec.StopSignal(tc.asked, tc.image)
		if tc.want == 0 {
			field := "image.config.StopSignal"
			if tc.asked != 0 {
				field = "container.stop_signal"
			}
			refused(t, err, field, spec.ErrInvalid)
		} else if err != nil || got != tc.want {
			t.Errorf("StopSignal(%v, %q) = %d, %v; want %d", tc.asked, tc.image, got, err, tc.want)
		}
	}
}

// Every value of the CRI is a signal, and the one that a C program knows by that name.
func TestEverySignal(t *testing.T) {
	for value, name := range cri.Signal_name {
		if value == 0 {
			continue
		}
		got, err := spec.StopSignal(cri.Signal(value), "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		name = strings.TrimPrefix(name, "SIGNAL_")
		if want := unix.SignalNum(name); want != 0 && got != want {
			t.Errorf("%s = %d; want %d", name, got, want)
		}
		back := spec.CRISignal(got)
		if again, err := spec.StopSignal(back, ""); err != nil || again != got {
			t.Errorf("%s is %d, which is %s", name, got, back)
		}
	}
	for n, want := range map[syscall.Signal]cri.Signal{
		6: cri.Signal_SIGNAL_SIGABRT, 17: cri.Signal_SIGNAL_SIGCHLD, 29: cri.Signal_SIGNAL_SIGIO,
		0: 0, 32: 0, 33: 0, 65: 0, -1: 0,
	} {
		if got := spec.CRISignal(n); got != want {
			t.Errorf("CRISignal(%d) = %s; want %s", n, got, want)
		}
	}
}

func FuzzStopSignal(f *testing.F) {
	for _, s := range []string{"", "SIGTERM", "15", "RTMIN+3", "SIGRTMAX-1", "sigsig", "\xff", "ſigterm"} {
		f.Add(int32(0), s)
	}
	f.Add(int32(35), "")
	f.Fuzz(func(t *testing.T, asked int32, image string) {
		if got, err := spec.StopSignal(cri.Signal(asked), image); err == nil && (got < 1 || got > 64) {
			t.Errorf("StopSignal(%d, %q) = %d", asked, image, got)
		}
	})
}
