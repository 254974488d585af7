package cpu

import (
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"bhive/kernels"
)

// layer is one transformer layer's worth of ops with room for a number of tokens.
type layer struct {
	*rig
	h, f                     int
	in, out, up, down, head  *weight
	norm                     kernels.Tensor
	rope                     kernels.Tensor
	cache                    *kvCache
	table                    kernels.AdapterTable
	rows                     int // of B
	x, normed, q, o, act, yz kernels.Tensor
	gathered, logits         kernels.Tensor
	sampled                  kernels.Sampled
	state                    kernels.SamplerState
}

func newLayer(r *rig, room int, f kernels.Format) *layer {
	l := &layer{rig: r, h: 48, f: 70}
	q, kv := testHq*testD, testHkv*testD
	l.rows = q + 2*kv + l.h + 2*l.f + l.h
	l.in, l.out = r.weight(q+2*kv, l.h, testR, f), r.weight(l.h, q, testR, f)
	l.up, l.down = r.weight(2*l.f, l.h, testR, f), r.weight(l.h, l.f, testR, f)
	l.head = r.weight(99, l.h, 0, f)
	l.norm, l.rope = r.random(1, l.h, 1), r.ropeTable(300, testD)
	l.table = r.adapters(l.rows, ranks...)
	c, err := r.NewKVCache(kernels.KVSpec{Layers: 1, Blocks: 200, BlockTokens: blockTokens, KVHeads: testHkv, HeadDim: testD})
	if err != nil {
		r.Fatal(err)
	}
	l.cache = c.(*kvCache)
	l.x, l.normed, l.q, l.o = r.garbage(room, l.h), r.garbage(room, l.h), r.garbage(room, q), r.garbage(room, q)
	l.act, l.yz = r.garbage(room, l.f), r.garbage(room, max(q+2*kv, 2*l.f)+testR)
	l.gathered, l.logits = r.garbage(room, l.h), r.garbage(room, 99)
	l.sampled = r.sampled(room)
	l.state = r.samplerState(room, 99)
	return l
}

func (r *rig) sampled(rows int) kernels.Sampled {
	return kernels.Sampled{Token: r.alloc(kernels.I32, 1, rows), Logprob: r.alloc(kernels.F32, 1, rows), Rank: r.alloc(kernels.I32, 1, rows),
		TopID: r.alloc(kernels.I32, rows, kernels.MaxTopLogprobs), TopLogprob: r.alloc(kernels.F32, rows, kernels.MaxTopLogprobs)}
}

func (r *rig) samplerState(rows, v int) kernels.SamplerState {
	return kernels.SamplerState{Counts: r.alloc(kernels.I32, rows, v), BiasID: r.alloc(kernels.I32, rows, 8), Bias: r.alloc(kernels.F32, rows, 8),
		Mask: r.alloc(kernels.I32, rows, (v+31)/32)}
}

// yzOf is the part of the yz buffer with a weight's shape.
func (l *layer) yzOf(w *weight) kernels.Tensor { return l.yz.ColRange(0, w.rows()) }

