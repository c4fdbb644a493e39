// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	s := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s, process %d\n", name, os.Getpid())
		log.Println("served", r.URL.Path, "to", r.RemoteAddr)
	})
	log.Println("serving as", name)
	log.Fatal(s.ListenAndServe())
}
