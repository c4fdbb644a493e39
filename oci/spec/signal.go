// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strconv"
	"strings"
	"syscall"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as programs know them: glibc keeps the first two of the kernel's for itself.
const (
	sigRTMin = 34
	sigRTMax = 64

	defaultStopSignal = syscall.Signal(15) // SIGTERM
)

// signalNumber returns the number of a signal's name without SIG, in upper case: those of
// include/uapi/asm-generic/signal.h, the same on every architecture that berth is built for.
func signalNumber(name string) (int, bool) {
	names := [...]string{
		1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 5: "TRAP", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL",
		10: "USR1", 11: "SEGV", 12: "USR2", 13: "PIPE", 14: "ALRM", 15: "TERM", 16: "STKFLT", 17: "CHLD",
		18: "CONT", 19: "STOP", 20: "TSTP", 21: "TTIN", 22: "TTOU", 23: "URG", 24: "XCPU", 25: "XFSZ",
		26: "VTALRM", 27: "PROF", 28: "WINCH", 29: "IO", 30: "PWR", 31: "SYS",
	}
	switch name {
	case "":
		return 0, false
	case "IOT":
		name = "ABRT"
	case "CLD":
		name = "CHLD"
	case "POLL":
		name = "IO"
	}
	for n, known := range names {
		if known == name {
			return n, true
		}
	}
	for _, from := range []struct {
		name string
		base int
		sign string
	}{{"RTMIN", sigRTMin, "+"}, {"RTMAX", sigRTMax, "-"}} {
		rest, ok := strings.CutPrefix(name, from.name)
		if !ok {
			continue
		}
		if rest == "" {
			return from.base, true
		}
		digits, signed := strings.CutPrefix(rest, from.sign)
		distance, ok := decimal(digits, sigRTMax-sigRTMin)
		if !signed || !ok {
			return 0, false
		}
		if from.sign == "-" {
			distance = -distance
		}
		return from.base + distance, true
	}
	return 0, false
}

// decimal reads digits and nothing else.
func decimal(s string, most int) (int, bool) {
	if s == "" || len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= most
}

// StopSignal returns the signal that asks a container to end: the one of its config, else the image's,
// else SIGTERM. The image's is a name with or without SIG, in any case ("SIGQUIT", "rtmin+3"), or a
// number from 1 to 64; anything else is an error, at the time when somebody can still do something
// about it.
func StopSignal(asked cri.Signal, image string) (syscall.Signal, error) {
	if asked != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		n, ok := signalOf(asked)
		if !ok {
			return 0, invalid("container.stop_signal", "%s: no such signal", asked)
		}
		return n, nil
	}
	if image == "" {
		return defaultStopSignal, nil
	}
	if n, ok := decimal(image, sigRTMax); ok && n > 0 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(image)
	n, ok := signalNumber(strings.TrimPrefix(name, "SIG"))
	if !ok {
		return 0, invalid("image.config.StopSignal", "%.80q: no such signal", image)
	}
	return syscall.Signal(n), nil
}

// signalOf reads SIGNAL_SIGTERM, SIGNAL_SIGRTMINPLUS3, SIGNAL_SIGRTMAXMINUS2.
func signalOf(s cri.Signal) (syscall.Signal, bool) {
	name, ok := strings.CutPrefix(s.String(), "SIGNAL_SIG")
	if !ok {
		return 0, false
	}
	name = strings.NewReplacer("RTMINPLUS", "RTMIN+", "RTMAXMINUS", "RTMAX-").Replace(name)
	n, ok := signalNumber(name)
	return syscall.Signal(n), ok
}

// CRISignal is the CRI's value for a signal, for a container's status. Of two names for one signal it is
// the first, which is the common one (CHLD, ABRT, IO). The CRI has none for 32 and 33, which gives SIGNAL_RUNTIME_DEFAULT.
func CRISignal(s syscall.Signal) cri.Signal {
	for value := cri.Signal_SIGNAL_SIGABRT; value <= cri.Signal_SIGNAL_SIGRTMAX; value++ {
		if n, ok := signalOf(value); ok && n == s {
			return value
		}
	}
	return cri.Signal_SIGNAL_RUNTIME_DEFAULT
}
