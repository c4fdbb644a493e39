// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Row says what one package may import of this module. Paths are relative to the module, and one that
// ends in /* stands for every package below that folder.
type Row struct {
	Package string
	Level   int
	Imports []string
	Tests   []string // what its tests may import besides what it reaches by the table
	Why     string   // where it is not plain
}

// Owner says that only some packages may import what lies at or below a path: a package of somebody
// else, or "C" for cgo. What they in turn are linked with is the business of Closure.
type Owner struct {
	Path string
	In   []string
	Why  string
}

// Closure says what a package must not be linked with, directly or through others.
type Closure struct {
	From  string
	Never []string // paths at or below which nothing may be reached
	NoCgo bool     // nothing outside the standard library may use cgo
	Why   string
}

// Rules are the layers of a module.
type Rules struct {
	Module   string
	Rows     []Row
	Owners   []Owner
	Closures []Closure
	ForTests []string // what test files may import besides what their package may reach
	TopLevel []string // names that the top folder may hold besides dot files
}

// Check returns what in a graph breaks the rules, sorted; nothing if it is in order.
func (r Rules) Check(g Graph) []string {
	c := checker{rules: r, graph: g}
	for _, p := range g.Packages {
		if rel, ours := r.relative(p.ImportPath); ours {
			c.own(rel, p)
		}
	}
	for _, closure := range r.Closures {
		c.closure(closure)
	}
	slices.Sort(c.problems)
	return slices.Compact(c.problems)
}

// CheckSelf returns what is wrong with the rules themselves: a row that names what has no row, or what
// is not below it.
func (r Rules) CheckSelf() []string {
	var c checker
	seen := make(map[string]bool)
	for _, row := range r.Rows {
		if seen[row.Package] {
			c.add("%s has two rows", row.Package)
		}
		seen[row.Package] = true
		for _, imp := range slices.Concat(row.Imports, row.Tests) {
			switch target, ok := r.row(imp); {
			case !ok:
				c.add("the row of %s names %s, which has no row", row.Package, imp)
			case target.Package == row.Package && strings.HasSuffix(imp, "/*"):
				// The packages of one folder may import one another.
			case target.Level >= row.Level:
				c.add("the row of %s names %s, which is not below it", row.Package, imp)
			}
		}
	}
	for _, owner := range r.Owners {
		for _, in := range owner.In {
			if !slices.ContainsFunc(r.Rows, func(row Row) bool { return matches(in, row.Package) }) {
				c.add("%s is owned by %s, which has no row", owner.Path, in)
			}
		}
	}
	for _, closure := range r.Closures {
		if _, ok := r.row(closure.From); !ok {
			c.add("%s has a closure, but no row", closure.From)
		}
	}
	return c.problems
}

// CheckTopLevel returns the names in the top folder that the rules do not allow.
func (r Rules) CheckTopLevel(names []string) []string {
	var c checker
	for _, name := range names {
		if !strings.HasPrefix(name, ".") && !slices.Contains(r.TopLevel, name) {
			c.add("%s does not belong into the top folder", name)
		}
	}
	return c.problems
}

// relative cuts the module's path off where there is one. The package in the top folder, which there
// should not be, keeps its path.
func (r Rules) relative(path string) (rel string, ours bool) {
	rel, ours = strings.CutPrefix(path, r.Module+"/")
	return rel, ours || path == r.Module
}

// row finds the row for a package, or for a pattern as it stands in a row. An exact row goes before a
// folder, a longer folder before a shorter one.
func (r Rules) row(rel string) (Row, bool) {
	var (
		best  Row
		found bool
	)
	for _, row := range r.Rows {
		if row.Package == rel {
			return row, true
		}
		if matches(row.Package, rel) && len(row.Package) > len(best.Package) {
			best, found = row, true
		}
	}
	return best, found
}

// reach adds to seen what a row reaches by the table.
func (r Rules) reach(from Row, seen map[string]bool) {
	for _, imp := range from.Imports {
		if !seen[imp] {
			seen[imp] = true
			if row, ok := r.row(imp); ok {
				r.reach(row, seen)
			}
		}
	}
}

