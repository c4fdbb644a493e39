// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package layers

// Table returns the layers of berth.
func Table() Rules {
	return Rules{
		Module: "github.com/berth-cri/berth",
		Rows:   rows(),
		Owners: []Owner{
			{"google.golang.org/grpc", []string{"cri", "cri/*", "cmd/berth", "hack/bench", "hack/demo"}, "one place turns errors into codes, all others return Go errors"},
			{"github.com/opencontainers/runc", []string{"oci/executor", "cmd/berth-executor"}, "libcontainer lives in the executor's process only"},
			{"go.etcd.io/bbolt", []string{"store"}, "the schema has one home"},
			{"C", []string{"oci/executor", "oci/keeper", "cmd/berth-executor"}, "the daemon is static and pure Go"},
		},
		Closures: []Closure{
			{
				From: "cmd/berth", Never: []string{"github.com/opencontainers/runc"}, NoCgo: true,
				Why: "the daemon is static, and creates no container in its own process",
			},
			lean("oci/executor"),
			lean("cmd/berth-executor"),
		},
		ForTests: []string{"hack/leak", "oci/ocitest", "store/storetest"},
		TopLevel: []string{
			"cmd", "cri", "sandbox", "image", "network", "store", "oci", "hack",
			"go.mod", "go.sum", "Makefile",
			"README.md", "LICENSE", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md",
			"bin", // built, ignored by git
		},
	}
}

// lean is the closure of the executor: the first process of every container and every exec is this
// binary again, so each pays for the initialisation of all packages that are linked in. grpc and
// cri-api alone cost 0.9 ms of the 2.7 ms that an exec takes.
func lean(from string) Closure {
	return Closure{
		From:  from,
		Never: []string{"google.golang.org/grpc", "k8s.io/cri-api", "net/http", "go.etcd.io/bbolt"},
		Why:   "every create and exec pays for its initialisation",
	}
}

func rows() []Row { //nolint:funlen // one table, which would be worse in pieces
	return []Row{
		{
			Package: "cmd/berth", Level: 7,
			Imports: []string{
				"cri", "cri/streaming", "cri/admin", "cri/debug", "sandbox",
				"image", "image/ref", "image/registry", "image/unpack", "image/overlay",
				"network", "oci", "oci/wire", "oci/spec", "oci/ns", "oci/cgroup", "store", "store/content",
			},
			Why: "all wiring, read top to bottom; the executor is started, not linked",
		},
		{
			Package: "cmd/berth-executor", Level: 7,
			Imports: []string{"oci/executor", "oci/keeper", "oci/wire"},
		},
		{
			Package: "hack/demo", Level: 7, Imports: []string{"hack/leak"},
			Why: "a client of CRI, as kubelets are; it starts berth and does not link it",
		},
		{
			Package: "hack/*", Level: 7, Imports: []string{"hack/*"},
			Why: "tools drive a node from outside, through CRI and the binaries, as a kubelet does",
		},

		{Package: "hack/bench", Level: 7, Why: "a client of CRI, as a kubelet is: it must be able to measure any runtime"},

		{Package: "cri/admin", Level: 6, Imports: []string{"cri", "sandbox", "image", "image/ref", "store"}, Why: "cri has the table of codes"},
		{
			Package: "cri", Level: 5,
			Imports: []string{"cri/streaming", "sandbox", "image", "image/ref", "image/registry", "network", "oci", "oci/spec", "oci/cgroup", "store", "store/content"},
			Why:     "below sandbox and image only for the errors that toStatus maps, and for the cgroup driver",
		},
		{Package: "cri/streaming", Level: 4, Imports: []string{"store"}, Why: "typed identifiers; what it streams from is an interface of its own"},
		{Package: "cri/debug", Level: 4, Imports: []string{"sandbox", "image", "store"}},

		{
			Package: "sandbox", Level: 3,
			Imports: []string{"image", "image/overlay", "network", "oci", "oci/wire", "oci/spec", "oci/ns", "oci/cgroup", "store", "store/content"},
			Tests:   []string{"oci/crilog"},
			Why:     "image/overlay: it hands the description of a mount from image to oci; oci/wire: what it asks of the executor; store/content: digests",
		},

		{Package: "image", Level: 2, Imports: []string{"image/ref", "image/registry", "image/unpack", "image/overlay", "image/seal", "store", "store/content"}},
		{Package: "network", Level: 2, Imports: []string{"oci/ns", "store"}, Why: "oci/ns: dialling into a pod"},
		{
			Package: "oci", Level: 2, Imports: []string{"oci/wire", "oci/cgroup", "store"}, Tests: []string{"oci/crilog"},
			Why: "not oci/keeper, which is cgo: berth starts the binary; its tests read the logs",
		},
		{
			Package: "oci/spec", Level: 2, Imports: []string{"oci/cgroup"}, Tests: []string{"oci/wire"},
			Why: "pure; cgroup paths have one home; a test holds its placeholders to those of the wire",
		},
		{
			Package: "oci/executor", Level: 2,
			Imports: []string{"oci/wire", "oci/crilog", "oci/cgroup", "oci/keeper"},
			Why:     "nothing above, and no store: it remembers by descriptors and exit files",
		},

		{Package: "oci/ns", Level: 1},
		{Package: "oci/cgroup", Level: 1},
		{Package: "oci/wire", Level: 1},
		{Package: "oci/crilog", Level: 1},
		{Package: "oci/keeper", Level: 1},
		{Package: "image/registry", Level: 1, Imports: []string{"image/ref", "store/content"}},
		{
			Package: "image/unpack", Level: 1, Imports: []string{"image/seal", "store/content"},
			Why: "a diffID is a digest; image/seal: it lists what it wrote",
		},
		{
			Package: "image/overlay", Level: 1, Imports: []string{"image/seal", "store/content"},
			Why: "a layer's folder is named by its digest; image/seal: it checks what unpack listed",
		},
		{Package: "store", Level: 1, Imports: []string{"image/ref", "store/content"}, Why: "typed references and digests in records"},

		{Package: "oci/ocitest", Level: 3, Imports: []string{"oci", "hack/leak"}, Why: "starts a keeper and an executor for a test, and ends them"},
		{Package: "store/storetest", Level: 2, Imports: []string{"store"}, Why: "opens a store for a test, and checks it when the test ends"},

		{Package: "image/ref", Level: 0},
		{Package: "image/seal", Level: 0, Why: "what unpack writes and overlay checks"},
		{Package: "store/content", Level: 0},
		{Package: "hack/leak", Level: 0, Why: "tests of all packages import it"},
		{Package: "hack/layers", Level: 0},
		{Package: "hack/testsum", Level: 0},
	}
}
