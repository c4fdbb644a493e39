// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// print writes the report for a person: a table for each phase, the ratios, the failures.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "kernel %s, %d CPUs, image %s, medians of %d rounds\n", r.Kernel, r.CPUs, r.Image, r.Rounds)
	for i, e := range r.Endpoints {
		fmt.Fprintf(w, "%c: %s at %s\n", 'A'+i, e.Version, e.Address)
	}
	for _, p := range phases() {
		load, fsync, measured := r.conditions(p.name)
		if !measured {
			continue
		}
		fmt.Fprintf(w, "\n%s: %s (load %.2f, fsync p50 %s ms)\n", p.name, p.about, load, figures(fsync))
		writeTable(w, r.phaseTable(p))
	}
	if len(r.Ratios) > 0 {
		fmt.Fprint(w, "\nratios\n")
		writeTable(w, r.ratioTable())
	}
	for _, f := range r.Failures {
		fmt.Fprintf(w, "\nFAILED in round %d: %s on %s: %s", f.Round, f.Phase, f.Endpoint, f.Error)
	}
	if len(r.Failures) > 0 {
		fmt.Fprintln(w)
	}
}

// phaseTable has a row for each measure, and p50, p95 and p99 for each endpoint.
func (r *report) phaseTable(p phase) [][]string {
	var columns, names []string
	if p.machine {
		columns, names = []string{machine}, []string{""}
	}
	for i, e := range r.Endpoints {
		if !p.machine {
			columns, names = append(columns, e.Address), append(names, string(rune('A'+i))+" ")
		}
	}
	head := []string{"", "unit"}
	for _, name := range names {
		head = append(head, name+"p50", name+"p95", name+"p99")
	}
	table := [][]string{head}
	var seen []string
	for _, f := range r.Figures {
		if f.Phase != p.name || slices.Contains(seen, f.Name) {
			continue
		}
		seen = append(seen, f.Name)
		row := []string{f.Name, string(f.Unit)}
		note := ""
		for _, column := range columns {
			own, ok := r.figure(p.name, column, f.Name)
			if !ok {
				row = append(row, "-", "-", "-")
				continue
			}
			if own.Single {
				row = append(row, figures(own.P50), "", "")
			} else {
				row = append(row, figures(own.P50), figures(own.P95), figures(own.P99))
			}
			if own.Rounds < r.Rounds {
				note = fmt.Sprintf("only %d of %d rounds", own.Rounds, r.Rounds)
			}
		}
		if note != "" {
			row = append(row, note)
		}
		table = append(table, row)
	}
	return table
}

// ratioTable has a row for each pair of figures.
func (r *report) ratioTable() [][]string {
	table := [][]string{{"", "A/B p50", "A/B p99", "A/floor", "B/floor", "A is"}}
	for _, c := range r.Ratios {
		word := ""
		if c.P50 != nil {
			word = verdict(*c.P50, c.Unit)
		}
		table = append(table, []string{
			c.Phase + ": " + c.Name, times(c.P50), times(c.P99), times(c.Floor), times(c.PeerFloor), word,
		})
	}
	return table
}

func times(ratio *float64) string {
	if ratio == nil {
		return "-"
	}
	return figures(*ratio) + "×"
}

// figures writes three significant figures, and whole numbers whole.
func figures(v float64) string {
	decimals := 0
	switch abs := max(v, -v); {
	case abs == 0 || abs >= 100:
	case abs >= 10:
		decimals = 1
	case abs >= 1:
		decimals = 2
	default:
		decimals = 3
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

// writeTable aligns columns: the first to the left, numbers to the right. Rows may differ in length.
func writeTable(w io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line.WriteString(cell + pad)
			} else {
				line.WriteString("  " + pad + cell)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
