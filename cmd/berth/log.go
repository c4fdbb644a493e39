// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

// textLogger writes klog's text format to stderr. Libraries that use klog by themselves
// go the same way.
func textLogger(level int) klog.Logger {
	l := textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(level), textlogger.Output(os.Stderr)))
	klog.SetLogger(l)
	return l
}

// jsonLogger writes a JSON object for each line.
func jsonLogger(level int) klog.Logger {
	h := slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-level)})
	klog.SetSlogLogger(slog.New(h))
	return klog.Background()
}
