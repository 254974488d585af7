package cpu

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"bhive/kernels"
	"bhive/kernels/cpu/simd"
)

// Sizes of the benchmarks' model, SmolLM2-135M's.
const (
	smolLayers, smolH, smolHq, smolHkv, smolD, smolF, smolV, smolR = 30, 576, 9, 3, 64, 1536, 49152, 64
)

// ceilings measures the machine: bytes and floating-point operations a second with two threads.
func ceilings(threads int) (bandwidth, flops float64) {
	buf := make([]byte, 256<<20)
	for i := range buf { // untouched pages would all be one
		buf[i] = byte(i)
	}
	run := func(f func(i int) float64) float64 {
		best := 0.0
		for range 4 {
			var wg sync.WaitGroup
			sums := make([]float64, threads)
			start := time.Now()
			for i := range threads {
				wg.Go(func() { sums[i] = f(i) })
			}
			wg.Wait()
			sum := 0.0
			for _, s := range sums {
				sum += s
			}
			best = max(best, sum/time.Since(start).Seconds())
		}
		return best
	}
	n := len(buf) / threads
	bandwidth = run(func(i int) float64 { simd.ReadBandwidth(buf[i*n:][:n]); return float64(n) })
	flops = run(func(int) float64 { return float64(simd.PeakFMA(1 << 22)) })
	return bandwidth, flops
}

type pattern struct{ rows, cols int }

func (p pattern) Rows() int { return p.rows }
func (p pattern) Cols() int { return p.cols }
func (p pattern) Row(i int, dst []float32) {
	for j := range dst {
		dst[j] = float32((i*31+j*17)%63-31) * 1e-3
	}
}

func (r *rig) patterned(out, in, a int, f kernels.Format) *weight {
	spec := kernels.WeightSpec{Parts: []kernels.Matrix{pattern{out, in}}, Format: f}
	if a > 0 {
		spec.A = pattern{a, in}
	}
	w, err := r.NewWeight(spec)
	if err != nil {
		r.Fatal(err)
	}
	return w.(*weight)
}

// BenchmarkLinear measures the four sites over enough copies of the weights that none stays in cache.
func BenchmarkLinear(b *testing.B) {
	r := newRig(b, Config{Working: kernels.BF16})
	bandwidth, flops := ceilings(r.pool.workers)
	b.Logf("ceilings: %.1f GB/s, %.0f GFLOP/s", bandwidth/1e9, flops/1e9)
	for _, f := range []kernels.Format{kernels.FormatBF16, kernels.FormatInt8} {
		for _, site := range []struct {
			name    string
			out, in int
		}{{"attn_in", 960, smolH}, {"attn_out", smolH, smolH}, {"mlp_in", 2 * smolF, smolH}, {"mlp_down", smolH, smolF}} {
			var ws []*weight
			for range 24 {
				ws = append(ws, r.patterned(site.out, site.in, smolR, f))
			}
			for _, m := range []int{1, 8, 256} {
				for _, back := range []bool{false, true} {
					if back && m < 256 {
						continue
					}
					b.Run(fmt.Sprintf("%s/%s/%d/back=%v", f, site.name, m, back), func(b *testing.B) {
						st := r.step(9, seq{n: m, adapter: -1, lane: -1})
						x, yz := r.random(m+2, site.in, 1), r.random(m+2, site.out+smolR, 1)
						i := 0
						for b.Loop() {
							w := ws[i%len(ws)]
							if i++; back {
								r.LinearBackward(r.s, x, yz, w, false, st.step)
							} else {
								r.Linear(r.s, yz, x, w, st.step)
							}
						}
						s := b.Elapsed().Seconds() / float64(b.N)
						bytes, ops := float64(ws[0].bytes), 2*float64(m)*float64(site.out+smolR)*float64(site.in)
						b.ReportMetric(bytes/s/1e9, "GB/s")
						b.ReportMetric(100*bytes/s/bandwidth, "%bw")
						b.ReportMetric(ops/s/1e9, "GFLOP/s")
						b.ReportMetric(100*ops/s/flops, "%fma")
					})
				}
			}
			for _, w := range ws {
				r.FreeWeight(w)
			}
		}
	}
}

