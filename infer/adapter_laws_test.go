package infer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
	"bhive/kernels/devicetest"

	"github.com/google/go-cmp/cmp"
)

// shelf is a store of blobs in memory; those in closed wait until they are let go.
type shelf struct {
	mu    sync.Mutex
	blobs map[string][]byte
	gates map[string]chan struct{}
}

type shelfBlob struct{ *bytes.Reader }

func (shelfBlob) Close() error { return nil }

func (s *shelf) OpenBlob(ctx context.Context, _, sha string) (adapters.BlobReader, error) {
	s.mu.Lock()
	blob, gate := s.blobs[sha], s.gates[sha]
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if blob == nil {
		return nil, adapters.ErrNotFound
	}
	return shelfBlob{bytes.NewReader(blob)}, nil
}

// hive is a rig with the two golden adapters and their basis.
type hive struct {
	*rig
	shelf   *shelf
	basis   *adapters.Basis
	weights map[string]*adapters.Weights
	numbers map[string]int
	device  int64 // bytes that start reserves, where not 0
	host    int64
}

func newHive(t testing.TB, working kernels.DType) *hive {
	t.Helper()
	g := demoGolden(t)
	h := &hive{shelf: &shelf{blobs: map[string][]byte{}, gates: map[string]chan struct{}{}}, numbers: map[string]int{}}
	h.basis, h.weights = g.shared(t)
	format := kernels.FormatF32
	if working == kernels.BF16 {
		format = kernels.FormatBF16
	}
	be := openDevice(t, working)
	h.rig = &rig{be, load(t, be, g.cp, h.basis, format), newRigTokenizer(t)}
	return h
}

// publish makes the next version of a name.
func (h *hive) publish(t testing.TB, name string, w *adapters.Weights) adapters.Target {
	t.Helper()
	var blob bytes.Buffer
	digest := h.basis.RowsDigest(w.Rank)
	if err := adapters.EncodeBlob(&blob, w, digest, h.model.BaseHash); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(blob.Bytes())
	h.numbers[name]++
	v := adapters.Version{Tenant: "t", Name: name, Number: h.numbers[name], Rank: w.Rank, Alpha: w.Alpha, Scaling: w.Scaling, BasisDigest: digest,
		BaseHash: h.model.BaseHash, SHA256: hex.EncodeToString(sum[:]), Bytes: int64(blob.Len())}
	h.shelf.mu.Lock()
	h.shelf.blobs[v.SHA256] = blob.Bytes()
	h.shelf.mu.Unlock()
	return adapters.Target{Parts: []adapters.TargetPart{{Version: v, Weight: 1}}}
}

// start runs an engine with a pool of few slots until the test ends.
func (h *hive) start(t testing.TB, c Config, slots int) (*Engine, *adapters.Pool) {
	t.Helper()
	device, err := NewDevice(h.be, h.be.NewStream(), slots)
	if err != nil {
		t.Fatal(err)
	}
	budget := int64(64 << 20)
	if h.device > 0 {
		budget = h.device
		if err := device.Reserve(h.device, h.host); err != nil {
			t.Fatal(err)
		}
	}
	var e *Engine
	pool, err := adapters.NewPool(adapters.PoolConfig{Geometry: h.model.Geometry, DType: device.DType(), Slots: slots, DeviceBytes: budget,
		HostBytes: 64 << 20, Wake: func() { e.Wake() }, Check: adapters.CheckVersion(h.basis)}, h.shelf, device)
	if err != nil {
		t.Fatal(err)
	}
	if e, err = New(c, h.model, pool, device, h.tok); err != nil {
		t.Fatal(err)
	}
	h.rig.runs(t, e, func() {
		pool.Close()
		device.Close()
	})
	return e, pool
}

