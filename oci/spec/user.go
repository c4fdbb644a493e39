// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// User is whom a container runs as, by numbers.
type User struct {
	UID, GID uint32
	// Groups are the supplementary ones, and GID first: a process that changes its primary group would
	// else leave the one by which files may be denied to it (CVE-2022-2995, CVE-2023-25173).
	Groups []uint32
	Name   string // "" where the image has none for UID
	Home   string // "" likewise
}

const (
	// maxID is the last uid and gid: 2³²−1 means "no change" to the kernel.
	maxID = 1<<32 - 2

	// maxGroups is the kernel's NGROUPS_MAX.
	maxGroups = 65536

	// maxName bounds a name of a user or a group, in bytes, as useradd(8) and more do.
	maxName = 256
)

// ResolveUser finds out whom a container runs as. It is pure: passwd and group are the image's files, or
// nil where it has none. They are read once, as far as needed, and refused where they are larger than any
// real one (4 MiB, or a line of 256 KiB).
//
//	run_as_user       a uid; passwd may have a name, a gid and a home for it
//	run_as_username   a name that has to be in passwd; a number is not a name
//	neither           the image's USER: "name", "uid", "name:group", "uid:gid", mixed; empty is root
//	run_as_group      replaces the primary group; refused without one of the first two
//	groups            Merge: those of group that name the user, and supplemental_groups
//	                  Strict: supplemental_groups alone
//
// A number is decimal digits, 0 to 2³²−2. What is neither that nor a name, as "-1", "0x0", "4294967296",
// "1000a" or "1000:", is refused: to look it up as a name, or to wrap it, would end in root
// (CVE-2024-40635, CVE-2026-46680).
func ResolveUser(s *cri.LinuxContainerSecurityContext, imageUser string, passwd, group io.Reader) (User, error) {
	w, err := wantedUser(s, imageUser)
	if err != nil {
		return User{}, err
	}
	var u User
	entry, found, err := findUser(passwd, w.user)
	if err != nil {
		return User{}, err
	}
	switch {
	case found:
		u = User{UID: entry.uid, GID: entry.gid, Name: entry.name, Home: entry.home}
	case w.user.isName:
		return User{}, invalid(w.field, "user %q is not in the image's /etc/passwd", w.user.name)
	default:
		u = User{UID: w.user.id}
	}
	merge := s.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Merge
	db, err := findGroups(group, w.group, u.Name, merge)
	if err != nil {
		return User{}, err
	}
	switch {
	case w.group == nil:
	case !w.group.isName:
		u.GID = w.group.id
	case db.named:
		u.GID = db.gid
	default:
		return User{}, invalid(w.field, "group %q is not in the image's /etc/group", w.group.name)
	}
	u.Groups = append(append([]uint32{u.GID}, db.memberOf...), w.supplemental...)
	seen := make(map[uint32]bool, len(u.Groups))
	u.Groups = slices.DeleteFunc(u.Groups, func(g uint32) bool {
		again := seen[g]
		seen[g] = true
		return again
	})
	if len(u.Groups) > maxGroups {
		return User{}, invalid("container.linux.security_context.supplemental_groups", "%d groups: the kernel takes %d", len(u.Groups), maxGroups)
	}
	return u, nil
}

// ImageUser splits an image's USER for ImageStatus, where a kubelet reads it to check runAsNonRoot: it
// sends one of the two back as run_as_user or run_as_username, and takes neither for root. So whatever
// ResolveUser would refuse is returned as a name, which it then refuses.
func ImageUser(imageUser string) (uid *int64, name string) {
	if imageUser == "" {
		return nil, ""
	}
	user, _, err := parseImageUser(imageUser)
	switch {
	case err != nil:
		return nil, imageUser
	case user.isName:
		return nil, user.name
	default:
		id := int64(user.id)
		return &id, ""
	}
}

// account is a user or a group as somebody has named it.
type account struct {
	isName bool
	name   string
	id     uint32
}

// wanted is what has been asked for.
type wanted struct {
	field        string // who asked, for errors
	user         account
	group        *account
	supplemental []uint32
}

func wantedUser(s *cri.LinuxContainerSecurityContext, imageUser string) (wanted, error) {
	const field = "container.linux.security_context."
	var w wanted
	uid, name, gid := s.GetRunAsUser(), s.GetRunAsUsername(), s.GetRunAsGroup()
	if err := checkPolicy(field+"supplemental_groups_policy", s.GetSupplementalGroupsPolicy()); err != nil {
		return w, err
	}
	switch {
	case uid != nil && name != "":
		return w, invalid(field+"run_as_username", "%.80q, and run_as_user is %d: only one may be given", name, uid.GetValue())
	case uid != nil:
		id, err := checkID(field+"run_as_user", uid.GetValue())
		if err != nil {
			return w, err
		}
		w.field, w.user = field+"run_as_user", account{id: id}
	case name != "":
		w.field = field + "run_as_username"
		a, ok := parseAccount(name)
		if !ok || !a.isName {
			return w, invalid(w.field, "%.80q is no user name", name)
		}
		w.user = a
	case gid != nil:
		return w, invalid(field+"run_as_group", "without run_as_user or run_as_username")
	default:
		var err error
		w.field = "image.config.User"
		if w.user, w.group, err = parseImageUser(imageUser); err != nil {
			return w, err
		}
	}
	if gid != nil {
		id, err := checkID(field+"run_as_group", gid.GetValue())
		if err != nil {
			return w, err
		}
		w.group = &account{id: id}
	}
	for i, g := range s.GetSupplementalGroups() {
		id, err := checkID(at(field+"supplemental_groups", i), g)
		if err != nil {
			return w, err
		}
		w.supplemental = append(w.supplemental, id)
	}
	return w, nil
}

func checkID(field string, id int64) (uint32, error) {
	if id < 0 || id > maxID {
		return 0, invalid(field, "%d: want 0 to %d", id, int64(maxID))
	}
	return uint32(id), nil
}

func parseImageUser(s string) (user account, group *account, err error) {
	const field = "image.config.User"
	if s == "" {
		return account{}, nil, nil
	}
	u, g, hasGroup := strings.Cut(s, ":")
	user, ok := parseAccount(u)
	if !ok {
		return account{}, nil, invalid(field, "%.100q: want a name or a number from 0 to %d, perhaps with :group", s, int64(maxID))
	}
	if hasGroup {
		a, ok := parseAccount(g)
		if !ok {
			return account{}, nil, invalid(field, "%.100q: want a name or a number from 0 to %d after the colon", s, int64(maxID))
		}
		group = &a
	}
	return user, group, nil
}

// parseAccount reads a number or a name. What begins like a number is one or nothing.
func parseAccount(s string) (account, bool) {
	if s == "" || len(s) > maxName {
		return account{}, false
	}
	if c := s[0]; '0' <= c && c <= '9' || c == '-' || c == '+' {
		id, ok := parseID(s)
		return account{id: id}, ok
	}
	if !utf8.ValidString(s) || hasControl(s) || strings.ContainsAny(s, ": \t,/") {
		return account{}, false
	}
	return account{isName: true, name: s}, true
}
