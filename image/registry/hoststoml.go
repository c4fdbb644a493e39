// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"golang.org/x/net/http/httpguts"
)

// hostTable is what can be said about one host. Several keys take more than one type, as they do with
// containerd.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // FILE or [FILE, ...]
	Client       any            `toml:"client"` // FILE, [FILE, ...] or [[CERTIFICATE, KEY], ...]
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // NAME = VALUE or [VALUE, ...]
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// hostsTable is a hosts.toml. What stands at its top is about the server.
type hostsTable struct {
	hostTable
	Server string               `toml:"server"`
	Host   map[string]hostTable `toml:"host"`
}

// hostsParser reads one hosts.toml.
type hostsParser struct {
	file  string
	lines map[string]int // key, its parts joined with NUL, → line
	order []string       // hosts, as their tables come
}

// parseHosts reads a hosts.toml: its hosts in their order, then the server. Where none is named the
// server's name is empty. Errors name the file, the line and the key.
func parseHosts(file string, b []byte) ([]hostConfig, error) {
	p := &hostsParser{file: file, lines: make(map[string]int)}
	var t hostsTable
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, p.decodeError(err)
	}
	if err := p.survey(b); err != nil {
		return nil, err
	}
	if len(p.order) != len(t.Host) {
		return nil, p.errorf([]string{"host"}, `write each host as a table of its own, [host."URL"]: their order counts`)
	}
	hosts := make([]hostConfig, 0, len(p.order)+1)
	for _, name := range p.order {
		h, err := p.host([]string{"host", name}, name, t.Host[name])
		if err != nil {
			return nil, err
		}
		if h.host == "" {
			return nil, p.errorf([]string{"host", name}, "a host needs a name")
		}
		hosts = append(hosts, h)
	}
	server, err := p.host(nil, t.Server, t.hostTable)
	if err != nil {
		return nil, err
	}
	return append(hosts, server), nil
}

// survey notes where keys are and in which order the hosts come, which decoding does not tell.
func (p *hostsParser) survey(b []byte) error {
	var parser unstable.Parser
	parser.Reset(b)
	seen := make(map[string]bool)
	var table []string
	for parser.NextExpression() {
		e := parser.Expression()
		var key []string
		if e.Kind == unstable.KeyValue {
			key = append(key, table...)
		}
		line := 0
		for it := e.Key(); it.Next(); {
			n := it.Node()
			key = append(key, string(n.Data))
			line = parser.Shape(n.Raw).Start.Line
		}
		if e.Kind == unstable.Table {
			table = key
		}
		if id := strings.Join(key, "\x00"); p.lines[id] == 0 {
			p.lines[id] = line
		}
		if len(key) >= 2 && key[0] == "host" && !seen[key[1]] {
			seen[key[1]] = true
			p.order = append(p.order, key[1])
			if id := key[0] + "\x00" + key[1]; p.lines[id] == 0 {
				p.lines[id] = line
			}
		}
	}
	return parser.Error()
}

// host reads what is said about one host, whose table's key is at.
func (p *hostsParser) host(at []string, server string, t hostTable) (hostConfig, error) {
	h := hostConfig{skipVerify: t.SkipVerify}
	key := func(name string) []string { return append(at[:len(at):len(at)], name) }
	if server != "" {
		where := at
		if len(at) == 0 {
			where = key("server")
		}
		if err := p.address(&h, where, server, t.OverridePath); err != nil {
			return h, err
		}
	}
	if err := p.capabilities(&h, key("capabilities"), t.Capabilities); err != nil {
		return h, err
	}
	var err error
	if h.ca, err = p.files(key("ca"), t.CA); err != nil {
		return h, err
	}
	if h.client, err = p.pairs(key("client"), t.Client); err != nil {
		return h, err
	}
	if h.header, err = p.header(key("header"), t.Header); err != nil {
		return h, err
	}
	if t.DialTimeout != "" {
		if h.dial, err = time.ParseDuration(t.DialTimeout); err != nil || h.dial <= 0 {
			return h, p.errorf(key("dial_timeout"), "%q is no duration above zero, as %q is", t.DialTimeout, "3s")
		}
	}
	return h, nil
}

func (p *hostsParser) address(h *hostConfig, at []string, server string, override bool) error {
	if !strings.Contains(server, "://") {
		server = schemeHTTPS + "://" + server
	}
	u, err := url.Parse(server)
	switch {
	case err != nil || u.Host == "":
		return p.errorf(at, "%q is no URL", clean(server))
	case u.User != nil:
		return p.errorf(at, "a URL here has no user and no password: credentials come with the pull")
	case u.Scheme != schemeHTTP && u.Scheme != schemeHTTPS:
		return p.errorf(at, "%q: is to begin with https:// or http://", clean(server))
	case u.RawQuery != "" || u.Fragment != "":
		return p.errorf(at, "%q: is to be host, port and path", clean(server))
	}
	h.scheme, h.host, h.path = u.Scheme, u.Host, u.Path
	if h.path != "" {
		h.path = path.Clean(h.path)
	}
	if !override && !strings.HasSuffix(h.path, "/v2") {
		h.path = strings.TrimSuffix(h.path, "/") + "/v2"
	}
	h.path = strings.TrimSuffix(h.path, "/")
	return nil
}