// matches reports whether a pattern of a row stands for a package.
func matches(pattern, rel string) bool {
	if folder, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(rel, folder)
	}
	return pattern == rel
}

func anyMatches(patterns []string, rel string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, rel) })
}

// atOrBelow reports whether an import path is path or lies below it.
func atOrBelow(imported, path string) bool {
	return imported == path || strings.HasPrefix(imported, path+"/")
}

// checker collects problems.
type checker struct {
	rules    Rules
	graph    Graph
	problems []string
}

func (c *checker) add(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// own checks one package of the module.
func (c *checker) own(rel string, p *Package) {
	row, ok := c.rules.row(rel)
	if !ok {
		c.add("%s is not in the table of layers", p.ImportPath)
		return
	}
	// Without cgo a package that is all cgo cannot be loaded; whether that matters is for closures.
	if p.Error != nil && c.graph.Cgo {
		c.add("%s cannot be loaded: %s", rel, p.Error.Err)
	}
	for _, imp := range p.Imports {
		c.imported(rel, row, imp, row.Imports, "")
	}
	reachable := make(map[string]bool)
	c.rules.reach(row, reachable)
	forTests := slices.Concat(slices.Collect(maps.Keys(reachable)), row.Tests, c.rules.ForTests, []string{rel})
	for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
		c.imported(rel, row, imp, forTests, "a test of ")
	}
}

// imported checks one import; of says whose file it is in.
func (c *checker) imported(rel string, row Row, imp string, allowed []string, of string) {
	for _, owner := range c.rules.Owners {
		if atOrBelow(imp, owner.Path) && !anyMatches(owner.In, rel) {
			c.add("%s%s imports %s, which only %s may: %s", of, rel, imp, strings.Join(owner.In, ", "), owner.Why)
		}
	}
	target, ours := c.rules.relative(imp)
	if !ours || anyMatches(allowed, target) {
		return
	}
	targetRow, ok := c.rules.row(target)
	if !ok {
		return // reported as unlisted itself
	}
	way := "which its row does not name"
	switch {
	case targetRow.Level > row.Level:
		way = "upward"
	case targetRow.Level == row.Level:
		way = "sideways"
	}
	c.add("%s%s imports %s: %s", of, rel, target, way)
}

// closure walks what a package is linked with, and names the way to what it must not reach.
func (c *checker) closure(rule Closure) {
	start := c.rules.Module + "/" + rule.From
	if c.graph.Packages[start] == nil {
		return // planned
	}
	from := map[string]string{start: ""} // package → by whom it was reached
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		p := c.graph.Packages[queue[0]]
		if p == nil {
			continue // "C", "unsafe", or vendored in the standard library
		}
		c.linked(rule, p, func() string { return c.way(from, p.ImportPath) })
		for _, imp := range p.Imports {
			if _, seen := from[imp]; !seen {
				from[imp] = p.ImportPath
				queue = append(queue, imp)
			}
		}
	}
}

// linked checks one package that is reached by a closure.
func (c *checker) linked(rule Closure, p *Package, way func() string) {
	for _, never := range rule.Never {
		if atOrBelow(p.ImportPath, never) {
			c.add("%s must not reach %s (%s): %s", rule.From, never, rule.Why, way())
		}
	}
	if !rule.NoCgo || p.Standard {
		return
	}
	if len(p.CgoFiles) > 0 {
		c.add("%s must not reach cgo (%s): %s", rule.From, rule.Why, way())
	}
	if p.Error != nil && !c.graph.Cgo {
		c.add("%s must build without cgo (%s): %s: %s", rule.From, rule.Why, way(), p.Error.Err)
	}
}

// way writes how a package was reached.
func (c *checker) way(from map[string]string, path string) string {
	var steps []string
	for p := path; p != ""; p = from[p] {
		rel, _ := c.rules.relative(p)
		steps = append(steps, rel)
	}
	slices.Reverse(steps)
	return strings.Join(steps, " → ")
}