// forward enqueues embedding, the layer, head and sampling.
func (l *layer) forward(step kernels.Step) {
	q, kv := testHq*testD, testHkv*testD
	ref := func(offset, out int) kernels.BRef { return kernels.BRef{Table: l.table, Offset: offset, Out: out} }
	s := l.s
	l.Embed(s, l.x, l.head, l.sampled, step)
	l.RMSNorm(s, l.normed, l.x, l.norm, kernels.Tensor{}, 1e-5, step)
	l.Linear(s, l.yzOf(l.in), l.normed, l.in, step)
	l.QKV(s, kernels.QKVArgs{Q: l.q, YZ: l.yzOf(l.in), Eps: 1e-5, Rope: l.rope, Cache: l.cache, B: ref(0, q+2*kv)}, step)
	l.Attention(s, kernels.AttentionArgs{Out: l.o, Q: l.q, Cache: l.cache, Scale: 0.3}, step)
	l.Linear(s, l.yzOf(l.out), l.o, l.out, step)
	l.ResidualNorm(s, kernels.ResidualNormArgs{Out: l.x, Normed: l.normed, X: l.x, YZ: l.yzOf(l.out), Norm: l.norm, Eps: 1e-5, B: ref(q+2*kv, l.h)}, step)
	l.Linear(s, l.yzOf(l.up), l.normed, l.up, step)
	l.MLP(s, kernels.MLPArgs{Act: l.act, YZ: l.yzOf(l.up), B: ref(q+2*kv+l.h, 2*l.f)}, step)
	l.Linear(s, l.yzOf(l.down), l.act, l.down, step)
	l.ResidualNorm(s, kernels.ResidualNormArgs{Out: l.x, Normed: l.normed, X: l.x, YZ: l.yzOf(l.down), Norm: l.norm, Eps: 1e-5, B: ref(q+2*kv+l.h+2*l.f, l.h)}, step)
	l.GatherRows(s, l.gathered, l.normed, step)
	l.LinearRows(s, l.logits, l.gathered, l.head, step)
	l.Sample(s, l.sampled, l.logits, l.state, step)
}

// prompt is a sequence of a law test: its tokens, adapter, and the chunks it is cut into.
type prompt struct {
	tokens  []int32
	adapter int
	chunks  []int
}

// logitsOf runs prompts together, chunk by chunk, and returns each token's logits.
func (l *layer) logitsOf(prompts []prompt) [][][]float32 {
	out := make([][][]float32, len(prompts))
	done := make([]int, len(prompts))
	for round := 0; ; round++ {
		var seqs []seq
		var of []int
		for i, p := range prompts {
			if round < len(p.chunks) {
				seqs = append(seqs, seq{n: p.chunks[round], context: done[i], adapter: p.adapter, lane: -1})
				of = append(of, i)
			}
		}
		if len(seqs) == 0 {
			return out
		}
		b := l.step(99, seqs...)
		for s, i := range of {
			for j := range b.step.Bucket.Blocks {
				b.rec.BlockTable[s*b.step.Bucket.Blocks+j] = int32(blockOf(i, j, 12))
			}
			for j := range seqs[s].n {
				t := int(b.rec.QueryStart[s]) + j
				p := done[i] + j
				b.rec.Token[t] = prompts[i].tokens[p]
				b.rec.KVSlot[t] = int32(blockOf(i, p/blockTokens, 12)*blockTokens + p%blockTokens)
			}
		}
		n := b.tokens()
		b.rec.Head[kernels.HeadRows] = int32(n)
		for t := range n {
			b.rec.RowToken[t], b.rec.RowFlags[t], b.rec.RowForced[t] = int32(t), kernels.RowGreedy, -1
		}
		l.forward(b.step)
		for s, i := range of {
			for j := range seqs[s].n {
				row := values(l.logits)[(int(b.rec.QueryStart[s])+j)*99:][:99]
				out[i] = append(out[i], append([]float32(nil), row...))
			}
			done[i] += seqs[s].n
		}
		l.Free(b.step.Words)
	}
}

