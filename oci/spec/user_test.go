// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"errors"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

const (
	passwd = `# comment: 0:0
root:x:0:0:root:/root:/bin/sh
+nis::0:0:::
app:x:1000:1001:App,,,:/home/app:/bin/sh
app:x:0:0:again:/root:/bin/sh
0123x:x:0:0:::
77:x:0:0:a number as a name:/root:
overflow:x:4294967296:0:::
negative:x:-1:0:::
last:x:4294967294:4294967294:::
nobody:x:65534:65534::/nonexistent
short:x
bare:x:5:6
big:x:4294967295:0:::
badgid:x:50:4294967296:::
`
	group = `root:x:0:
app:x:1001:
wheel:x:10:root,app
audio:x:63:app
wheel:x:11:nobody
nothing
-nis:x:99:app
bad:x:x:app
dup:x:10:app
spaced:x:12: app
88:x:0:
`
	securityField = "container.linux.security_context."
)

func resolve(s *cri.LinuxContainerSecurityContext, user string) (spec.User, error) {
	return spec.ResolveUser(s, user, strings.NewReader(passwd), strings.NewReader(group))
}

func id(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

func TestResolveUser(t *testing.T) {
	type sc = cri.LinuxContainerSecurityContext
	app := spec.User{UID: 1000, GID: 1001, Groups: []uint32{1001, 10, 63}, Name: "app", Home: "/home/app"}
	root := spec.User{Groups: []uint32{0, 10}, Name: "root", Home: "/root"}
	change := func(u spec.User, change func(*spec.User)) spec.User { change(&u); return u }
	for name, tc := range map[string]struct {
		s     *sc
		image string
		want  spec.User
		field string
	}{
		"nothing":                {nil, "", root, ""},
		"image: name":            {nil, "app", app, ""},
		"image: uid":             {nil, "1000", app, ""},
		"image: uid with zeros":  {nil, "001000", app, ""},
		"image: zero":            {nil, "0", root, ""},
		"image: unknown uid":     {nil, "4242", spec.User{UID: 4242, Groups: []uint32{0}}, ""},
		"image: uid:gid":         {nil, "1000:7", change(app, func(u *spec.User) { u.GID, u.Groups = 7, []uint32{7, 10, 63} }), ""},
		"image: name:gid":        {nil, "app:7", change(app, func(u *spec.User) { u.GID, u.Groups = 7, []uint32{7, 10, 63} }), ""},
		"image: name:group":      {nil, "app:wheel", change(app, func(u *spec.User) { u.GID, u.Groups = 10, []uint32{10, 63} }), ""},
		"image: uid:group":       {nil, "4242:audio", spec.User{UID: 4242, GID: 63, Groups: []uint32{63}}, ""},
		"image: the last uid":    {nil, "4294967294:4294967294", spec.User{UID: 4294967294, GID: 4294967294, Groups: []uint32{4294967294}, Name: "last"}, ""},
		"image: few fields":      {nil, "bare", spec.User{UID: 5, GID: 6, Groups: []uint32{6}, Name: "bare"}, ""},
		"image: dotted name":     {nil, "nobody", spec.User{UID: 65534, GID: 65534, Groups: []uint32{65534, 11}, Name: "nobody", Home: "/nonexistent"}, ""},
		"image: name as number":  {nil, "77", spec.User{UID: 77, Groups: []uint32{0}}, ""}, // a number is never a name
		"image: group as number": {nil, "app:88", change(app, func(u *spec.User) { u.GID, u.Groups = 88, []uint32{88, 10, 63} }), ""},

		"image: unknown name":     {nil, "nobody2", spec.User{}, "image.config.User"},
		"image: unknown group":    {nil, "app:staff", spec.User{}, "image.config.User"},
		"image: uid too large":    {nil, "4294967295", spec.User{}, "image.config.User"},
		"image: uid wraps to 0":   {nil, "4294967296", spec.User{}, "image.config.User"},
		"image: uid beyond int64": {nil, "18446744073709551616", spec.User{}, "image.config.User"},
		"image: uid of 65 digits": {nil, strings.Repeat("9", 65), spec.User{}, "image.config.User"},
		"image: negative uid":     {nil, "-1", spec.User{}, "image.config.User"},
		"image: signed uid":       {nil, "+1000", spec.User{}, "image.config.User"},
		"image: hexadecimal":      {nil, "0x3e8", spec.User{}, "image.config.User"},
		"image: number and name":  {nil, "0123x", spec.User{}, "image.config.User"}, // which passwd has
		"image: exponent":         {nil, "1e3", spec.User{}, "image.config.User"},
		"image: space before":     {nil, " 1000", spec.User{}, "image.config.User"},
		"image: space after":      {nil, "1000 ", spec.User{}, "image.config.User"},
		"image: other digits":     {nil, "１０００", spec.User{}, "image.config.User"},
		"image: empty group":      {nil, "1000:", spec.User{}, "image.config.User"},
		"image: empty user":       {nil, ":1000", spec.User{}, "image.config.User"},
		"image: colon":            {nil, ":", spec.User{}, "image.config.User"},
		"image: two colons":       {nil, "1000:1000:0", spec.User{}, "image.config.User"},
		"image: gid wraps to 0":   {nil, "1000:4294967296", spec.User{}, "image.config.User"},
		"image: negative gid":     {nil, "1000:-1", spec.User{}, "image.config.User"},
		"image: newline":          {nil, "app\nroot", spec.User{}, "image.config.User"},
		"image: zero byte":        {nil, "app\x00", spec.User{}, "image.config.User"},
		"image: no text":          {nil, "\xff", spec.User{}, "image.config.User"},
		"image: far too long":     {nil, strings.Repeat("a", 257), spec.User{}, "image.config.User"},
		"image: comment's name":   {nil, "# comment", spec.User{}, "image.config.User"},
		"image: NIS":              {nil, "+nis", spec.User{}, "image.config.User"},
		"image: bad uid in file":  {nil, "overflow", spec.User{}, "image.config.User"},
		"image: bad uid, signed":  {nil, "negative", spec.User{}, "image.config.User"},
		"image: −1 in file":       {nil, "big", spec.User{}, "image.config.User"},
		"image: bad gid in file":  {nil, "badgid", spec.User{}, "image.config.User"},

		"uid":                 {&sc{RunAsUser: id(1000)}, "root", app, ""},
		"uid 0":               {&sc{RunAsUser: id(0)}, "app", root, ""},
		"unknown uid":         {&sc{RunAsUser: id(9)}, "app:wheel", spec.User{UID: 9, Groups: []uint32{0}}, ""},
		"uid, bad image user": {&sc{RunAsUser: id(1000)}, "-1", app, ""},
		"uid and gid":         {&sc{RunAsUser: id(1000), RunAsGroup: id(0)}, "", change(app, func(u *spec.User) { u.GID, u.Groups = 0, []uint32{0, 10, 63} }), ""},
		"name":                {&sc{RunAsUsername: "app"}, "", app, ""},
		"name and gid":        {&sc{RunAsUsername: "app", RunAsGroup: id(5)}, "", change(app, func(u *spec.User) { u.GID, u.Groups = 5, []uint32{5, 10, 63} }), ""},
		"the last ids":        {&sc{RunAsUser: id(4294967294), RunAsGroup: id(4294967294)}, "", spec.User{UID: 4294967294, GID: 4294967294, Groups: []uint32{4294967294}, Name: "last"}, ""},

		"uid and name":           {&sc{RunAsUser: id(1000), RunAsUsername: "app"}, "", spec.User{}, securityField + "run_as_username"},
		"gid alone":              {&sc{RunAsGroup: id(5)}, "app", spec.User{}, securityField + "run_as_group"},
		"negative uid":           {&sc{RunAsUser: id(-1)}, "", spec.User{}, securityField + "run_as_user"},
		"uid too large":          {&sc{RunAsUser: id(4294967295)}, "", spec.User{}, securityField + "run_as_user"},
		"uid wraps to 0":         {&sc{RunAsUser: id(1 << 32)}, "", spec.User{}, securityField + "run_as_user"},
		"gid wraps to 0":         {&sc{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, "", spec.User{}, securityField + "run_as_group"},
		"unknown name":           {&sc{RunAsUsername: "nobody2"}, "", spec.User{}, securityField + "run_as_username"},
		"name that is a number":  {&sc{RunAsUsername: "77"}, "", spec.User{}, securityField + "run_as_username"},
		"name with group":        {&sc{RunAsUsername: "app:root"}, "", spec.User{}, securityField + "run_as_username"},
		"name with newline":      {&sc{RunAsUsername: "app\n"}, "", spec.User{}, securityField + "run_as_username"},
		"negative group":         {&sc{SupplementalGroups: []int64{5, -1}}, "", spec.User{}, securityField + "supplemental_groups[1]"},
		"group too large":        {&sc{SupplementalGroups: []int64{1 << 32}}, "", spec.User{}, securityField + "supplemental_groups[0]"},
		"unknown policy":         {&sc{SupplementalGroupsPolicy: 2}, "", spec.User{}, securityField + "supplemental_groups_policy"},
		"more groups than there": {&sc{SupplementalGroups: count(65537)}, "", spec.User{}, securityField + "supplemental_groups"},

		"merged groups":            {&sc{RunAsUser: id(1000), SupplementalGroups: []int64{5, 10, 5}}, "", change(app, func(u *spec.User) { u.Groups = []uint32{1001, 10, 63, 5} }), ""},
		"strict groups":            {&sc{RunAsUser: id(1000), SupplementalGroups: []int64{5, 10, 5}, SupplementalGroupsPolicy: 1}, "", change(app, func(u *spec.User) { u.Groups = []uint32{1001, 5, 10} }), ""},
		"strict, none":             {&sc{RunAsUser: id(1000), SupplementalGroupsPolicy: 1}, "", change(app, func(u *spec.User) { u.Groups = []uint32{1001} }), ""},
		"strict, image's group":    {&sc{SupplementalGroupsPolicy: 1}, "app:wheel", change(app, func(u *spec.User) { u.GID, u.Groups = 10, []uint32{10} }), ""},
		"merged, of no known user": {&sc{RunAsUser: id(9), SupplementalGroups: []int64{5}}, "", spec.User{UID: 9, Groups: []uint32{0, 5}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(tc.s, tc.image)
			if tc.field != "" {
				refused(t, err, tc.field, spec.ErrInvalid)
				if !reflect.DeepEqual(got, spec.User{}) {
					t.Errorf("an error, and %+v", got)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v, %v;\nwant %+v", got, err, tc.want)
			}
		})
	}
}

func count(n int) []int64 {
	list := make([]int64, n)
	for i := range list {
		list[i] = int64(i)
	}
	return list
}

// What is no name is not looked up, even if the file has a line for it: that would be the way to root.
func TestNoNames(t *testing.T) {
	for _, name := range []string{
		"-1", "+1", "1000a", "0x0", "4294967295", "4294967296", "18446744073709551616", "a b", " a", "a\tb", "a\x00b", "\x7f", "a,b", "a/b", "..//", "\xff",
		strings.Repeat("a", 257),
	} {
		file := "x:x:1:1::/:\n" + name + ":x:0:0::/root:\n"
		for _, ask := range []struct {
			s     *cri.LinuxContainerSecurityContext
			image string
			field string
		}{
			{nil, name, "image.config.User"},
			{nil, "x:" + name, "image.config.User"},
			{&cri.LinuxContainerSecurityContext{RunAsUsername: name}, "", securityField + "run_as_username"},
		} {
			u, err := spec.ResolveUser(ask.s, ask.image, strings.NewReader(file), strings.NewReader(file))
			refused(t, err, ask.field, spec.ErrInvalid)
			if err == nil {
				t.Errorf("%q is %+v", name, u)
			}
		}
	}
}

// What a kubelet is told of an image's user, and sends back, ends in the same user or in an error: never
// in root, which is what it takes an image for that has neither a number nor a name.
func TestImageUser(t *testing.T) {
	for _, s := range []string{
		"", "app", "1000", "0", "app:wheel", "1000:7", "4294967294", "4294967295", "4294967296", "-1", "1000a", "1000:", ":1000", ":", "a b", "\xff", "77", "0x0", "nobody2",
	} {
		uid, name := spec.ImageUser(s)
		if s != "" && uid == nil && name == "" {
			t.Errorf("ImageUser(%q) says root", s)
			continue
		}
		sent := &cri.LinuxContainerSecurityContext{RunAsUsername: name}
		if uid != nil {
			sent.RunAsUser = id(*uid)
		}
		want, wantErr := resolve(nil, s)
		got, err := resolve(sent, "")
		if (err == nil) != (wantErr == nil) || got.UID != want.UID {
			t.Errorf("%q by way of the kubelet: %+v, %v; by itself: %+v, %v", s, got, err, want, wantErr)
		}
	}
}

func TestUserFiles(t *testing.T) {
	s := &cri.LinuxContainerSecurityContext{RunAsUsername: "app"}
	if _, err := spec.ResolveUser(s, "", nil, nil); err == nil {
		t.Error("a name is found in no file")
	}
	if u, err := spec.ResolveUser(nil, "", nil, nil); err != nil || u.UID != 0 || !slices.Equal(u.Groups, []uint32{0}) || u.Home != "" {
		t.Errorf("an image without files: %+v, %v", u, err)
	}
	line := "app:x:1:2::/app:\n"
	for name, tc := range map[string]struct {
		passwd, group io.Reader
		field         string
	}{
		"endless passwd":      {endless("x:x:9:9:::\n"), nil, "image:/etc/passwd"},
		"endless line":        {endless("x"), nil, "image:/etc/passwd"},
		"endless group":       {strings.NewReader(line), endless("x:x:9:app\n"), "image:/etc/group"},
		"one line of members": {strings.NewReader(line), endless("x:x:9:app,app,app,app"), "image:/etc/group"},
		"line of 256 KiB":     {strings.NewReader(strings.Repeat("a", 256<<10) + "\n" + line), nil, "image:/etc/passwd"},
		"5 MB of comments":    {strings.NewReader(strings.Repeat("#\n", 5<<19) + line), nil, "image:/etc/passwd"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := spec.ResolveUser(s, "", tc.passwd, tc.group)
		runtime.ReadMemStats(&after)
		refused(t, err, tc.field, spec.ErrInvalid)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
			t.Errorf("%s: %d bytes allocated", name, grown)
		}
	}
	// Just within the bounds.
	long := strings.Repeat("#"+strings.Repeat("a", 255<<10)+"\n", 16) + line
	if u, err := spec.ResolveUser(s, "", strings.NewReader(long), nil); err != nil || u.UID != 1 {
		t.Errorf("within the bounds: %+v, %v", u, err)
	}
	boom := errors.New("boom")
	if _, err := spec.ResolveUser(s, "", iotest.ErrReader(boom), nil); !errors.Is(err, boom) {
		t.Errorf("a file that cannot be read: %v", err)
	}
	// A file that is not needed is not read.
	if _, err := spec.ResolveUser(&cri.LinuxContainerSecurityContext{RunAsUser: id(1), SupplementalGroupsPolicy: 1}, "", strings.NewReader(line), iotest.ErrReader(boom)); err != nil {
		t.Errorf("a file that is not needed: %v", err)
	}
}

// endless reads as one text after the other, far longer than what is taken.
func endless(text string) io.Reader { return io.LimitReader(forever(text), 64<<20) }

// forever never ends.
type forever string

func (e forever) Read(p []byte) (int, error) {
	for n := 0; ; {
		n += copy(p[n:], e)
		if n == len(p) {
			return n, nil
		}
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("app", passwd, group, int64(-1), "", false)
	f.Add("1000:wheel", passwd, group, int64(5), "", true)
	f.Add("", "root:x:0:0", "", int64(1000), "", false)
	f.Add("4294967296", "4294967296:x:0:0", "", int64(-1), "", false)
	f.Add("", "a:x:7:7\xff\x00:::", "g:x:8:a,a,a", int64(-1), "a", false)
	f.Fuzz(func(t *testing.T, image, passwd, group string, uid int64, name string, strict bool) {
		s := &cri.LinuxContainerSecurityContext{RunAsUsername: name}
		if uid >= 0 {
			s.RunAsUser = id(uid)
		}
		if strict {
			s.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		}
		run := func() (spec.User, error) {
			return spec.ResolveUser(s, image, strings.NewReader(passwd), iotest.OneByteReader(strings.NewReader(group)))
		}
		u, err := run()
		again, errAgain := run()
		if !reflect.DeepEqual(u, again) || (err == nil) != (errAgain == nil) {
			t.Fatalf("%+v, %v; then %+v, %v", u, err, again, errAgain)
		}
		if err != nil {
			var fe *spec.FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("error without a field: %v", err)
			}
			return
		}
		if len(u.Groups) == 0 || u.Groups[0] != u.GID || u.UID == 1<<32-1 || u.GID == 1<<32-1 {
			t.Fatalf("user %+v", u)
		}
		if strict && len(u.Groups) > 1 {
			t.Fatalf("strict, and groups of the image: %+v", u)
		}
		if uid >= 0 && int64(u.UID) != uid {
			t.Fatalf("asked for uid %d, got %+v", uid, u)
		}
		// Root is who is root by an honest number, by a name that the file gives to 0, or by saying nothing.
		asked, _, _ := strings.Cut(image, ":")
		if name != "" {
			asked = name
		}
		if u.UID == 0 && uid < 0 && asked != "" && strings.Trim(asked, "0") != "" && !strings.Contains(passwd, asked+":") {
			t.Fatalf("%q is root by no rule: %+v", asked, u)
		}
	})
}
