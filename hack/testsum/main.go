// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
)

func main() {
	module := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		module = info.Main.Path
	}
	os.Exit(run(os.Args[1:], module, os.Stdin, os.Stdout, os.Stderr))
}

// run is main with everything that it touches as arguments; it returns the exit status.
func run(args []string, module string, in io.Reader, out, errOut io.Writer) int {
	flags := flag.NewFlagSet("testsum", flag.ContinueOnError)
	flags.SetOutput(errOut)
	var (
		skipsFile = flags.String("skips", "hack/skips.txt", "`file` of allowed skips")
		save      = flags.String("save", "", "keep the results in this `file`")
		total     = flags.Bool("total", false, "add up kept results instead of reading a test run")
		complete  = flags.Bool("complete", false, "with -total: these are the results of all tests")
	)
	if err := flags.Parse(args); err != nil {
		return 2
	}
	fail := func(err error) int {
		fmt.Fprintf(errOut, "testsum: %v\n", err)
		return 2
	}
	allowed, err := readSkips(*skipsFile)
	if err != nil {
		return fail(err)
	}
	if *total {
		results, err := load(flags.Args())
		if err != nil {
			return fail(err)
		}
		var stale []string
		if *complete {
			stale = allowed.stale(results)
		}
		return results.conclude(out, stale)
	}
	results, problems, err := summarize(in, out, module, allowed)
	if err != nil {
		return fail(err)
	}
	if *save != "" {
		if err := results.save(*save); err != nil {
			return fail(err)
		}
	}
	return results.conclude(out, problems)
}