// TestMixedAdaptersEqualAlone: a batch of the base, two adapters and a mix of them is each alone, bit for bit; and each is the reference's.
func TestMixedAdaptersEqualAlone(t *testing.T) {
	for _, working := range []kernels.DType{kernels.F32, kernels.BF16} {
		t.Run(working.String(), func(t *testing.T) {
			h := newHive(t, working)
			needInvariant(t, h.model.Backend)
			one, two := h.publish(t, "one", h.weights["one"]), h.publish(t, "two", h.weights["two"])
			mix := adapters.Target{Parts: []adapters.TargetPart{{Version: one.Parts[0].Version, Weight: 0.7}, {Version: two.Parts[0].Version, Weight: 0.3}}}
			targets := map[string]adapters.Target{"base": {}, "one": one, "two": two, "mix": mix}
			var rs []Request
			var refs []golden
			for _, name := range []string{"base", "one", "two", "mix"} {
				for i, g := range readGolden(t, name+".greedy.json")[:3] {
					p := greedily(min(len(g.IDs), 16))
					p.Logprobs = 1
					rs = append(rs, Request{ID: fmt.Sprint(name, i), Tenant: "t", Prompt: g.Prompt, Adapter: targets[name], Params: p})
					g.IDs = g.IDs[:p.MaxTokens]
					refs = append(refs, g)
				}
			}
			alone, _ := h.start(t, Config{MaxSeqs: 1, NoPrefixCache: true, KVBlocks: 64}, 4)
			var want [][]choice
			for i, r := range rs {
				got := generate(t, alone, r)
				if working == kernels.F32 {
					compareGreedy(t, i, refs[i], got[0])
				}
				want = append(want, got)
			}
			for name, c := range map[string]Config{
				"batch":      {MaxSeqs: 16, MaxTokens: 128, KVBlocks: 200, Overlap: true, Graphs: true},
				"preemption": {MaxSeqs: 12, MaxTokens: 13, BlockTokens: 4, KVBlocks: 22},
			} {
				c.MaxContext = 64
				// With 2 slots the adapters take turns on the device.
				for _, slots := range []int{4, 2} {
					e, _ := h.start(t, c, slots)
					got := together(t, e, rs)
					if diff := cmp.Diff(withoutCached(want), withoutCached(got)); diff != "" {
						t.Errorf("%s, %d slots: alone against together:\n%s", name, slots, diff)
					}
				}
			}
		})
	}
}

// TestSwapInMidStream: a new version that becomes live while requests run leaves those on theirs, and changes nobody else's tokens.
func TestSwapInMidStream(t *testing.T) {
	h := newHive(t, kernels.F32)
	first, second := h.publish(t, "style", h.weights["one"]), h.publish(t, "style", h.weights["two"])
	prompt := readGolden(t, "one.greedy.json")[0].Prompt
	request := func(a adapters.Target) Request {
		p := greedily(40)
		p.IgnoreEOS = true
		return Request{Tenant: "t", Prompt: prompt, Adapter: a, Params: p}
	}
	e, pool := h.start(t, Config{MaxSeqs: 4, KVBlocks: 100, Overlap: true}, 2)
	want := map[string]choice{}
	for name, a := range map[string]adapters.Target{"first": first, "second": second, "base": {}} {
		want[name] = generate(t, e, request(a))[0]
	}
	if want["first"].Text == want["second"].Text || want["first"].Text == want["base"].Text {
		t.Fatal("the adapters' texts do not differ")
	}
	begin := func(a adapters.Target) (*Generation, Delta) {
		g, err := e.Submit(t.Context(), request(a))
		if err != nil {
			t.Fatal(err)
		}
		d, err := g.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return g, d
	}
	running, d1 := begin(first)
	beside, d2 := begin(adapters.Target{})
	pool.Forget("t", "style", 1) // the old version is deleted while it runs
	swapped, d3 := begin(second)
	for _, x := range []struct {
		name  string
		g     *Generation
		begun Delta
	}{{"first", running, d1}, {"base", beside, d2}, {"second", swapped, d3}} {
		rest, err := all(t.Context(), x.g, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := x.begun.Text + rest[0].Text; got != want[x.name].Text {
			t.Errorf("%s: %q, undisturbed %q", x.name, got, want[x.name].Text)
		}
	}
	if s := pool.Stats(); s.Leased != 0 {
		t.Errorf("%d leases are left", s.Leased)
	}
}

// TestMissingAdapterDelaysNobody: while an adapter is on its way, requests for the base and for resident adapters overtake.
func TestMissingAdapterDelaysNobody(t *testing.T) {
	h := newHive(t, kernels.F32)
	here, away := h.publish(t, "here", h.weights["one"]), h.publish(t, "away", h.weights["two"])
	gate := make(chan struct{})
	h.shelf.gates[away.Parts[0].Version.SHA256] = gate
	e, pool := h.start(t, Config{MaxSeqs: 1, KVBlocks: 100}, 2)
	request := func(a adapters.Target) Request {
		return Request{Tenant: "t", Prompt: []int{5, 6, 7}, Adapter: a, Params: greedily(3)}
	}
	late, err := e.Submit(t.Context(), request(away))
	if err != nil {
		t.Fatal(err)
	}
	gone, err := e.Submit(t.Context(), request(away))
	if err != nil {
		t.Fatal(err)
	}
	generate(t, e, request(adapters.Target{}))
	generate(t, e, request(here))
	if s := e.Stats(); s.WaitingAdapters != 2 {
		t.Errorf("%d requests wait for their adapter, want 2", s.WaitingAdapters)
	}
	gone.Close()
	if got, err := all(t.Context(), gone, 1); err != nil || got[0].Reason != FinishCancelled {
		t.Errorf("cancelled: %+v, %v", got, err)
	}
	close(gate)
	if got, err := all(t.Context(), late, 1); err != nil || got[0].Usage.Completion == 0 {
		t.Errorf("%+v, %v", got, err)
	}

	lost := h.publish(t, "lost", h.weights["two"])
	lost.Parts[0].Version.SHA256 = strings.Repeat("0", 64)
	g, err := e.Submit(t.Context(), request(lost))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all(t.Context(), g, 1); !errors.Is(err, ErrAdapterLoad) || !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("an adapter that is not there: %v", err)
	}
	if s := pool.Stats(); s.Leased != 0 {
		t.Errorf("%d leases are left", s.Leased)
	}
}