// TestBatchInvariance: a token's logits are the same bits alone, in a batch of mixed adapters, with any chunks of the prompts
// and any number of threads.
func TestBatchInvariance(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, f := range []kernels.Format{kernels.FormatF32, kernels.FormatBF16, kernels.FormatInt8} {
			t.Run(fmt.Sprintf("%s/%s", d, f), func(t *testing.T) {
				single := newLayer(newRig(t, Config{Threads: 1, Working: d}), 300, f)
				double := newLayer(newRig(t, Config{Threads: 2, Working: d}), 300, f)
				triple := newLayer(newRig(t, Config{Threads: 3, Working: d}), 300, f)
				rapid.Check(t, func(rt *rapid.T) {
					var prompts []prompt
					for i := range rapid.IntRange(1, 4).Draw(rt, "prompts") {
						p := prompt{adapter: rapid.IntRange(-1, 3).Draw(rt, "adapter")}
						for n := rapid.IntRange(1, 60).Draw(rt, "tokens"); n > 0; {
							c := rapid.IntRange(1, n).Draw(rt, "chunk")
							p.chunks = append(p.chunks, c)
							n -= c
							for range c {
								p.tokens = append(p.tokens, int32((i*31+len(p.tokens)*17)%99))
							}
						}
						prompts = append(prompts, p)
					}
					together := double.logitsOf(prompts)
					for i, p := range prompts {
						p.chunks = []int{len(p.tokens)}
						for name, l := range map[string]*layer{"one thread": single, "three threads": triple} {
							if alone := l.logitsOf([]prompt{p})[0]; !cmp.Equal(alone, together[i]) {
								rt.Fatalf("prompt %d differs on %s, alone and whole", i, name)
							}
						}
					}
				})
			})
		}
	}
}

// TestZeroB: an adapter of zeros is the base, bit for bit.
func TestZeroB(t *testing.T) {
	l := newLayer(newRig(t, Config{Threads: 2, Working: kernels.BF16}), 100, kernels.FormatBF16)
	l.SetAdapter(l.s, l.table, 1, l.workingTensor(1, 8*l.rows, make([]float32, 8*l.rows)), 8)
	p := prompt{tokens: []int32{5, 9, 2, 40, 7}, adapter: 1, chunks: []int{5}}
	with := l.logitsOf([]prompt{p})
	p.adapter = -1
	if !cmp.Equal(with, l.logitsOf([]prompt{p})) {
		t.Fatal("zeros change the base")
	}
}

// TestReplay: a captured step, replayed after nothing but the record changed, equals direct calls on the new record.
func TestReplay(t *testing.T) {
	captured := newLayer(newRig(t, Config{Threads: 2}), 80, kernels.FormatF32)
	direct := newLayer(newRig(t, Config{Threads: 2}), 80, kernels.FormatF32)
	rng := captured.rng
	b, d := captured.step(99, seq{n: 20, adapter: 0, lane: -1}, seq{n: 30, context: 5, adapter: 1, lane: -1}), direct.step(99, seq{n: 20, adapter: 0, lane: -1}, seq{n: 30, context: 5, adapter: 1, lane: -1})
	host := append([]int32(nil), b.rec.Words...)
	record := kernels.NewRecord(b.step.Bucket, host)
	g, err := captured.Capture(captured.s, func() {
		captured.Upload(captured.s, b.step.Words, record.Bytes())
		captured.forward(b.step)
	})
	if err != nil {
		t.Fatal(err)
	}
	if v := values(captured.x)[0]; v == v {
		t.Fatal("a captured op ran")
	}
	for round := range 5 {
		n, m := 1+rng.IntN(20), 1+rng.IntN(25)
		record.Head[kernels.HeadTokens], record.Head[kernels.HeadRows] = int32(n+m), int32(2)
		record.QueryStart[1], record.QueryStart[2] = int32(n), int32(n+m)
		record.SegStart[1], record.SegStart[2] = int32(n), int32(n+m)
		record.SegAdapter[0], record.SegAdapter[1] = int32(round%4), int32(round%3)-1
		record.Context[0], record.Context[1] = int32(n), int32(m)
		for i := range n + m {
			s, p := 0, i
			if i >= n {
				s, p = 1, i-n
			}
			record.Token[i], record.Position[i], record.Seq[i] = int32(rng.IntN(99)), int32(p), int32(s)
			record.KVSlot[i] = record.BlockTable[s*b.step.Bucket.Blocks+p/blockTokens]*blockTokens + int32(p%blockTokens)
		}
		if round > 0 {
			record.Feed[0] = 1
		}
		for i := range 2 {
			record.RowToken[i], record.RowForced[i], record.RowSeedLo[i], record.RowDraw[i] = record.QueryStart[i+1]-1, -1, int32(round), int32(i)
			record.RowTemperature[i], record.RowTopP[i], record.RowTop[i] = kernels.Bits(1.5), kernels.Bits(1), 3
		}
		g.Launch(captured.s)
		direct.Upload(direct.s, d.step.Words, record.Bytes())
		direct.forward(d.step)
		if diff := cmp.Diff(direct.snapshot(n+m), captured.snapshot(n+m)); diff != "" {
			t.Fatalf("round %d: direct against replay:\n%s", round, diff)
		}
	}
	g.Close()
}

