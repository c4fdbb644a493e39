// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
)

// The two kinds of FieldError, for errors.Is.
var (
	// ErrInvalid says that the value cannot be right on any node.
	ErrInvalid = errors.New("invalid")

	// ErrUnsupported says that the value may be right, but this berth or this node cannot do it.
	ErrUnsupported = errors.New("not supported")
)

// FieldError refuses a request because of one field.
type FieldError struct {
	// Field is where it stands, as in Decision, with the index or the key of an element:
	// "container.mounts[2].mount_options". What comes from the image begins with "image".
	Field  string
	Reason string
	Kind   error // ErrInvalid or ErrUnsupported
}

// Error returns "field: reason".
func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Unwrap returns the kind.
func (e *FieldError) Unwrap() error { return e.Kind }

func invalid(field, format string, args ...any) *FieldError {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...), Kind: ErrInvalid}
}

func unsupported(field, format string, args ...any) *FieldError {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...), Kind: ErrUnsupported}
}

// later is for what a later version of berth will do.
func later(field, what string) *FieldError {
	return unsupported(field, "%s: this version of berth cannot do that", what)
}
