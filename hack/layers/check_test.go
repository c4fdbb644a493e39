// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package layers_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-cri/berth/hack/layers"
)

// small is a module of four layers, with each sort of rule once.
func small() layers.Rules {
	return layers.Rules{
		Module: "m",
		Rows: []layers.Row{
			{Package: "cmd", Level: 3, Imports: []string{"mid", "leaf"}},
			{Package: "tool/deep/*", Level: 3, Imports: []string{"leaf"}},
			{Package: "tool/*", Level: 3, Imports: []string{"tool/*"}},
			{Package: "tool/check", Level: 0},
			{Package: "mid", Level: 2, Imports: []string{"leaf"}},
			{Package: "mid2", Level: 2, Imports: []string{"base"}},
			{Package: "leaf", Level: 1, Imports: []string{"base"}, Tests: []string{"base2"}},
			{Package: "native", Level: 1},
			{Package: "base", Level: 0},
			{Package: "base2", Level: 0},
			{Package: "planned", Level: 0},
		},
		Owners: []layers.Owner{
			{Path: "x.org/rpc", In: []string{"mid", "tool/*"}, Why: "because"},
			{Path: "C", In: []string{"native"}, Why: "static"},
		},
		Closures: []layers.Closure{
			{From: "cmd", Never: []string{"x.org/heavy"}, NoCgo: true, Why: "lean"},
			{From: "planned", Never: []string{"m"}, Why: "not there yet"},
		},
		ForTests: []string{"tool/check"},
	}
}

