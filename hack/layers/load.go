// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Package is what of `go list -json` is looked at.
type Package struct {
	ImportPath   string
	Name         string
	Dir          string
	Standard     bool
	GoFiles      []string
	CgoFiles     []string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

// Graph is the packages of a module and all that they are linked with, by import path, as one build
// sees them.
type Graph struct {
	Packages map[string]*Package
	Cgo      bool
}

// Load asks go list for the packages of the module in dir and all that they import. Packages that cannot
// be loaded are in the graph with their Error.
func Load(ctx context.Context, dir, tags string, cgo bool) (Graph, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e", "-deps", "-tags="+tags,
		"-json=ImportPath,Name,Dir,Standard,GoFiles,CgoFiles,Imports,TestImports,XTestImports,Error", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if cgo {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return Graph{}, fmt.Errorf("go list: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	g := Graph{Packages: make(map[string]*Package), Cgo: cgo}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(Package)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return Graph{}, fmt.Errorf("go list: %w", err)
		}
		g.Packages[p.ImportPath] = p
	}
}

// CheckDoc returns what is wrong with the package comment: it stands in doc.go and there only, and
// begins, as go doc shows it, with the name.
func CheckDoc(p *Package) []string {
	var c checker
	found := false
	for _, name := range append(p.GoFiles, p.CgoFiles...) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		switch {
		case err != nil:
			c.add("%s: %v", p.ImportPath, err)
		case f.Doc == nil:
		case name != "doc.go":
			c.add("%s: the package comment in %s belongs into doc.go", p.ImportPath, name)
		default:
			found = true
			c.problems = append(c.problems, checkText(p, f.Doc)...)
		}
	}
	if !found {
		c.add("%s: no package comment in doc.go", p.ImportPath)
	}
	return c.problems
}

func checkText(p *Package, doc *ast.CommentGroup) []string {
	want := []string{"Package " + p.Name}
	if p.Name == "main" {
		name := p.ImportPath[strings.LastIndexByte(p.ImportPath, '/')+1:]
		want = []string{"Command " + name, strings.ToUpper(name[:1]) + name[1:]}
	}
	text := doc.Text()
	for _, w := range want {
		if strings.HasPrefix(text, w+" ") {
			return nil
		}
	}
	return []string{fmt.Sprintf(`%s: the package comment must begin with "%s"`, p.ImportPath, strings.Join(want, `" or "`))}
}
