package finetune

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
	"bhive/infer"
)

// hive is a manager with a store and something that plays the engine.
type hive struct {
	m     *Manager
	store adapters.Store
	stop  func() // ends the manager as a server does
}

// openHive runs a manager, and an engine that has nothing but its units to do, and does none while hold of it is true.
func openHive(t *testing.T, model *infer.Model, store adapters.Store, c Config, hold func(infer.Unit) bool) *hive {
	t.Helper()
	wake := make(chan struct{}, 1)
	m, err := New(c, Deps{Model: model, Registry: adapters.NewRegistry(store, nil), Encoder: demoEncoder(t), Wake: func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	engine, stopEngine := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-engine.Done():
				return
			case <-wake:
			}
			for m.Ready() && engine.Err() == nil {
				u, ok := m.Next()
				if ok && hold != nil && hold(u) {
					time.Sleep(time.Millisecond)
				} else if ok {
					m.Enqueue(nil)
				}
			}
		}
	}()
	done := false
	stop := func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		stopEngine()
		<-stopped
		m.Close()
	}
	t.Cleanup(stop)
	return &hive{m, store, stop}
}

// held holds every unit while it is true.
func held(hold *atomic.Bool) func(infer.Unit) bool {
	return func(infer.Unit) bool { return hold.Load() }
}

func openStore(t *testing.T, dir string) adapters.Store {
	t.Helper()
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func pirates(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"messages":[{"role":"user","content":"What is a %s?"},{"role":"assistant","content":"Arr! A %[1]s be a fine thing, matey!"}]}`+"\n",
			[]string{"cat", "dog", "cow", "fox", "hen", "owl", "pig", "bee"}[i%8])
	}
	return b.String()
}

func spec(name string, change func(*JobSpec)) JobSpec {
	s := JobSpec{Name: name, Tenant: "anna", Training: strings.NewReader(pirates(8)), Rank: 4, MaxSteps: 6, BatchSize: 4, LearningRate: LearningRate{Value: 5e-3}}
	if change != nil {
		change(&s)
	}
	return s
}

// wait follows a job's events to their end.
func (h *hive) wait(t *testing.T, tenant, id string) (Job, []Event) {
	t.Helper()
	ctx := t.Context()
	var events []Event
	for e, err := range h.m.Events(ctx, tenant, id, 0) {
		if err != nil {
			t.Fatalf("after %d events: %v", len(events), err)
		}
		if e.Seq != int64(len(events)+1) {
			t.Fatalf("event %d has number %d", len(events)+1, e.Seq)
		}
		events = append(events, e)
	}
	j, err := h.m.Get(ctx, tenant, id)
	if err != nil {
		t.Fatal(err)
	}
	return j, events
}

func (h *hive) submit(t *testing.T, s JobSpec) Job {
	t.Helper()
	j, err := h.m.Submit(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func count(events []Event, kind EventType) (n int) {
	for _, e := range events {
		if e.Type == kind {
			n++
		}
	}
	return n
}

// loaded is a published B.
func loaded(t *testing.T, h *hive, tenant, name string) *adapters.Weights {
	t.Helper()
	v, err := h.store.Get(t.Context(), tenant, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, _, err := h.m.d.Registry.Load(t.Context(), v, h.m.d.Model.Geometry)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// until waits for a job's progress.
func (h *hive) until(t *testing.T, id string, step int) {
	t.Helper()
	for {
		j, err := h.m.Get(t.Context(), "anna", id)
		if err != nil {
			t.Fatal(err)
		}
		if j.Progress.Step >= step || j.State.Final() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// passes counts a manager's passes, and holds the next when there have been as many as are allowed.
type passes struct {
	seen, most atomic.Int64
	last       string // kind of unit, commands left out
}

func (p *passes) hold(u infer.Unit) bool {
	if u.Kind == "commands" {
		return false
	}
	if p.last == "finish" && u.Kind != p.last {
		p.seen.Add(1)
	}
	p.last = u.Kind
	return u.Kind == "compose" && p.seen.Load() >= p.most.Load()
}

// allow lets n more through.
func (p *passes) allow(n int64) { p.most.Store(p.seen.Load() + n) }
