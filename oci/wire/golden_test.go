// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/wire"
)

var rewrite = flag.Bool("rewrite", false, "add what is new to testdata; nothing is ever taken away")

// golden holds a line for each number, code, word and field of the protocol.
const golden = "testdata/protocol.golden"

// TestProtocol pins what two binaries of different releases agree on. A line that
// is missing breaks the older one, so it fails whatever -rewrite says; a line that
// is new has to be written down, for the next release's sake.
func TestProtocol(t *testing.T) {
	now := protocol(t)
	b, err := os.ReadFile(golden)
	if err != nil && !*rewrite {
		t.Fatal(err)
	}
	before := strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
	gone, added := compare(before, now)
	for _, line := range gone {
		t.Errorf("%s has %q, and the code no longer: what was released is only ever added to", golden, line)
	}
	if *rewrite && len(gone) == 0 {
		if err := os.WriteFile(golden, []byte(strings.Join(now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, line := range added {
		t.Errorf("new: %q; if that is meant, add it with -rewrite", line)
	}
}

func compare(before, now []string) (gone, added []string) {
	for _, line := range before {
		if !slices.Contains(now, line) {
			gone = append(gone, line)
		}
	}
	for _, line := range now {
		if !slices.Contains(before, line) {
			added = append(added, line)
		}
	}
	return gone, added
}

// messages are the bodies, each by what it is for.
func messages() []any {
	return []any{
		wire.Hello{},
		wire.HelloReply{},
		wire.Answer{},
		wire.Error{},
		wire.Target{},
		wire.Targets{},
		wire.PodCreate{},
		wire.Create{},
		wire.Created{},
		wire.Rootfs{},
		wire.Size{},
		wire.Signal{},
		wire.Update{},
		wire.Exec{},
		wire.ExecTarget{},
		wire.Attach{},
		wire.AttachReply{},
		wire.Resize{},
		wire.Ack{},
		wire.Exit{},
		wire.StatsReply{},
		wire.Observed{},
		wire.Container{},
		wire.ExecState{},
		wire.Unreadable{},
		wire.Replace{},
		wire.Report{},
	}
}

// protocol returns the lines of the golden file, as the code has them now.
func protocol(t *testing.T) []string {
	t.Helper()
	decls := parse(t)
	var lines []string
	for _, c := range decls.consts {
		switch c.typ {
		case "Op", "Kind", "Code", "State":
			lines = append(lines, fmt.Sprintf("%s %s = %s", c.typ, c.name, c.value))
		case "":
			if ast.IsExported(c.name) && strings.HasPrefix(c.value, `"`) {
				lines = append(lines, fmt.Sprintf("word %s = %s", c.name, c.value))
			}
		}
	}
	for _, m := range messages() {
		typ := reflect.TypeOf(m)
		b, err := json.Marshal(filled(typ).Interface())
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fields(typ.Name(), v)...)
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// fields lists the paths in a decoded JSON value, with the kind of what is there.
func fields(path string, v any) []string {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || path == "Create.Spec" || path == "Exec.Process" { // the runtime specification's own
			return []string{path + " object"}
		}
		var list []string
		for key, value := range v {
			list = append(list, fields(path+"."+key, value)...)
		}
		return list
	case []any:
		return fields(path+"[]", v[0])
	case string:
		if _, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return []string{path + " time"}
		}
		return []string{path + " string"}
	case float64:
		return []string{path + " number"}
	case bool:
		return []string{path + " bool"}
	}
	panic(fmt.Sprintf("%s is a %T: filled has not filled it", path, v))
}

// filled returns a value of which nothing is empty, so that no field is omitted;
// types of other packages, which have their own tests, are as they come.
func filled(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	switch t {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1, 2).UTC()))
		return v
	case reflect.TypeFor[json.RawMessage]():
		v.SetBytes([]byte("{}"))
		return v
	}
	switch t.Kind() {
	case reflect.Struct:
		if t.PkgPath() == reflect.TypeFor[wire.Hello]().PkgPath() {
			for i := range t.NumField() {
				v.Field(i).Set(filled(t.Field(i).Type))
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		v.Elem().Set(filled(t.Elem()))
	case reflect.Slice:
		v.Set(reflect.Append(v, filled(t.Elem())))
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		v.SetMapIndex(reflect.ValueOf("*"), filled(t.Elem()))
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(1)
	default:
		v.SetInt(1)
	}
	return v
}

type constant struct{ name, typ, value string }

type declarations struct {
	consts  []constant
	structs []string
}

// parse reads the package's source, so that what somebody adds is seen.
func parse(t *testing.T) declarations {
	t.Helper()
	var d declarations
	for _, name := range []string{"messages.go", "conn.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				d.add(t, spec)
			}
		}
	}
	return d
}