// smol is a model of SmolLM2-135M's shapes.
type smol struct {
	*rig
	embed                                      *weight
	in, out, up, down                          []*weight
	norm, rope                                 kernels.Tensor
	cache                                      kernels.KVCache
	table                                      kernels.AdapterTable
	x, normed, q, o, act, yz, gathered, logits kernels.Tensor
	sampled                                    kernels.Sampled
	state                                      kernels.SamplerState
	lanes                                      kernels.LaneTable
	dx, dy, dq, dk, dv, lse, rstd, nll, z, gu  kernels.Tensor
}

const smolRows = 960 + smolH + 2*smolF + smolH // of B, a layer

func newSmol(r *rig, f kernels.Format, room int) *smol {
	m := &smol{rig: r, embed: r.patterned(smolV, smolH, 0, f)}
	for range smolLayers {
		m.in, m.out = append(m.in, r.patterned(960, smolH, smolR, f)), append(m.out, r.patterned(smolH, smolH, smolR, f))
		m.up, m.down = append(m.up, r.patterned(2*smolF, smolH, smolR, f)), append(m.down, r.patterned(smolH, smolF, smolR, f))
	}
	m.norm, m.rope = r.random(1, smolH, 1), r.ropeTable(2048, smolD)
	var err error
	if m.cache, err = r.NewKVCache(kernels.KVSpec{Layers: smolLayers, Blocks: 512, BlockTokens: blockTokens, KVHeads: smolHkv, HeadDim: smolD}); err != nil {
		r.Fatal(err)
	}
	m.table = r.adapters(smolLayers*smolRows, 16, 16, 16, 16, 16, 16, 16, 16)
	m.x, m.normed, m.q, m.o = r.random(room, smolH, 1), r.random(room, smolH, 1), r.random(room, smolH, 1), r.random(room, smolH, 1)
	m.act, m.yz = r.random(room, smolF, 1), r.random(room, 2*smolF+smolR, 1)
	m.gathered, m.logits, m.sampled, m.state = r.random(room, smolH, 1), r.alloc(kernels.F32, room, smolV), r.sampled(room), r.samplerState(1, smolV)
	return m
}

func (m *smol) ref(layer, offset, out int) kernels.BRef {
	return kernels.BRef{Table: m.table, Offset: layer*smolRows + offset, Out: out}
}

func (m *smol) forward(step kernels.Step) {
	s := m.s
	yz := func(w *weight) kernels.Tensor { return m.yz.ColRange(0, w.rows()) }
	m.Embed(s, m.x, m.embed, kernels.Sampled{}, step)
	m.RMSNorm(s, m.normed, m.x, m.norm, kernels.Tensor{}, 1e-5, step)
	for i := range smolLayers {
		m.Linear(s, yz(m.in[i]), m.normed, m.in[i], step)
		m.QKV(s, kernels.QKVArgs{Q: m.q, YZ: yz(m.in[i]), Rope: m.rope, Cache: m.cache, Layer: i, B: m.ref(i, 0, 960)}, step)
		m.Attention(s, kernels.AttentionArgs{Out: m.o, Q: m.q, Cache: m.cache, Layer: i, Scale: 0.125, LSE: m.lse}, step)
		m.Linear(s, yz(m.out[i]), m.o, m.out[i], step)
		m.ResidualNorm(s, kernels.ResidualNormArgs{Out: m.x, Normed: m.normed, X: m.x, YZ: yz(m.out[i]), Norm: m.norm, Eps: 1e-5, B: m.ref(i, 960, smolH)}, step)
		m.Linear(s, yz(m.up[i]), m.normed, m.up[i], step)
		m.MLP(s, kernels.MLPArgs{Act: m.act, YZ: yz(m.up[i]), B: m.ref(i, 960+smolH, 2*smolF)}, step)
		m.Linear(s, yz(m.down[i]), m.act, m.down[i], step)
		m.ResidualNorm(s, kernels.ResidualNormArgs{Out: m.x, Normed: m.normed, X: m.x, YZ: yz(m.down[i]), Norm: m.norm, Eps: 1e-5, B: m.ref(i, 960+smolH+2*smolF, smolH)}, step)
	}
}

