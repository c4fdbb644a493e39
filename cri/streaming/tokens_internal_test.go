// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTokenExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok := newTokens(time.Minute, 2)
		put := func() string {
			token, err := tok.put(session{kind: kindExec, id: "c1"})
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		inTime, late := put(), put()
		if _, err := tok.put(session{}); !errors.Is(err, ErrTooMany) {
			t.Errorf("a third token: %v", err)
		}
		<-time.After(time.Minute - time.Nanosecond)
		if s, ok := tok.take(kindExec, inTime); !ok || s.id != "c1" {
			t.Errorf("in time: %v, %t", s, ok)
		}
		<-time.After(time.Nanosecond)
		if _, ok := tok.take(kindExec, late); ok {
			t.Error("an expired token was taken")
		}
		// Expired ones make room.
		put()
		put()
		<-time.After(time.Minute)
		put()
		put()
		tok.mu.Lock()
		defer tok.mu.Unlock()
		if tok.byAge.Len() != 2 || len(tok.byHash) != 2 {
			t.Errorf("%d and %d tokens are kept", tok.byAge.Len(), len(tok.byHash))
		}
	})
}

// No token but those that were handed out is taken, whatever it looks like.
func FuzzToken(f *testing.F) {
	f.Add("exec", "")
	f.Add("exec", strings.Repeat("A", 43))
	f.Add("attach", "../exec")
	f.Add("", "\x00\xff")
	f.Fuzz(func(t *testing.T, kind, token string) {
		tok := newTokens(time.Minute, 10)
		right, err := tok.put(session{kind: kindExec})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := tok.take(kind, token); ok {
			t.Errorf("%q was taken for %q", token, right)
		}
		if _, ok := tok.take(kindExec, right+token); ok != (token == "") {
			t.Errorf("the token with %q after it: %t", token, ok)
		}
		if _, ok := tok.take(kindExec, right); ok != (token != "") {
			t.Errorf("the token itself: %t", ok)
		}
	})
}