// graph makes packages out of lines "PATH: IMPORT...", where a line may begin with "test " (the
// imports of tests), "cgo " (it has cgo files) or "broken " (it cannot be loaded).
func graph(cgo bool, lines ...string) layers.Graph {
	g := layers.Graph{Packages: make(map[string]*layers.Package), Cgo: cgo}
	for _, line := range lines {
		path, imports, _ := strings.Cut(line, ":")
		kind, path, ok := strings.Cut(path, " ")
		if !ok {
			kind, path = "", kind
		}
		p := g.Packages[path]
		if p == nil {
			p = &layers.Package{ImportPath: path}
			g.Packages[path] = p
		}
		switch kind {
		case "test":
			p.TestImports = strings.Fields(imports)
			continue
		case "xtest":
			p.XTestImports = strings.Fields(imports)
			continue
		case "cgo":
			p.CgoFiles = []string{"c.go"}
		case "std":
			p.Standard = true
			p.CgoFiles = []string{"c.go"}
		case "broken":
			p.Error = &struct{ Err string }{"no such thing"}
		}
		p.Imports = strings.Fields(imports)
	}
	return g
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name  string
		graph layers.Graph
		want  []string
	}{
		{"nothing", graph(true), nil},
		{
			"in order", graph(
				true,
				"m/cmd: m/mid m/leaf fmt x.org/light", "m/mid: m/leaf x.org/rpc x.org/rpc/codes", "m/leaf: m/base", "m/base:",
				"cgo m/native: C", "m/tool/a: m/tool/b m/tool/a/sub x.org/rpc", "m/tool/b:", "m/tool/check:", "m/tool/a/sub: m/tool/b",
				"x.org/light: x.org/rpcx", "std net: runtime/cgo",
			), nil,
		},
		{"unlisted", graph(true, "m/new: fmt"), []string{"m/new is not in the table of layers"}},
		{"unlisted, in the top folder", graph(true, "m: fmt"), []string{"m is not in the table of layers"}},
		{"unlisted, below a listed one", graph(true, "m/leaf/util:"), []string{"m/leaf/util is not in the table of layers"}},
		{"upward", graph(true, "m/leaf: m/mid", "m/mid:"), []string{"leaf imports mid: upward"}},
		{"sideways", graph(true, "m/mid: m/mid2", "m/mid2:"), []string{"mid imports mid2: sideways"}},
		{"down, but not named", graph(true, "m/mid: m/base", "m/base:"), []string{"mid imports base: which its row does not name"}},
		{"into a tool", graph(true, "m/leaf: m/tool/check"), []string{"leaf imports tool/check: which its row does not name"}},
		{"out of a tool", graph(true, "m/tool/a: m/leaf"), []string{"tool/a imports leaf: which its row does not name"}},
		{"a longer folder goes before a shorter one", graph(true, "m/tool/deep/a: m/leaf", "m/tool/b: m/tool/a"), nil},
		{"an exact row goes before a folder", graph(true, "m/tool/check: m/tool/a"), []string{"tool/check imports tool/a: upward"}},
		{
			"owned by others", graph(true, "m/leaf: x.org/rpc/codes", "m/mid: x.org/rpc"),
			[]string{"leaf imports x.org/rpc/codes, which only mid, tool/* may: because"},
		},
		{"a longer name is not below", graph(true, "m/leaf: x.org/rpcx"), nil},
		{"cgo elsewhere", graph(true, "cgo m/leaf: C"), []string{"leaf imports C, which only native may: static"}},
		{"cannot be loaded", graph(true, "broken m/leaf:"), []string{"leaf cannot be loaded: no such thing"}},
		{"cannot be loaded without cgo", graph(false, "broken m/native:"), nil},

		{"tests reach what their package reaches", graph(true, "test m/mid: m/leaf m/base m/tool/check", "xtest m/mid: m/mid m/base"), nil},
		{"tests import what only they may", graph(true, "test m/leaf: m/base2"), nil},
		{"not for tests only", graph(true, "m/leaf: m/base2"), []string{"leaf imports base2: which its row does not name"}},
		{"not for tests of those above", graph(true, "test m/mid: m/base2"), []string{"a test of mid imports base2: which its row does not name"}},
		{"test upward", graph(true, "test m/leaf: m/mid"), []string{"a test of leaf imports mid: upward"}},
		{"test sideways", graph(true, "xtest m/mid: m/mid2"), []string{"a test of mid imports mid2: sideways"}},
		{"test, not named", graph(true, "xtest m/mid: m/native"), []string{"a test of mid imports native: which its row does not name"}},
		{"test of a planned way", graph(true, "xtest m/leaf: x.org/rpc"), []string{"a test of leaf imports x.org/rpc, which only mid, tool/* may: because"}},

		{
			"forbidden in the closure", graph(true, "m/cmd: x.org/a m/leaf", "m/leaf:", "x.org/a: x.org/b", "x.org/b: x.org/heavy/sub", "x.org/heavy/sub:"),
			[]string{"cmd must not reach x.org/heavy (lean): cmd → x.org/a → x.org/b → x.org/heavy/sub"},
		},
		{"forbidden for cmd, not for others", graph(true, "m/cmd: m/leaf", "m/leaf:", "m/mid: x.org/heavy", "x.org/heavy:"), nil},
		{
			"cgo in the closure", graph(true, "m/cmd: m/leaf", "m/leaf: x.org/a", "cgo x.org/a: C"),
			[]string{"cmd must not reach cgo (lean): cmd → leaf → x.org/a"},
		},
		{"cgo of the standard library", graph(true, "m/cmd: net", "std net: runtime/cgo"), nil},
		{
			"does not build without cgo", graph(false, "m/cmd: x.org/a", "broken x.org/a:"),
			[]string{"cmd must build without cgo (lean): cmd → x.org/a: no such thing"},
		},
		{"a ring of others", graph(true, "m/cmd: x.org/a", "x.org/a: x.org/b", "x.org/b: x.org/a"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := small().Check(c.graph); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// row finds a row to spoil.
func row(r *layers.Rules, name string) *layers.Row {
	i := slices.IndexFunc(r.Rows, func(row layers.Row) bool { return row.Package == name })
	return &r.Rows[i]
}

func TestCheckSelf(t *testing.T) {
	if got := small().CheckSelf(); got != nil {
		t.Errorf("the rules of these tests: %q", got)
	}
	for _, c := range []struct {
		name  string
		spoil func(*layers.Rules)
		want  string
	}{
		{"two rows", func(r *layers.Rules) { r.Rows = append(r.Rows, layers.Row{Package: "mid"}) }, "mid has two rows"},
		{"no row", func(r *layers.Rules) { row(r, "mid").Imports = []string{"lost"} }, "the row of mid names lost, which has no row"},
		{"sideways", func(r *layers.Rules) { row(r, "mid").Imports = []string{"mid2"} }, "the row of mid names mid2, which is not below it"},
		{"upward", func(r *layers.Rules) { row(r, "mid").Imports = []string{"cmd"} }, "the row of mid names cmd, which is not below it"},
		{"tests upward", func(r *layers.Rules) { row(r, "mid").Tests = []string{"cmd"} }, "the row of mid names cmd, which is not below it"},
		{"itself", func(r *layers.Rules) { row(r, "mid").Imports = []string{"mid"} }, "the row of mid names mid, which is not below it"},
		{"owner", func(r *layers.Rules) { r.Owners[0].In = []string{"lost"} }, "x.org/rpc is owned by lost, which has no row"},
		{"closure", func(r *layers.Rules) { r.Closures[0].From = "lost" }, "lost has a closure, but no row"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := small()
			c.spoil(&r)
			if got := r.CheckSelf(); !slices.Equal(got, []string{c.want}) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestTable breaks each rule of the real table that no package breaks today, so that a row which is
// loosened by mistake is seen.
func TestTable(t *testing.T) {
	m := layers.Table().Module + "/"
	for _, c := range []struct {
		name  string
		graph layers.Graph
		want  string // part of the only problem; nothing: in order
	}{
		{"grpc in cri/streaming", graph(true, m+"cri/streaming: google.golang.org/grpc/codes"), ""},
		{"grpc in sandbox", graph(true, m+"sandbox: google.golang.org/grpc"), "sandbox imports google.golang.org/grpc, which only "},
		{"libcontainer in oci", graph(true, m+"oci: github.com/opencontainers/runc/libcontainer"), "oci imports github.com/opencontainers/runc/libcontainer"},
		{"bbolt in image", graph(true, m+"image: go.etcd.io/bbolt"), "image imports go.etcd.io/bbolt"},
		{"bbolt in store/content", graph(true, m+"store/content: go.etcd.io/bbolt"), "store/content imports go.etcd.io/bbolt"},
		{"cgo in oci/ns", graph(true, m+"oci/ns: C"), "oci/ns imports C"},
		{"keeper in oci", graph(true, m+"oci: "+m+"oci/keeper"), "oci imports oci/keeper: which its row does not name"},
		{"executor in oci", graph(true, m+"oci: "+m+"oci/executor"), "oci imports oci/executor: sideways"},
		{"store in the executor", graph(true, m+"oci/executor: "+m+"store"), "oci/executor imports store: which its row does not name"},
		{"executor in berth", graph(true, m+"cmd/berth: "+m+"oci/executor"), "cmd/berth imports oci/executor: which its row does not name"},
		{"image in network", graph(true, m+"network: "+m+"image"), "network imports image: sideways"},
		{"cri in sandbox", graph(true, m+"sandbox: "+m+"cri"), "sandbox imports cri: upward"},
		{"leak in a test", graph(true, "xtest "+m+"oci/wire: "+m+"hack/leak"), ""},
		{"leak in code", graph(true, m+"oci/wire: "+m+"hack/leak"), "oci/wire imports hack/leak: which its row does not name"},
		{"berth in a tool", graph(true, m+"hack/bench: "+m+"sandbox"), "hack/bench imports sandbox: which its row does not name"},
		{"net/http in the executor", graph(true, m+"oci/executor: a", "a: net/http", "net/http:"), "oci/executor must not reach net/http"},
		{"cri-api in the executor", graph(true, m+"cmd/berth-executor: a", "a: k8s.io/cri-api/pkg/apis/runtime/v1", "k8s.io/cri-api/pkg/apis/runtime/v1:"), "cmd/berth-executor must not reach k8s.io/cri-api"},
		{"cgo in berth", graph(true, m+"cmd/berth: a", "cgo a:"), "cmd/berth must not reach cgo"},
		{"libcontainer behind berth", graph(true, m+"cmd/berth: a", "a: github.com/opencontainers/runc/x", "github.com/opencontainers/runc/x:"), "cmd/berth must not reach github.com/opencontainers/runc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := layers.Table().Check(c.graph)
			switch {
			case c.want == "" && len(got) > 0, c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)):
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCheckTopLevel(t *testing.T) {
	r := layers.Rules{TopLevel: []string{"cmd", "Makefile"}}
	got := r.CheckTopLevel([]string{".git", ".golangci.yml", "Makefile", "cmd", "docs", "main.go"})
	want := []string{"docs does not belong into the top folder", "main.go does not belong into the top folder"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestCheckDoc(t *testing.T) {
	const licence = "// Copyright The berth Authors.\n\n"
	for _, c := range []struct {
		name    string
		pkg     string
		doc     string // of doc.go; nothing: no such file
		other   string // of other.go
		problem string
	}{
		{"package", "x", "// Package x does.\npackage x", "package x", ""},
		{"command", "main", "// Command y does.\npackage main", "package main", ""},
		{"program by its name", "main", "// Y does.\npackage main", "package main", ""},
		{"no file", "x", "", "package x", "no package comment in doc.go"},
		{"no comment", "x", licence + "package x", "package x", "no package comment in doc.go"},
		{"another name", "x", "// Package z does.\npackage x", "package x", `must begin with "Package x"`},
		{"a longer name", "x", "// Package xs does.\npackage x", "package x", `must begin with "Package x"`},
		{"another command", "main", "// Package main does.\npackage main", "package main", `must begin with "Command y" or "Y"`},
		{"twice", "x", "// Package x does.\npackage x", "// Package x does.\npackage x", "the package comment in other.go belongs into doc.go"},
		{"a licence as comment", "x", "// Package x does.\npackage x", strings.TrimSpace(licence) + "\npackage x", "the package comment in other.go belongs into doc.go"},
		{"broken", "x", "// Package x does.\npackage x", "pakage", "expected 'package'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &layers.Package{ImportPath: "m/y", Name: c.pkg, Dir: t.TempDir()}
			for name, text := range map[string]string{"doc.go": c.doc, "other.go": c.other} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(p.Dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				p.GoFiles = append(p.GoFiles, name)
			}
			got := layers.CheckDoc(p)
			if c.problem == "" && len(got) > 0 || c.problem != "" && (len(got) != 1 || !strings.Contains(got[0], c.problem)) {
				t.Errorf("got %q, want %q", got, c.problem)
			}
		})
	}
}

// TestLoad loads a real module that breaks what it can, with and without tags and cgo.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":           "module m\n\ngo 1.26\n",
		"cmd/main.go":      "package main\n\nimport _ \"m/native\"\n\nfunc main() {}\n",
		"native/c.go":      "package native\n\nimport \"C\"\n",
		"leaf/leaf.go":     "package leaf\n",
		"leaf/tagged.go":   "//go:build special\n\npackage leaf\n\nimport _ \"m/base\"\n",
		"leaf/tag_test.go": "//go:build special\n\npackage leaf_test\n\nimport _ \"m/mid\"\n",
		"base/base.go":     "package base\n",
		"mid/mid.go":       "package mid\n\nimport _ \"x.org/absent\"\n",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rules := small()
	cmd := row(&rules, "cmd")
	cmd.Imports = append(cmd.Imports, "native")
	for _, c := range []struct {
		name, tags string
		cgo        bool
		want       []string // beginnings of the problems
	}{
		{"plain", "", true, []string{"cmd must not reach cgo (lean): cmd → native"}},
		{"tags", "special", true, []string{"a test of leaf imports mid: upward", "cmd must not reach cgo (lean): cmd → native"}},
		{"without cgo", "", false, []string{"cmd must build without cgo (lean): cmd → native: build constraints exclude all Go files"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, err := layers.Load(t.Context(), dir, c.tags, c.cgo)
			if err != nil {
				t.Fatal(err)
			}
			got := rules.Check(g)
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
	if _, err := layers.Load(t.Context(), filepath.Join(dir, "absent"), "", true); err == nil {
		t.Error("a folder that is not there has no packages")
	}
}
