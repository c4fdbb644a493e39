// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"
)

// tokenBytes is how many random bytes a token has: 256 bits are not guessed. (k8s.io/cri-streaming
// v0.37.2 has 48, which a local process may try at loopback's speed.)
const tokenBytes = 32

// tokens remembers what each URL that was handed out stands for, until it is used or expires.
type tokens struct {
	ttl time.Duration
	max int

	mu sync.Mutex
	// The key is a hash, so that neither the time that a comparison takes nor a dump of memory tells a token.
	// +checklocks:mu
	byHash map[[sha256.Size]byte]*list.Element
	// +checklocks:mu
	byAge list.List // of *ticket, the oldest in front, since all live equally long
}

// A ticket is what one token stands for.
type ticket struct {
	hash    [sha256.Size]byte
	expires time.Time
	session session
}

func newTokens(ttl time.Duration, limit int) *tokens {
	return &tokens{ttl: ttl, max: limit, byHash: make(map[[sha256.Size]byte]*list.Element)}
}

// put returns a token for s, or ErrTooMany.
func (t *tokens) put(s session) (string, error) {
	var raw [tokenBytes]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(raw[:])
	hash := sha256.Sum256([]byte(token))

	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for e := t.byAge.Front(); e != nil && !now.Before(e.Value.(*ticket).expires); e = t.byAge.Front() {
		t.dropLocked(e)
	}
	if t.byAge.Len() >= t.max {
		return "", ErrTooMany
	}
	t.byHash[hash] = t.byAge.PushBack(&ticket{hash: hash, expires: now.Add(t.ttl), session: s})
	return token, nil
}

// take returns what a token stands for, once. A token that is presented in the wrong place is used up, too.
func (t *tokens) take(kind, token string) (session, bool) {
	hash := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.byHash[hash]
	if !ok {
		return session{}, false
	}
	found := e.Value.(*ticket)
	t.dropLocked(e)
	if found.session.kind != kind || !time.Now().Before(found.expires) {
		return session{}, false
	}
	return found.session, true
}

// +checklocks:t.mu
func (t *tokens) dropLocked(e *list.Element) {
	delete(t.byHash, e.Value.(*ticket).hash)
	t.byAge.Remove(e)
}