func (d *declarations) add(t *testing.T, spec ast.Spec) {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		_, isStruct := spec.Type.(*ast.StructType)
		_, isMap := spec.Type.(*ast.MapType)
		if spec.Name.IsExported() && (isStruct || isMap) {
			d.structs = append(d.structs, spec.Name.Name)
		}
	case *ast.ValueSpec:
		typ, _ := spec.Type.(*ast.Ident)
		for i, name := range spec.Names {
			c := constant{name: name.Name}
			if typ != nil {
				c.typ = typ.Name
			}
			if i < len(spec.Values) {
				if lit, ok := spec.Values[i].(*ast.BasicLit); ok {
					c.value = lit.Value
				}
			}
			if c.typ != "" && c.value == "" {
				t.Fatalf("constant %s: a number of the protocol is written out, not counted", c.name)
			}
			d.consts = append(d.consts, c)
		}
	}
}

// A message that nobody has entered into messages would be pinned by nothing.
func TestEveryMessageIsPinned(t *testing.T) {
	var known []string
	for _, m := range messages() {
		known = append(known, reflect.TypeOf(m).Name())
	}
	for _, name := range parse(t).structs {
		if name != "Message" && name != "Conn" && !slices.Contains(known, name) {
			t.Errorf("%s is not in the list of messages", name)
		}
	}
}

func TestOps(t *testing.T) {
	numbers := make(map[wire.Op]string)
	words := make(map[string]string)
	for _, c := range parse(t).consts {
		if c.typ != "Op" {
			continue
		}
		n, err := strconv.ParseUint(c.value, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		op := wire.Op(n)
		if other := numbers[op]; other != "" {
			t.Errorf("%s and %s have the same number", other, c.name)
		}
		numbers[op] = c.name
		if word := op.String(); word == fmt.Sprintf("op %d", n) {
			t.Errorf("%s has no name for people", c.name)
		} else if other := words[word]; other != "" {
			t.Errorf("%s and %s have the same name", other, c.name)
		} else {
			words[word] = c.name
		}
	}
	for _, op := range []wire.Op{0, 999, 65535} {
		if got, want := op.String(), fmt.Sprintf("op %d", op); got != want {
			t.Errorf("unknown operation is %q, want %q", got, want)
		}
	}
}

// The comparison itself: it is what stands between a release and a broken node.
func TestCompare(t *testing.T) {
	tests := []struct {
		name                     string
		before, now, gone, added []string
	}{
		{name: "equal", before: []string{"a"}, now: []string{"a"}},
		{name: "added", now: []string{"a"}, added: []string{"a"}},
		{name: "gone", before: []string{"a", "b"}, now: []string{"b"}, gone: []string{"a"}},
		{name: "changed", before: []string{"Op OpStart = 5"}, now: []string{"Op OpStart = 6"}, gone: []string{"Op OpStart = 5"}, added: []string{"Op OpStart = 6"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			gone, added := compare(tt.before, tt.now)
			if cmp.Or(slices.Compare(gone, tt.gone), slices.Compare(added, tt.added)) != 0 {
				t.Errorf("gone %q, added %q", gone, added)
			}
		})
	}
}