func (p *hostsParser) capabilities(h *hostConfig, at []string, names []string) error {
	if len(names) == 0 {
		h.pull, h.resolve = true, true
	}
	for _, name := range names {
		switch strings.ToLower(name) {
		case "pull":
			h.pull = true
		case "resolve":
			h.resolve = true
		case "push", "referrers": // what nobody asks of it here
		default:
			return p.errorf(at, "%q is none of pull, resolve, push, referrers", clean(name))
		}
	}
	return nil
}

// files reads FILE or [FILE, ...]; relative ones are beside hosts.toml.
func (p *hostsParser) files(at []string, v any) ([]string, error) {
	list, ok := stringList(v)
	if !ok {
		return nil, p.errorf(at, "is to be the path of a file, or a list of them")
	}
	for i := range list {
		list[i] = p.beside(list[i])
	}
	return list, nil
}

// pairs reads FILE, [FILE, ...] or [[CERTIFICATE, KEY], ...].
func (p *hostsParser) pairs(at []string, v any) ([][2]string, error) {
	items, ok := v.([]any)
	if !ok && v != nil {
		items = []any{v}
	}
	var pairs [][2]string
	for _, item := range items {
		files, ok := stringList(item)
		_, single := item.(string)
		switch {
		case ok && single:
			pairs = append(pairs, [2]string{p.beside(files[0]), ""})
		case ok && len(files) == 2:
			pairs = append(pairs, [2]string{p.beside(files[0]), p.beside(files[1])})
		default:
			return nil, p.errorf(at, "is to be a file with certificate and key, a list of such, or a list of pairs [CERTIFICATE, KEY]")
		}
	}
	return pairs, nil
}

func (p *hostsParser) header(at []string, table map[string]any) (http.Header, error) {
	if len(table) == 0 {
		return nil, nil
	}
	header := make(http.Header, len(table))
	for name, v := range table {
		where := append(at[:len(at):len(at)], name)
		values, ok := stringList(v)
		if !ok || len(values) == 0 {
			return nil, p.errorf(where, "is to be a text, or a list of texts")
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, p.errorf(where, "is no name of a header")
		}
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return nil, p.errorf(where, "has a value with characters that no header may have") // which may be a secret
			}
			header.Add(name, value)
		}
	}
	return header, nil
}

func (p *hostsParser) beside(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(filepath.Dir(p.file), file)
}

// errorf says what is wrong with a key, and where.
func (p *hostsParser) errorf(key []string, format string, args ...any) error {
	line := 0
	for n := len(key); n > 0 && line == 0; n-- {
		line = p.lines[strings.Join(key[:n], "\x00")]
	}
	return p.at(line, key, fmt.Sprintf(format, args...))
}

func (p *hostsParser) at(line int, key []string, what string) error {
	where := p.file
	if line > 0 {
		where = fmt.Sprintf("%s:%d", p.file, line)
	}
	if len(key) > 0 {
		return fmt.Errorf("%w: %s: %s: %s", ErrConfig, where, printKey(key), what)
	}
	return fmt.Errorf("%w: %s: %s", ErrConfig, where, what)
}

// decodeError puts what the library found into our form.
func (p *hostsParser) decodeError(err error) error {
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		e := &unknown.Errors[0]
		line, _ := e.Position()
		return p.at(line, e.Key(), "unknown key; known are server, [host.\"URL\"] and in each capabilities, ca, client, skip_verify, [header], override_path, dial_timeout")
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := e.Position()
		return p.at(line, e.Key(), strings.TrimPrefix(e.Error(), "toml: "))
	}
	return p.at(0, nil, err.Error())
}

// printKey writes a key as it stands in a file.
func printKey(key []string) string {
	parts := make([]string, len(key))
	for i, part := range key {
		if part == "" || strings.ContainsAny(part, ".:/ \"") {
			part = fmt.Sprintf("%q", part)
		}
		parts[i] = part
	}
	return strings.Join(parts, ".")
}

// stringList reads a text or a list of texts; nothing is the empty list.
func stringList(v any) ([]string, bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case string:
		return []string{v}, true
	case []any:
		list := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, false
			}
			list[i] = s
		}
		return list, true
	}
	return nil, false
}