func (l *layer) snapshot(n int) map[string]any {
	s := l.sampled
	return map[string]any{"x": values(l.x)[:n*l.h], "logits": values(l.logits)[:2*99], "token": ints(s.Token, "test")[:2],
		"logprob": values(s.Logprob)[:2], "top": ints(s.TopID, "test")[:6]}
}

// TestNoAllocation: ops allocate nothing once they have run.
func TestNoAllocation(t *testing.T) {
	l := newLayer(newRig(t, Config{Threads: 2, Working: kernels.BF16}), 80, kernels.FormatBF16)
	b := l.step(99, seq{n: 1, context: 30, adapter: 0, lane: 0}, seq{n: 40, adapter: 1, lane: 1}, seq{n: 1, context: 3, adapter: -1, lane: -1})
	rec := b.rec
	rec.Head[kernels.HeadRows] = 6
	for i := range 6 {
		rec.RowToken[i], rec.RowForced[i], rec.RowTop[i], rec.RowSampler[i] = int32(i), -1, 5, int32(i)
		rec.RowTemperature[i], rec.RowTopP[i], rec.RowRepetition[i] = kernels.Bits(1), kernels.Bits(1), kernels.Bits(1.1)
	}
	rec.RowFlags[0] = kernels.RowGreedy
	rec.RowTopP[1], rec.RowTopK[2], rec.RowTopK[3], rec.RowFlags[4] = kernels.Bits(0.9), 20, 5, kernels.RowPenalties
	tr := newTraining(l, b)
	l.forward(b.step)
	if n := testing.AllocsPerRun(10, func() { l.forward(b.step) }); n != 0 {
		t.Errorf("serving allocates %v times", n)
	}
	tr.backward()
	if n := testing.AllocsPerRun(10, tr.backward); n != 0 {
		t.Errorf("training allocates %v times", n)
	}
}

// training is what the training ops need beside a layer.
type training struct {
	*layer
	b                                *batch
	lanes                            kernels.LaneTable
	grads                            []kernels.Tensor
	dx, dq, dk, dv, lse, rstd, dyz   kernels.Tensor
	z, gu, nll, norms, hyper, m1, v1 kernels.Tensor
	master, gram, working            kernels.Tensor
	sites                            []kernels.SiteRows
}

func newTraining(l *layer, b *batch) *training {
	m := b.step.Bucket.Tokens
	t := &training{layer: l, b: b}
	t.lanes, t.grads = l.lanes(l.rows, 2)
	n := ranks[0] * l.rows
	q, kv := testHq*testD, testHkv*testD
	t.dx, t.dq, t.dk, t.dv = l.random(m, l.h, 1), l.random(m, q, 1), l.random(m, kv, 1), l.random(m, kv, 1)
	t.lse, t.rstd, t.dyz = l.random(m, testHq, 1), l.random(1, m, 1), l.random(m, l.in.rows(), 1)
	t.z = l.workingTensor(m, testR, l.normal(m*testR, 1))
	t.gu, t.nll, t.norms = l.random(m, 2*l.f, 1), l.garbage(1, m), l.garbage(1, len(ranks))
	t.hyper = l.tensor(1, kernels.HyperWords, []float32{1e-3, 0.9, 0.99, 1e-8, 0, 1, 1, 2})
	t.m1, t.v1, t.master, t.gram = l.alloc(kernels.F32, 1, n), l.alloc(kernels.F32, 1, n), l.random(1, n, 1), l.random(l.h, l.h, 1)
	t.working = l.alloc(l.config.Working, 1, n)
	t.sites = []kernels.SiteRows{{Rows: l.rows}}
	for i := range b.tokens() {
		b.rec.Label[i] = int32(i%7) - 1
		b.rec.Loss[i] = kernels.Bits(0.1)
	}
	return t
}

