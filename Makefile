# Copyright The berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# `make` alone lists the targets: a target is listed where its line ends in "## what it does".

SHELL         := /bin/bash
.SHELLFLAGS   := -eu -o pipefail -c
MAKEFLAGS     += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
# The parts of `make check` use all processors themselves, and are read in order.
.NOTPARALLEL:

# sudo resets PATH: look where Go is installed from its own archive as well.
GO := $(or $(GO),$(shell command -v go),$(wildcard /usr/local/go/bin/go),go)
export PATH := $(PATH)$(patsubst %/,:%,$(filter /%,$(dir $(GO)))):/usr/sbin:/sbin

# What to work on: make unit PKGS=./oci/...
PKGS     ?= ./...
FUZZTIME ?= 30s

# seccomp makes libcontainer use libseccomp; root marks tests that need root.
TAGS      := seccomp
TEST_TAGS := root,$(TAGS)

# A tag v1.2.3 makes 1.2.3, five commits later 1.2.3-5-g0123abc; without tags or git it is 0.0.0, since
# CRI asks for a semantic version.
VERSION ?= $(shell v=$$(git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null) && echo $${v\#v} || \
	echo 0.0.0-dev+$$(git describe --always --exclude '*' --dirty=.dirty 2>/dev/null || echo unknown))
LDFLAGS  = -s -w -X main.version=$(VERSION)
GOBUILD  = $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $@
PROGRAMS := $(patsubst cmd/%/main.go,bin/%,$(wildcard cmd/*/main.go))

# The tools of hack/tools/go.mod, built once for each of their versions and that of Go.
TOOLS    := bin/tools/$(shell cat hack/tools/go.mod hack/tools/go.sum | cksum | cut -d' ' -f1)-$(shell $(GO) env GOVERSION)
LAYERS   := ./hack/layers
DIRS     := $(patsubst %/...,%,$(PKGS))
RESULTS  := bin/test
# The CNI plugins of hack/cni/go.mod, in bin/cni; the stamp names their versions and that of Go.
CNI      := bin/cni/.$(shell cat hack/cni/go.mod hack/cni/go.sum | cksum | cut -d' ' -f1)-$(shell $(GO) env GOVERSION)
TESTFILES = $(GO) list -tags $(TEST_TAGS) -f '{{range .TestGoFiles}}{{$$.Dir}}/{{.}} {{end}}{{range .XTestGoFiles}}{{$$.Dir}}/{{.}} {{end}}' $(PKGS)
TESTSUM  := $(GO) run ./hack/testsum

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile
	@echo "PKGS=$(PKGS) and FUZZTIME=$(FUZZTIME) can be set: make unit PKGS=./oci/..."

.PHONY: build
build: $(PROGRAMS) ## Build bin/berth (static) and bin/berth-executor (cgo)

# Always: go build knows best what is up to date.
.PHONY: $(PROGRAMS)
bin/berth:
	CGO_ENABLED=0 $(GOBUILD) ./cmd/berth
bin/berth-executor: libseccomp
	CGO_ENABLED=1 $(GOBUILD) -tags $(TAGS) ./cmd/berth-executor

.PHONY: cni
cni: $(CNI) ## Build the CNI plugins for tests and trials, in bin/cni

# sudo make run: a node with one pod, in folders of its own, until Ctrl-C; ONCE=1 ends by itself.
.PHONY: run
run: root deps build cni ## Show a node: a pod that runs, talks, logs, and survives the death of any process
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o bin/demo-web ./hack/demo/web
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o bin/demo ./hack/demo
	@exec bin/demo -bin bin $(if $(ONCE),-once)

.PHONY: check
check: fmt-check vet lint layers unit ## Everything that needs no root: format, vet, lint, layers, unit tests
	@$(TESTSUM) -total $(RESULTS)/layers $(RESULTS)/unit

.PHONY: test
test: root check root-test ## check and the tests that need root; run it as root
	@$(TESTSUM) -total $(if $(filter ./...,$(PKGS)),-complete) $(RESULTS)/layers $(RESULTS)/unit $(RESULTS)/root

.PHONY: unit
unit: libseccomp ## Unit tests, with the race detector
	@pkgs=$$($(GO) list -tags $(TAGS) $(PKGS) | grep -v '/hack/layers$$'); \
	$(GO) test -json -race -tags $(TAGS) $$pkgs | $(TESTSUM) -save $(RESULTS)/unit

# -count=1: what the test asks go list for is not among the things by which Go knows a cached result.
.PHONY: layers
layers: ## The table of imports
	@$(GO) test -json -count=1 $(LAYERS) | $(TESTSUM) -save $(RESULTS)/layers

# One package after the other: they share the machine's cgroups, mounts and network.
.PHONY: root-test
root-test: root build cni ## The tests with the build tag root, which make real containers; run it as root
	@pkgs=$$($(TESTFILES) | { xargs grep -lE '^//go:build (.*[^!a-z])?root\b' || :; } | xargs -n1 dirname | sort -u); \
	$(GO) test -json -tags $(TEST_TAGS) -p 1 -count=1 -timeout 20m $$pkgs | $(TESTSUM) -save $(RESULTS)/root

.PHONY: fmt
fmt: $(TOOLS)/done ## Format the code
	@$(TOOLS)/gofumpt -w $(DIRS)

.PHONY: fmt-check
fmt-check: $(TOOLS)/done ## Fail where the code is not formatted
	@$(TOOLS)/gofumpt -d $(DIRS) || { echo; echo "run: make fmt"; exit 1; }

# Where locks are taken over before an object is shared, or by the name of a function alone, checklocks
# cannot follow yet: there its comments tell readers only.
UNPROVED := /oci$$|/oci/executor$$|/oci/keeper$$|/cmd/berth-executor$$

# checklocks proves what the comments +checklocks say of mutexes; +checklocksignore before a function
# excuses it. -inferred=false: else it guesses, and takes a field that never changes for a guarded one if
# it happens to be read under a lock.
.PHONY: vet
vet: libseccomp $(TOOLS)/done ## go vet, and checklocks for mutexes
	@$(GO) vet -tags $(TEST_TAGS) $(PKGS)
	@$(GO) list -tags $(TEST_TAGS) $(PKGS) | { grep -vE '$(UNPROVED)' || :; } | \
	xargs -r $(GO) vet -tags $(TEST_TAGS) -vettool=$(CURDIR)/$(TOOLS)/checklocks -inferred=false

.PHONY: lint
lint: libseccomp $(TOOLS)/done ## golangci-lint, see .golangci.yml
	@$(TOOLS)/golangci-lint run $(PKGS)

# It starts no runtime: BENCHFLAGS="-restart '…' -json FILE" and the like are in hack/bench/doc.go.
.PHONY: bench
bench: root ## Measure the runtime at ENDPOINT=unix:///... beside that at PEER=unix:///... (both run already)
	@[ -n "$(ENDPOINT)" ] || { echo "say what to measure: sudo make bench ENDPOINT=unix:///... [PEER=unix:///...] [BENCHFLAGS=...]"; exit 2; }
	@$(GO) run ./hack/bench -endpoint "$(ENDPOINT)" $(if $(PEER),-peer "$(PEER)") $(BENCHFLAGS)

.PHONY: fuzz
fuzz: libseccomp ## Run each Fuzz target for FUZZTIME
	@$(TESTFILES) | { xargs grep -oE '^func Fuzz[A-Za-z0-9_]*' || :; } | while IFS=: read -r file target; do \
		dir=$$(dirname "$$file"); target=$${target#func }; \
		echo "$${dir#$(CURDIR)/} $$target"; \
		$(GO) test -tags $(TEST_TAGS) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$dir" </dev/null; \
	done

.PHONY: deps
deps: ## Install what building and testing need besides Go, gcc, make and git
	@hack/scripts/deps

.PHONY: clean
clean: ## Remove what was built, but keep the tools, which take minutes
	@rm -rf $(PROGRAMS) $(RESULTS)

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root: sudo make $(MAKECMDGOALS)"; exit 1; }

# Without it cgo's message is long and names no package.
.PHONY: libseccomp
libseccomp:
	@pkg-config --exists libseccomp || { echo "libseccomp or pkg-config is missing; run: make deps"; exit 1; }

$(TOOLS)/done:
	@echo "building the tools of hack/tools, once"
	@rm -rf bin/tools
	@cd hack/tools && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/$(TOOLS)/ tool
	@touch $@

$(CNI):
	@echo "building the CNI plugins of hack/cni, once"
	@rm -rf bin/cni
	@cd hack/cni && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/bin/cni/ tool
	@touch $@
