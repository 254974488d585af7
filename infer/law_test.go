package infer

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bhive/adapters"
	"bhive/kernels"
	"bhive/kernels/devicetest"
)

// tinyModel is one of the tiny checkpoints with an orthonormal basis of 16 rows.
func tinyModel(t testing.TB, name string, working kernels.DType, format kernels.Format) *Model {
	t.Helper()
	cp := openCheckpoint(t, "testdata/tiny/"+name)
	hash := BaseHash(cp)
	basis, err := adapters.NewBasis(context.Background(), adapters.BasisConfig{R: 16, Geometry: GeometryOf(cp.Config()), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return load(t, openDevice(t, working), cp, basis, format)
}

func randomWeights(g adapters.Geometry, rank int, seed uint64) *adapters.Weights {
	w, r := adapters.NewWeights(g, rank, float64(2*rank)), rand.New(rand.NewPCG(seed, 1))
	for i := range w.Data {
		w.Data[i] = float32(r.NormFloat64()) * 0.1
	}
	return w
}

func randomTokens(n, vocab int, seed uint64) []int32 {
	r := rand.New(rand.NewPCG(seed, 2))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = r.Int32N(int32(vocab))
	}
	return ids
}

// allLogits is the logits of each sequence at all positions, by their bits.
func allLogits(t testing.TB, s *Scorer, seqs []Sequence) [][]float32 {
	t.Helper()
	out := make([][]float32, len(seqs))
	if err := s.Logits(context.Background(), seqs, func(i, _ int, l []float32) { out[i] = append(out[i], l...) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// same is whether logits of other batches are the same: to the bit where the device promises that, and else to what bfloat16 explains, the
// stated tolerance of a device that adds up in another order in another batch.
func same(m *Model, got, want []float32) bool {
	if m.Backend.Info().BatchInvariant {
		return sameBits(got, want)
	}
	return difference(got, want) <= bfloat16Tolerance(m.Config.Layers)
}

// needInvariant skips a test that compares texts to the bit.
func needInvariant(t *testing.T, be kernels.Backend) {
	t.Helper()
	if !be.Info().BatchInvariant {
		t.Skip("the device adds up in another order in another batch")
	}
}

// forms are the ways to keep a model that the laws hold for.
var forms = []struct {
	name    string
	working kernels.DType
	format  kernels.Format
}{{"float32", kernels.F32, kernels.FormatF32}, {"bfloat16", kernels.BF16, kernels.FormatBF16}, {"int8", kernels.BF16, kernels.FormatInt8}}

func TestZeroBIsTheBase(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			m := tinyModel(t, "llama-bias", f.working, f.format)
			s := newScorer(t, m, ScorerConfig{})
			if err := s.SetAdapter(2, adapters.NewWeights(m.Geometry, 8, 16)); err != nil {
				t.Fatal(err)
			}
			if err := s.SetAdapter(1, randomWeights(m.Geometry, 8, 1)); err != nil {
				t.Fatal(err)
			}
			ids := randomTokens(40, m.Config.Vocab, 1)
			got := allLogits(t, s, []Sequence{{Tokens: ids, Adapter: adapters.BaseSlot}, {Tokens: ids, Adapter: 2}, {Tokens: ids, Adapter: 1}, {Tokens: ids, Adapter: 5}})
			if !sameBits(got[0], got[1]) {
				t.Error("an adapter of zeros changes the logits")
			}
			if !sameBits(got[0], got[3]) {
				t.Error("an empty adapter slot changes the logits")
			}
			if d := difference(got[2], got[0]); d < 1e-2 {
				t.Errorf("an adapter changes the logits by %.2g of (max − min) only", d)
			}
			plain := load(t, m.Backend, openCheckpoint(t, "testdata/tiny/llama-bias"), nil, f.format)
			alone := allLogits(t, newScorer(t, plain, ScorerConfig{}), []Sequence{{Tokens: ids, Adapter: adapters.BaseSlot}})
			if !same(m, got[0], alone[0]) {
				t.Error("the basis changes the base's logits")
			}
		})
	}
}

// TestBatchEqualsMembers: a batch of mixed adapters gives each sequence the logits that it has alone, whatever the chunking.
func TestBatchEqualsMembers(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			m := tinyModel(t, "mistral-window", f.working, f.format)
			ranks := []int{1, 4, 7, 16}
			set := func(s *Scorer) {
				for i, r := range ranks {
					if err := s.SetAdapter(i, randomWeights(m.Geometry, r, uint64(i))); err != nil {
						t.Fatal(err)
					}
				}
			}
			alone := newScorer(t, m, ScorerConfig{KVTokens: 64})
			set(alone)
			rapid.Check(t, func(rt *rapid.T) {
				c := ScorerConfig{
					Tokens:      rapid.IntRange(1, 80).Draw(rt, "tokens"),
					Seqs:        rapid.IntRange(1, 6).Draw(rt, "seqs"),
					Chunk:       rapid.IntRange(1, 50).Draw(rt, "chunk"),
					BlockTokens: rapid.IntRange(1, 20).Draw(rt, "block"),
					KVTokens:    160,
				}
				var seqs []Sequence
				for i := range rapid.IntRange(1, 6).Draw(rt, "sequences") {
					n := rapid.IntRange(1, 45).Draw(rt, "length")
					seqs = append(seqs, Sequence{Tokens: randomTokens(n, m.Config.Vocab, uint64(i)), Adapter: rapid.IntRange(-1, len(ranks)-1).Draw(rt, "adapter")})
				}
				s, err := NewScorer(m, c)
				if err != nil {
					rt.Fatal(err)
				}
				defer s.Close()
				set(s)
				for i, got := range allLogits(t, s, seqs) {
					if want := allLogits(t, alone, seqs[i:i+1])[0]; !same(m, got, want) {
						rt.Fatalf("sequence %d differs from itself alone by %.2g", i, difference(got, want))
					}
				}
			})
		})
	}
}