// backward runs every training op once.
func (t *training) backward() {
	s, step := t.s, t.b.step
	out := t.in.out
	t.CrossEntropy(s, t.nll, t.dx, t.normed, kernels.Tensor{}, t.head, step)
	t.NormBackward(s, t.dx, t.normed, t.x, t.norm, t.rstd, step)
	t.MLPForward(s, t.act, t.gu, step)
	t.MLPBackward(s, t.gu, t.act, t.gu, step)
	t.AttentionBackward(s, kernels.AttentionBackwardArgs{DQ: t.dq, DK: t.dk, DV: t.dv, DO: t.o, O: t.o, Q: t.q, LSE: t.lse, Cache: t.cache, Scale: 0.3}, step)
	t.QKVBackward(s, kernels.QKVBackwardArgs{DY: t.dyz.ColRange(0, out), DQ: t.dq, DK: t.dk, DV: t.dv, Rope: t.rope, Heads: testHq, KVHeads: testHkv}, step)
	t.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: t.dyz, Z: t.z, B: kernels.BRef{Table: t.table, Out: out}, Grad: kernels.GradRef{Table: t.lanes, Out: out}}, step)
	t.LinearBackward(s, t.dx, t.dyz, t.in, true, step)
	t.GradNorm(s, t.norms, t.lanes)
	t.AdamW(s, kernels.AdamWArgs{Lane: 0, Master: t.master, M: t.m1, V: t.v1, Grad: t.grads[0], Working: t.working, Rank: ranks[0], Sites: t.sites,
		Norms: t.norms, Hyper: t.hyper})
	t.Gram(s, t.gram, t.x, step)
	t.Copy(s, t.dq, t.q.RowRange(0, t.dq.Rows))
	t.Zero(s, t.dq)
}

// TestLanesAlone: a lane's gradient is the same bits whether its tokens are alone or beside others.
func TestLanesAlone(t *testing.T) {
	r := newRig(t, Config{Threads: 2, Working: kernels.BF16})
	const out = 83
	table := r.adapters(out, ranks...)
	m := 60
	dyz, z := r.normal(m*(out+testR), 1), r.normal(m*testR, 1)
	run := func(seqs ...seq) []float32 {
		lanes, grads := r.lanes(out, 2)
		r.Zero(r.s, grads[1])
		b := r.step(9, seqs...)
		room := b.step.Bucket.Tokens
		a := kernels.ExpandBackwardArgs{DYZ: r.garbage(room, out+testR), Z: r.alloc(kernels.BF16, room, testR),
			B: kernels.BRef{Table: table, Out: out}, Grad: kernels.GradRef{Table: lanes, Out: out}}
		// The lane's own tokens get the first rows of the data, in order; others the last.
		at, other := 0, m-1
		for i := range b.tokens() {
			src := other
			if b.rec.Adapter[i] == 1 {
				src = at
				at++
			}
			copy(values(a.DYZ)[i*(out+testR):], dyz[src*(out+testR):][:out+testR])
			r.workingOf(a.Z, "z").put(r.k, i*testR, z[src*testR:][:testR])
		}
		r.ExpandBackward(r.s, a, b.step)
		return values(grads[1])
	}
	alone := run(seq{n: 30, adapter: 1, lane: 1})
	beside := run(seq{n: 3, adapter: 2, lane: 2}, seq{n: 11, adapter: 1, lane: 1}, seq{n: 5, adapter: 0, lane: 0}, seq{n: 19, adapter: 1, lane: 1})
	if !cmp.Equal(alone, beside) || math.IsNaN(float64(alone[0])) {
		t.Fatal("a lane's gradient depends on its neighbours")
	}
}
