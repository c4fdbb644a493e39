// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/berth-cri/berth/oci/wire"
)

func TestDecode(t *testing.T) {
	tests := []struct {
		name, body string
		want       wire.Signal
		bad        bool
	}{
		{name: "known", body: `{"ID":"c","Signal":9}`, want: wire.Signal{ID: "c", Signal: 9}},
		{name: "of a newer peer", body: `{"ID":"c","Signal":9,"Queue":true}`, want: wire.Signal{ID: "c", Signal: 9}},
		{name: "of an older peer", body: `{"ID":"c"}`, want: wire.Signal{ID: "c"}},
		{name: "empty", body: ""},
		{name: "no JSON", body: "{", bad: true},
		{name: "two values", body: `{}{}`, bad: true},
		{name: "another type", body: `{"Signal":"KILL"}`, bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got wire.Signal
			err := (&wire.Message{Op: wire.OpSignal, Body: []byte(tt.body)}).Decode(&got)
			if errors.Is(err, wire.ErrMalformed) != tt.bad || (err != nil) != tt.bad {
				t.Fatalf("error = %v", err)
			}
			if !tt.bad && got != tt.want {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// An error keeps its code and its words on the way.
func TestErrorTravels(t *testing.T) {
	sent := &wire.Error{Code: wire.NotFound, Message: "no container c in the executor"}
	b, err := json.Marshal(wire.Answer{Err: sent})
	if err != nil {
		t.Fatal(err)
	}
	var a wire.Answer
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	err = fmt.Errorf("start: %w", a.Err)
	if got, want := err.Error(), "start: no container c in the executor"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	tests := []struct {
		target error
		want   bool
	}{
		{&wire.Error{Code: wire.NotFound}, true},
		{&wire.Error{Code: wire.Exists}, false},
		{&wire.Error{Code: wire.NotFound, Message: "another"}, false},
		{wire.ErrMalformed, false},
	}
	for _, tt := range tests {
		if got := errors.Is(err, tt.target); got != tt.want {
			t.Errorf("errors.Is(%#v) = %t", tt.target, got)
		}
	}
}