// TestBatchEqualsMembersOnDevice is the law for SmolLM2's shape, for which a device has faster kernels than for the tiny ones: two layers,
// six sequences with and without adapters, in prompts and one token after the other.
func TestBatchEqualsMembersOnDevice(t *testing.T) {
	if devicetest.OnCPU() {
		t.Skip("the CPU has the same kernels for all shapes")
	}
	const name = "smollm2-135m:2"
	cc, err := RandomConfig(name)
	if err != nil {
		t.Fatal(err)
	}
	hash := RandomHash(name, 1)
	basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{Method: adapters.Kaiming, R: 16, Geometry: GeometryOf(cc), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	m, err := LoadRandom(t.Context(), openDevice(t, kernels.BF16), name, 1, basis, LoadConfig{Format: kernels.FormatBF16, BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	var seqs []Sequence
	for i, n := range []int{90, 1, 33, 64, 17, 40} {
		seqs = append(seqs, Sequence{Tokens: randomTokens(n, cc.Vocab, uint64(i)), Adapter: i%4 - 1})
	}
	scorer := func(c ScorerConfig) *Scorer {
		s := newScorer(t, m, c)
		for i, r := range []int{4, 16, 8} {
			if err := s.SetAdapter(i, randomWeights(m.Geometry, r, uint64(i))); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	alone := scorer(ScorerConfig{KVTokens: 96})
	for _, chunk := range []int{1, 7, 90} {
		worst := 0.0
		for i, got := range allLogits(t, scorer(ScorerConfig{Tokens: 256, Seqs: 6, Chunk: chunk, KVTokens: 400}), seqs) {
			want := allLogits(t, alone, seqs[i:i+1])[0]
			worst = max(worst, difference(got, want))
			if !same(m, got, want) {
				t.Errorf("chunks of %d: sequence %d differs from itself alone by %.2g of (max − min)", chunk, i, difference(got, want))
			}
		}
		t.Logf("chunks of %d: worst difference %.2g of (max − min)", chunk, worst)
	}
}

// TestRankEmbedding: a rank-8 adapter equals its rank-16 form with zero columns, to rounding.
func TestRankEmbedding(t *testing.T) {
	m := tinyModel(t, "qwen3", kernels.F32, kernels.FormatF32)
	s := newScorer(t, m, ScorerConfig{})
	small := randomWeights(m.Geometry, 8, 3)
	large := adapters.NewWeights(m.Geometry, 16, 32)
	for i := range m.Geometry.OutTotal() {
		copy(large.Data[16*i:], small.Data[8*i:8*(i+1)])
	}
	for slot, w := range []*adapters.Weights{small, large} {
		if err := s.SetAdapter(slot, w); err != nil {
			t.Fatal(err)
		}
	}
	ids := randomTokens(50, m.Config.Vocab, 4)
	got := allLogits(t, s, []Sequence{{Tokens: ids, Adapter: 0}, {Tokens: ids, Adapter: 1}, {Tokens: ids, Adapter: adapters.BaseSlot}})
	if d := difference(got[0], got[1]); d > 1e-5 {
		t.Errorf("rank 8 and its rank 16 differ by %.2g of (max − min)", d)
	}
	if d := difference(got[0], got[2]); d < 1e-2 {
		t.Errorf("the adapter changes the logits by %.2g only", d)
	}
}

// TestCapturedDecode: a decode step captured once and replayed with nothing but its record changed gives the tokens of direct runs.
func TestCapturedDecode(t *testing.T) {
	m := tinyModel(t, "llama3-rope", kernels.BF16, kernels.FormatBF16)
	const p, n, steps = 4, 3, 24
	run := func(captured bool) (tokens [][]int32) {
		s := newScorer(t, m, ScorerConfig{BlockTokens: p})
		for slot := range 2 {
			if err := s.SetAdapter(slot, randomWeights(m.Geometry, 8+4*slot, uint64(slot))); err != nil {
				t.Fatal(err)
			}
		}
		be, stream := m.Backend, s.stream
		st, err := NewState(m, n, n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(st.Close)
		buffer, err := s.newStep(kernels.Bucket{Tokens: n, Seqs: n, Rows: n, Blocks: 32, MaxQuery: 1})
		if err != nil {
			t.Fatal(err)
		}
		out := st.Sampled[0]
		enqueue := func() {
			sc := StepContext{Step: buffer.step, Cache: s.cache, Table: s.table, Previous: out}
			m.Serve(stream, st, sc)
			be.Sample(stream, out, st.Logits, kernels.SamplerState{}, sc.Step)
		}
		launch := enqueue
		if captured {
			g, err := be.Capture(stream, enqueue)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			launch = func() { g.Launch(stream) }
		}
		seqs := make([]StepSeq, n)
		for i := range seqs {
			seqs[i] = StepSeq{Tokens: []int32{int32(7 * (i + 1))}, Adapter: i - 1, Rows: []Row{GreedyRow(0)}}
			for b := range int32(8) {
				seqs[i].Blocks = append(seqs[i].Blocks, b*n+int32(i))
			}
		}
		for step := range steps {
			active := seqs[:1+step%n]
			if step%n == 1 {
				active = seqs[:n] // the counts change from step to step as well
			}
			FillRecord(buffer.record, p, active)
			be.Upload(stream, buffer.step.Words, buffer.record.Bytes())
			launch()
			got := make([]int32, len(active))
			be.Download(stream, i32Bytes(got), out.Token)
			if err := stream.Sync(); err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, got)
			for i := range active {
				active[i].Start++
				// The device feeds the first sequence its own token; the id in the record is not read.
				active[i].Tokens, active[i].Feed = []int32{got[i]}, nil
				if i == 0 {
					active[i].Tokens, active[i].Feed = []int32{-5}, []int32{0}
				}
			}
		}
		return tokens
	}
	direct, replayed := run(false), run(true)
	for i := range direct {
		if !slices.Equal(direct[i], replayed[i]) {
			t.Fatalf("step %d: %v, replayed %v", i, direct[i], replayed[i])
		}
	}
}

// TestDeviceHoldsAdapters: a B that went through Device is the B that a scorer sets itself; freeing it leaves no memory behind.
func TestDeviceHoldsAdapters(t *testing.T) {
	m := tinyModel(t, "llama", kernels.BF16, kernels.FormatBF16)
	s := newScorer(t, m, ScorerConfig{})
	w := randomWeights(m.Geometry, 12, 9)
	if err := s.SetAdapter(1, w); err != nil {
		t.Fatal(err)
	}
	seqs := []Sequence{{Tokens: randomTokens(20, m.Config.Vocab, 1), Adapter: 1}}
	want := allLogits(t, s, seqs)[0]

	free := m.Backend.Info().MemoryFree
	d, err := NewDevice(m.Backend, s.stream, 4)
	if err != nil {
		t.Fatal(err)
	}
	packed := w.Pack(d.DType())
	b, err := d.Alloc(int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	for done := d.Upload(b, packed); !done(); {
	}
	d.SetSlot(1, b, w.Rank)
	own := s.table
	s.table = d.Table
	if got := allLogits(t, s, seqs)[0]; !sameBits(got, want) {
		t.Errorf("logits differ by %.2g", difference(got, want))
	}
	d.SetSlot(1, nil, 0)
	if got := allLogits(t, s, seqs)[0]; sameBits(got, want) {
		t.Error("an emptied slot still adds its adapter")
	}
	s.table = own
	d.Free(b)
	d.Close()
	if now := m.Backend.Info().MemoryFree; now != free {
		t.Errorf("%d bytes free before, %d after", free, now)
	}
}
