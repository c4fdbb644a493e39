// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// machine stands for the endpoint where none is measured.
const machine = "machine"

// report is what a run found; it is the JSON that -json writes.
type report struct {
	Began     time.Time   `json:"began"`
	Kernel    string      `json:"kernel"`
	CPUs      int         `json:"cpus"`
	Image     string      `json:"image"`
	Pods      int         `json:"pods"`
	Rounds    int         `json:"rounds"`
	Endpoints []runtimeOf `json:"endpoints"`
	Results   []result    `json:"results"`
	Failures  []failure   `json:"failures"`
	Figures   []figure    `json:"figures"` // medians of Results
	Ratios    []compared  `json:"ratios"`
}

// runtimeOf is who answers at an address.
type runtimeOf struct {
	Address string `json:"address"`
	Version string `json:"version"`
}

// result is a phase of one round on one endpoint.
type result struct {
	Round    int       `json:"round"` // from 1
	Endpoint string    `json:"endpoint"`
	Phase    string    `json:"phase"`
	Load     float64   `json:"load"`    // average of a minute, at the end
	Fsync    float64   `json:"fsyncMs"` // p50 of 4 KiB
	Measures []measure `json:"measures"`
}

// measure sums up the samples of one thing in a phase.
type measure struct {
	Name    string `json:"name"`
	Unit    unit   `json:"unit"`
	Samples int    `json:"samples"`
	quantiles
}

// failure is a phase that did not succeed.
type failure struct {
	Round    int    `json:"round"` // from 1; 0 after the last
	Endpoint string `json:"endpoint"`
	Phase    string `json:"phase"`
	Error    string `json:"error"`
}

// figure is the median of a measure over the rounds that have it.
type figure struct {
	Phase    string `json:"phase"`
	Endpoint string `json:"endpoint"`
	Name     string `json:"name"`
	Unit     unit   `json:"unit"`
	Rounds   int    `json:"rounds"`
	Single   bool   `json:"single"` // one sample in a round: there are no quantiles
	quantiles
}

// compared holds a figure of the endpoint against that of the peer and against the floor; nil where
// there is none.
type compared struct {
	Phase     string   `json:"phase"`
	Name      string   `json:"name"`
	Unit      unit     `json:"unit"`
	P50       *float64 `json:"p50"` // endpoint / peer
	P99       *float64 `json:"p99"`
	Floor     *float64 `json:"floor"`     // endpoint / floor, by p50
	PeerFloor *float64 `json:"peerFloor"` // peer / floor, by p50
}

func newReport(cfg *config, endpoints []*endpoint) (*report, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	r := &report{
		Began: time.Now(), Kernel: unix.ByteSliceToString(uts.Release[:]), CPUs: runtime.NumCPU(),
		Image: cfg.image, Pods: cfg.pods, Rounds: cfg.rounds,
	}
	for _, e := range endpoints {
		r.Endpoints = append(r.Endpoints, runtimeOf{Address: e.address, Version: e.version})
	}
	return r, nil
}

func (r *report) add(res result) { r.Results = append(r.Results, res) }

func (r *report) fail(round int, endpoint, phase string, err error) {
	r.Failures = append(r.Failures, failure{Round: round, Endpoint: endpoint, Phase: phase, Error: err.Error()})
}

// result fills in what a sheet has.
func (t *sheet) result(res result) result {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range t.order {
		samples := t.samples[name]
		res.Measures = append(res.Measures, measure{
			Name: name, Unit: t.units[name], Samples: len(samples), quantiles: quantilesOf(samples),
		})
	}
	return res
}

// sum fills Figures and Ratios from Results.
func (r *report) sum() {
	type key struct{ phase, endpoint, name string }
	measures := make(map[key][]measure)
	r.Figures, r.Ratios = nil, nil
	var order []key
	for _, res := range r.Results {
		for _, m := range res.Measures {
			k := key{res.Phase, res.Endpoint, m.Name}
			if measures[k] == nil {
				order = append(order, k)
			}
			measures[k] = append(measures[k], m)
		}
	}
	for _, k := range order {
		ms := measures[k]
		r.Figures = append(r.Figures, figure{
			Phase: k.phase, Endpoint: k.endpoint, Name: k.name, Unit: ms[0].Unit, Rounds: len(ms), Single: ms[0].Samples == 1,
			quantiles: quantiles{
				P50: medianOf(ms, func(m measure) float64 { return m.P50 }),
				P95: medianOf(ms, func(m measure) float64 { return m.P95 }),
				P99: medianOf(ms, func(m measure) float64 { return m.P99 }),
			},
		})
	}
	r.compare()
}

// compare fills Ratios: of all figures that have a peer's or a floor beside them.
func (r *report) compare() {
	address, peer := r.Endpoints[0].Address, ""
	if len(r.Endpoints) > 1 {
		peer = r.Endpoints[1].Address
	}
	for _, f := range r.Figures {
		if f.Endpoint != address {
			continue
		}
		c := compared{Phase: f.Phase, Name: f.Name, Unit: f.Unit}
		other, hasPeer := r.figure(f.Phase, peer, f.Name)
		if hasPeer {
			c.P50 = divided(f.P50, other.P50)
			if !f.Single {
				c.P99 = divided(f.P99, other.P99)
			}
		}
		ground, hasFloor := r.figure("floor", machine, floorOf(f.Phase, f.Name))
		if hasFloor {
			c.Floor = divided(f.P50, ground.P50)
			if hasPeer {
				c.PeerFloor = divided(other.P50, ground.P50)
			}
		}
		if hasPeer || hasFloor {
			r.Ratios = append(r.Ratios, c)
		}
	}
}

func divided(a, b float64) *float64 {
	if q, ok := ratio(a, b); ok {
		return &q
	}
	return nil
}

func (r *report) figure(phase, endpoint, name string) (figure, bool) {
	i := slices.IndexFunc(r.Figures, func(f figure) bool {
		return f.Phase == phase && f.Endpoint == endpoint && f.Name == name
	})
	if i < 0 {
		return figure{}, false
	}
	return r.Figures[i], true
}

// conditions returns the load and the fsync beside a phase: medians over rounds and endpoints.
func (r *report) conditions(phase string) (load, fsync float64, measured bool) {
	var of []result
	for _, res := range r.Results {
		if res.Phase == phase {
			of = append(of, res)
		}
	}
	if len(of) == 0 {
		return 0, 0, false
	}
	return medianOf(of, func(r result) float64 { return r.Load }),
		medianOf(of, func(r result) float64 { return r.Fsync }), true
}