// TestAdapterWithoutNumbers: an adapter under which the logits are no numbers fails its own requests, and nobody else's.
func TestAdapterWithoutNumbers(t *testing.T) {
	h := newHive(t, kernels.F32)
	huge := *h.weights["one"]
	huge.Data = slices.Clone(huge.Data)
	for i := range huge.Data {
		huge.Data[i] = 1e38
	}
	bad, good := h.publish(t, "bad", &huge), h.publish(t, "good", h.weights["two"])
	e, _ := h.start(t, Config{MaxSeqs: 4, KVBlocks: 100, Overlap: devicetest.OnCPU()}, 2)
	request := func(a adapters.Target, p Params) Request {
		p.MaxTokens, p.IgnoreEOS = 20, true
		return Request{Tenant: "t", Prompt: []int{5, 6, 7}, Adapter: a, Params: p}
	}
	want := generate(t, e, request(good, greedily(20)))[0]
	beside, err := e.Submit(t.Context(), request(good, greedily(20)))
	if err != nil {
		t.Fatal(err)
	}
	sampled, counted := DefaultParams(), greedily(20)
	counted.PresencePenalty, counted.Logprobs = 1, 3
	for name, p := range map[string]Params{"greedy": greedily(20), "sampled": sampled, "with penalties and logprobs": counted} {
		g, err := e.Submit(t.Context(), request(bad, p))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := all(t.Context(), g, 1); !errors.Is(err, ErrStep) || len(got[0].IDs) > 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if got, err := all(t.Context(), beside, 1); err != nil || got[0].Text != want.Text {
		t.Errorf("beside them %q, %v; alone %q", got[0].Text, err, want.Text)
	}
	// K and V that are no numbers are not kept for who asks with the same beginning.
	cached := e.Stats().KVCached
	long := request(bad, greedily(20))
	for i := range 40 {
		long.Prompt = append(long.Prompt, 5+i%3)
	}
	g, err := e.Submit(t.Context(), long)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all(t.Context(), g, 1); !errors.Is(err, ErrStep) {
		t.Errorf("a long prompt: %v", err)
	}
	if n := e.Stats().KVCached; n != cached {
		t.Errorf("%d blocks are cached, %d before a long prompt", n, cached)
	}
}