func (m *smol) sampleAll(step kernels.Step) {
	m.GatherRows(m.s, m.gathered, m.normed, step)
	m.LinearRows(m.s, m.logits, m.gathered, m.embed, step)
	m.Sample(m.s, m.sampled, m.logits, m.state, step)
}

func (m *smol) backward(step kernels.Step) {
	s, none := m.s, kernels.GradRef{}
	grad := func(layer, offset, out int) kernels.GradRef {
		none = kernels.GradRef{Table: m.lanes, Offset: layer*smolRows + offset, Out: out}
		return none
	}
	yz := func(w *weight) kernels.Tensor { return m.yz.ColRange(0, w.rows()) }
	m.CrossEntropy(s, m.nll, m.dx, m.normed, kernels.Tensor{}, m.embed, step)
	for i := smolLayers - 1; i >= 0; i-- {
		m.Copy(s, yz(m.down[i]).ColRange(0, smolH), m.dx)
		m.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: yz(m.down[i]), Z: m.z, B: m.ref(i, 960+smolH+2*smolF, smolH), Grad: grad(i, 960+smolH+2*smolF, smolH)}, step)
		m.LinearBackward(s, m.act, yz(m.down[i]), m.down[i], false, step)
		m.MLPBackward(s, yz(m.up[i]).ColRange(0, 2*smolF), m.act, m.gu, step)
		m.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: yz(m.up[i]), Z: m.z, B: m.ref(i, 960+smolH, 2*smolF), Grad: grad(i, 960+smolH, 2*smolF)}, step)
		m.LinearBackward(s, m.dy, yz(m.up[i]), m.up[i], false, step)
		m.NormBackward(s, m.dx, m.dy, m.x, m.norm, m.rstd, step)
		m.Copy(s, yz(m.out[i]).ColRange(0, smolH), m.dx)
		m.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: yz(m.out[i]), Z: m.z, B: m.ref(i, 960, smolH), Grad: grad(i, 960, smolH)}, step)
		m.LinearBackward(s, m.dy, yz(m.out[i]), m.out[i], false, step)
		m.AttentionBackward(s, kernels.AttentionBackwardArgs{DQ: m.dq, DK: m.dk, DV: m.dv, DO: m.dy, O: m.o, Q: m.q, LSE: m.lse, Cache: m.cache, Layer: i, Scale: 0.125}, step)
		m.QKVBackward(s, kernels.QKVBackwardArgs{DY: m.yz.ColRange(0, 960), DQ: m.dq, DK: m.dk, DV: m.dv, Rope: m.rope, Heads: smolHq, KVHeads: smolHkv}, step)
		m.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: yz(m.in[i]), Z: m.z, B: m.ref(i, 0, 960), Grad: grad(i, 0, 960)}, step)
		m.LinearBackward(s, m.dy, yz(m.in[i]), m.in[i], false, step)
		m.NormBackward(s, m.dx, m.dy, m.x, m.norm, m.rstd, step)
	}
}

func (m *smol) wanted(st *batch, rows int) {
	st.rec.Head[kernels.HeadRows] = int32(rows)
	for i := range rows {
		st.rec.RowToken[i], st.rec.RowForced[i] = int32(i), -1
		st.rec.RowTemperature[i], st.rec.RowTopP[i] = kernels.Bits(1), kernels.Bits(1)
	}
}

