// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"reflect"
	"strings"
)

// A value in a file is framed, so that what the disk or memory did to it is found out:
//
//	 0        1                5
//	+--------+----------------+------------
//	| format | CRC-32C        | payload
//	| 1      | little endian  |
//	+--------+----------------+------------
//	          \ of bucket, 0, key, 0, payload: a value under a wrong key is found as well
const (
	frameFormat = 1
	frameLen    = 5
)

func checksum(bucket, key string, payload []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // made once, by package crc32
	head := make([]byte, 0, 160)
	head = append(head, bucket...)
	head = append(head, 0)
	head = append(head, key...)
	head = append(head, 0)
	return crc32.Update(crc32.Checksum(head, table), table, payload)
}

// frame returns the value for a payload.
func frame(bucket, key string, payload []byte) []byte {
	value := make([]byte, frameLen, frameLen+len(payload))
	value[0] = frameFormat
	binary.LittleEndian.PutUint32(value[1:], checksum(bucket, key, payload))
	return append(value, payload...)
}

// unframe returns the payload of a value, of which it is a part.
func unframe(bucket, key string, value []byte) ([]byte, error) {
	if len(value) < frameLen || value[0] != frameFormat {
		return nil, fmt.Errorf("%s %q: no frame", bucket, clip(key))
	}
	payload := value[frameLen:]
	if binary.LittleEndian.Uint32(value[1:]) != checksum(bucket, key, payload) {
		return nil, fmt.Errorf("%s %q: checksum does not match", bucket, clip(key))
	}
	return payload, nil
}

// encode returns a durable record as JSON, the fields that this version does not know included.
func encode[R any](r *R) ([]byte, error) {
	b, err := marshal(r)
	if err != nil {
		return nil, err
	}
	u, ok := any(r).(interface{ unknown() *extra })
	if !ok || len(*u.unknown()) == 0 {
		return b, nil
	}
	more, err := marshal(*u.unknown())
	if err != nil {
		return nil, err
	}
	if string(b) == "{}" {
		return more, nil
	}
	return append(append(b[:len(b)-1], ','), more[1:]...), nil // two objects become one
}

// marshal is json.Marshal, but what is JSON already stays as it is.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decode is the reverse of encode.
func decode[R any](b []byte) (*R, error) {
	// Nearly always there is nothing unknown: then the strict decoder is all it takes.
	r := new(R)
	strict := json.NewDecoder(bytes.NewReader(b))
	strict.DisallowUnknownFields()
	if strict.Decode(r) == nil && strict.InputOffset() == int64(len(b)) {
		return r, nil
	}
	r = new(R)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	if u, ok := any(r).(interface{ unknown() *extra }); ok {
		return r, keepUnknown(b, r, u.unknown())
	}
	return r, nil
}

// keepUnknown puts the fields that r does not have into unknown.
func keepUnknown(b []byte, r any, unknown *extra) error {
	var all extra
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	for field := range reflect.TypeOf(r).Elem().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		for key := range all {
			// As the decoder matched them: without regard to case.
			if name != "" && strings.EqualFold(key, name) {
				delete(all, key)
			}
		}
	}
	if len(all) > 0 {
		*unknown = all
	}
	return nil
}

// clip keeps what a damaged file holds from flooding an error.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
