// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
)

// links lists network links of the calling thread's network namespace.
func links(sc *scope, all bool) (things, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	seen := make(things)
	for _, l := range list {
		if all || len(sc.links) == 0 || matchAny(sc.links, l.Name) {
			seen[fmt.Sprintf("%d %s", l.Index, l.Name)] = fmt.Sprintf("%s (index %d, %s)", l.Name, l.Index, l.Flags)
		}
	}
	return seen, nil
}

// rules lists chains and rules of iptables. The tools are asked rather than the kernel because only
// they show legacy and nft tables in one form.
func rules(sc *scope, all bool) (things, error) {
	seen := make(things)
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(tool).Output()
		if err != nil {
			if tool == "ip6tables-save" {
				continue // IPv6 may be off or not installed; then there are no rules to leave
			}
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
			}
			return nil, fmt.Errorf("%s: %w", tool, err)
		}
		for _, rule := range parseRules(string(out)) {
			own := len(sc.rules) == 0 || slices.ContainsFunc(sc.rules, func(w string) bool { return strings.Contains(rule, w) })
			if !all && !own {
				continue
			}
			// The same rule may stand there twice, and one of the two may be new.
			id := tool + " " + rule
			for seen[id] != "" {
				id += "+"
			}
			seen[id] = fmt.Sprintf("%s (%s)", rule, strings.TrimSuffix(tool, "-save"))
		}
	}
	return seen, nil
}

// parseRules turns the output of iptables-save into lines of "table: chain" and "table: rule". The
// counters of a chain are dropped, since they change by themselves.
func parseRules(text string) []string {
	var (
		list  []string
		table string
	)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			list = append(list, table+": chain "+name)
		case strings.HasPrefix(line, "-"):
			list = append(list, table+": "+line)
		}
	}
	return list
}