// BenchmarkModel measures whole steps: decode at context 256, alone and in batches of 8 without and with 8 adapters, prefill of 256
// tokens, and training of one sequence of 256 with every token trained.
func BenchmarkModel(b *testing.B) {
	for _, f := range []kernels.Format{kernels.FormatBF16, kernels.FormatInt8} {
		r := newRig(b, Config{Working: kernels.BF16})
		bandwidth, _ := ceilings(r.pool.workers)
		m := newSmol(r, f, 260)
		bytes := float64(m.embed.bytes)
		for i := range m.in {
			bytes += float64(m.in[i].bytes + m.out[i].bytes + m.up[i].bytes + m.down[i].bytes)
		}
		steps := func(b *testing.B, n int, run func()) {
			run()
			best := time.Hour.Seconds() // of single runs: what a machine with other work still shows
			for b.Loop() {
				start := time.Now()
				run()
				best = min(best, time.Since(start).Seconds())
			}
			b.ReportMetric(float64(n)/best, "best-tok/s")
			b.ReportMetric(100*bytes/best/bandwidth, "best-%bw")
		}
		decode := func(n int, adapters bool) (seqs []seq) {
			for i := range n {
				s := seq{n: 1, context: 255, adapter: -1, lane: -1}
				if adapters {
					s.adapter = i
				}
				seqs = append(seqs, s)
			}
			return seqs
		}
		for _, c := range []struct {
			name     string
			n        int
			adapters bool
		}{{"decode1", 1, false}, {"decode1-adapter", 1, true}, {"decode8", 8, false}, {"decode8-adapters", 8, true}} {
			st := r.step(smolV, decode(c.n, c.adapters)...)
			m.wanted(st, c.n)
			b.Run(fmt.Sprintf("%s/%s", f, c.name), func(b *testing.B) {
				steps(b, c.n, func() { m.forward(st.step); m.sampleAll(st.step) })
			})
		}
		for _, adapter := range []int{-1, 3} {
			st := r.step(smolV, seq{n: 256, adapter: adapter, lane: -1})
			m.wanted(st, 1)
			b.Run(fmt.Sprintf("%s/prefill256/adapter=%d", f, adapter), func(b *testing.B) {
				steps(b, 256, func() { m.forward(st.step); m.sampleAll(st.step) })
			})
		}
		st := r.step(smolV, seq{n: 256, adapter: 3, lane: 0})
		for i := range st.tokens() {
			st.rec.Label[i], st.rec.Loss[i] = int32(i), kernels.Bits(1e-2)
		}
		m.dx, m.dy, m.dq, m.lse = r.random(258, smolH, 1), r.random(258, smolH, 1), r.random(258, smolH, 1), r.random(258, smolHq, 1)
		m.dk, m.dv, m.rstd, m.nll = r.random(258, 192, 1), r.random(258, 192, 1), r.random(1, 258, 1), r.random(1, 258, 1)
		m.z, m.gu = r.random(258, smolR, 1), r.random(258, 2*smolF, 1)
		m.lanes, _ = r.NewLaneTable(1)
		r.SetLane(r.s, m.lanes, 0, r.alloc(kernels.F32, 1, 16*smolLayers*smolRows), 16, 2)
		m.x, m.normed, m.act = m.x.RowRange(0, 258), m.normed.RowRange(0, 258), m.act.RowRange(0, 258)
		m.yz = m.yz.RowRange(0, 258)
		b.Run(fmt.Sprintf("%s/train256", f), func(b *testing.B) {
			steps(b, 256, func() { m.forward(st.step); m.backward(st.step) })
		})
	}
}

// BenchmarkDecodeAttention measures the attention of one token over all layers of SmolLM2's shape, with its 3 key heads and with others.
func BenchmarkDecodeAttention(b *testing.B) {
	for _, c := range []struct{ threads, kv, group, context int }{{1, 3, 3, 512}, {2, 3, 3, 512}, {1, 3, 3, 2048}, {2, 3, 3, 2048}, {2, 2, 7, 2048}, {2, 1, 8, 2048}} {
		b.Run(fmt.Sprintf("threads=%d/heads=%dx%d/%d", c.threads, c.kv, c.group, c.context), func(b *testing.B) {
			r := newRig(b, Config{Threads: c.threads, Working: kernels.BF16})
			st := r.step(9, seq{n: 1, context: c.context - 1, adapter: -1, lane: -1})
			cache, err := r.NewKVCache(kernels.KVSpec{Layers: smolLayers, Blocks: 2 * c.context / blockTokens, BlockTokens: blockTokens, KVHeads: c.kv, HeadDim: smolD})
			if err != nil {
				b.Fatal(err)
			}
			width := c.kv * c.group * smolD
			q, o := r.random(3, width, 1), r.random(3, width, 1)
			for b.Loop() {
				for i := range smolLayers {
					r.Attention(r.s, kernels.AttentionArgs{Out: o, Q: q, Cache: cache, Layer: i, Scale: 0.125}, st.step)
				}
			}
		})
	}
}
