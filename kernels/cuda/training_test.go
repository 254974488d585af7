//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"bhive/kernels"
)

// training makes a step's record one of training: labels, losses, and lanes that are the adapters' slots. Every fifth token has no label.
func (p *pair) training(vocab int, seqs ...seq) *batch {
	p.Helper()
	plain := p.step(vocab, seqs...)
	bucket := plain.gpu.Bucket
	bucket.Training = true
	rec := kernels.NewRecord(bucket, nil)
	copy(rec.Words, plain.rec.Words) // what training adds lies at the end
	for i := range plain.tokens() {
		rec.Label[i], rec.Loss[i] = int32(p.rng.IntN(vocab)), kernels.Bits(float32(p.rng.Float64()))
		if i%5 == 2 {
			rec.Label[i] = -1
		}
	}
	copy(rec.SegLane, rec.SegAdapter[:rec.Head[kernels.HeadSegs]])
	x := &batch{rec: rec, gpu: kernels.Step{Bucket: bucket}, cpu: kernels.Step{Bucket: bucket}}
	p.upload(x)
	return x
}

// ragged is n rows of noise and then NaN, which may not be read.
func (p *pair) ragged(rows, n, cols int) []float32 {
	x := p.normal(rows*cols, 1)
	copy(x[n*cols:], nans((rows-n)*cols))
	return x
}

// again runs an op twice and holds the results bit for bit.
func (p *pair) again(name string, t kernels.Tensor, run func()) {
	p.Helper()
	before := p.gpu.values(t)
	restore := append([]float32(nil), before...)
	run()
	first := p.gpu.values(t)
	for range 3 {
		back := p.gpu.tensor(t.DType, t.Rows, t.Cols, restore)
		p.gpu.Copy(p.gpu.s, t, back)
		run()
		for i, v := range p.gpu.values(t) {
			if math.Float32bits(v) != math.Float32bits(first[i]) {
				p.Fatalf("%s[%d] is %v and then %v", name, i, first[i], v)
			}
		}
		p.gpu.Free(back)
	}
}

var trainingConfigs = []Config{{Working: kernels.F32}, {Working: kernels.BF16}, {Working: kernels.BF16, BatchInvariant: true}}

func TestLinearBackward(t *testing.T) {
	for _, c := range trainingConfigs {
		for _, shape := range [][3]int{{83, 45, 11}, {88, 48, 8}, {300, 200, 20}, {1000, 576, 64}, {4096, 136, 0}} {
			for _, m := range []int{1, 7, 133, 300} {
				for _, accumulate := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/invariant=%v/%v/%d/%v", c.Working, c.BatchInvariant, shape, m, accumulate), func(t *testing.T) {
						p := newPair(t, c)
						out, in, r := shape[0], shape[1], shape[2]
						w := p.weight(out, in, r)
						b := p.step(9, seq{m, 0, -1})
						dyz := p.act(m+2, out+r, p.ragged(m+2, m, out+r))
						dx := p.act(m+2, in, p.ragged(m+2, m, in))
						p.again("dx", dx.gpu.RowRange(0, m), func() { p.gpu.LinearBackward(p.gpu.s, dx.gpu, dyz.gpu, w.gpu, accumulate, b.gpu) })
						p.cpu.LinearBackward(p.cpu.s, dx.cpu, dyz.cpu, w.cpu, accumulate, b.cpu)
						p.sameRows("dx", dx, m, max(p.tol(), 2e-4))
					})
				}
			}
		}
	}
}

func (p *pair) expandBackward(seqs []seq, out, r int, ranks []int) {
	p.Helper()
	b := p.training(9, seqs...)
	m, n, rows := b.gpu.Bucket.Tokens, b.tokens(), out+7
	table := p.adapters(rows, ranks...)
	gb, cb := table.ref(4, out)
	gl, err := p.gpu.NewLaneTable(len(ranks))
	if err != nil {
		p.Fatal(err)
	}
	cl, err := p.cpu.NewLaneTable(len(ranks))
	if err != nil {
		p.Fatal(err)
	}
	var grads []both
	for i, rank := range ranks {
		g := p.f32(1, rank*rows, p.normal(rank*rows, 1))
		p.gpu.SetLane(p.gpu.s, gl, i, g.gpu, rank, 1.5)
		p.cpu.SetLane(p.cpu.s, cl, i, g.cpu, rank, 1.5)
		grads = append(grads, g)
	}
	dyz, z := p.act(m, out+r, p.ragged(m, n, out+r)), p.working(m, r, p.ragged(m, n, r))
	first := true
	p.again("dz", dyz.gpu.RowRange(0, n), func() {
		lanes := kernels.LaneTable(nil) // without lanes there is no gradient
		if first {
			lanes, first = gl, false
		}
		p.gpu.ExpandBackward(p.gpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.gpu, Z: z.gpu, B: gb, Grad: kernels.GradRef{Table: lanes, Offset: 4, Out: out}}, b.gpu)
	})
	p.cpu.ExpandBackward(p.cpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.cpu, Z: z.cpu, B: cb, Grad: kernels.GradRef{Table: cl, Offset: 4, Out: out}}, b.cpu)
	p.same("dyz", dyz, n, max(p.tol(), 1e-4))
	for l, g := range grads {
		p.same(fmt.Sprintf("dB of lane %d", l), g, 1, 2e-4)
		p.again("dB", g.gpu, func() {
			p.gpu.ExpandBackward(p.gpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.gpu, Z: z.gpu, B: gb, Grad: kernels.GradRef{Table: gl, Offset: 4, Out: out}}, b.gpu)
		})
	}
}

func TestExpandBackward(t *testing.T) {
	mixes(t, func(p *pair, seqs []seq) {
		p.expandBackward(seqs, 83, testR, testRanks)
		p.expandBackward(seqs, 104, testR, testRanks)
		p.expandBackward(seqs, 520, 64, []int{64, 16, 33, 40})
	})
}

// Wide outputs take another tile, and an A of more than 64 rows several of them.
func TestExpandBackwardWide(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		t.Run(d.String(), func(t *testing.T) {
			p := newPair(t, Config{Working: d})
			p.expandBackward([]seq{{70, 0, 0}, {1, 0, 1}, {130, 0, 0}, {40, 0, -1}}, 10000, 24, []int{16, 24})
			p.expandBackward([]seq{{70, 0, 0}, {33, 0, 1}}, 136, 136, []int{128, 72})
		})
	}
}

func (p *pair) crossEntropy(v, h, m int) {
	p.Helper()
	w := p.weight(v, h, 0)
	b := p.training(v, seq{m, 0, -1})
	x := p.act(m+2, h, p.ragged(m+2, m, h))
	dh, nll, alone := p.garbage(m+2, h), p.f32(1, m+2, nans(m+2)), p.f32(1, m+2, nans(m+2))
	p.again("dh", dh.gpu.RowRange(0, m), func() { p.gpu.CrossEntropy(p.gpu.s, nll.gpu, dh.gpu, x.gpu, w.gpu, b.gpu) })
	p.gpu.CrossEntropy(p.gpu.s, alone.gpu, kernels.Tensor{}, x.gpu, w.gpu, b.gpu)
	p.cpu.CrossEntropy(p.cpu.s, nll.cpu, dh.cpu, x.cpu, w.cpu, b.cpu)
	p.cpu.CrossEntropy(p.cpu.s, alone.cpu, kernels.Tensor{}, x.cpu, w.cpu, b.cpu)
	p.same("nll", both{column(nll.gpu), column(nll.cpu)}, m, 2e-5)
	p.same("nll alone", both{column(alone.gpu), column(alone.cpu)}, m, 2e-5)
	p.sameRows("dh", dh, m, max(p.tol(), 1e-4))
}

// column is a row as a column, so that what lies past the counts can be told.
func column(t kernels.Tensor) kernels.Tensor {
	t.Rows, t.Cols, t.Stride = t.Cols, 1, 1
	return t
}

func TestCrossEntropy(t *testing.T) {
	for _, c := range trainingConfigs {
		for _, shape := range [][2]int{{151, 23}, {160, 64}, {1208, 72}, {49152, 64}} {
			for _, m := range []int{1, 7, 133} {
				t.Run(fmt.Sprintf("%s/invariant=%v/%v/%d", c.Working, c.BatchInvariant, shape, m), func(t *testing.T) {
					newPair(t, c).crossEntropy(shape[0], shape[1], m)
				})
			}
		}
	}
}

// So many logits that there are two chunks of tokens, the second a partial one.
func TestCrossEntropyChunks(t *testing.T) {
	const v = 240_000
	if each := lossTokens(v); each >= 300 || each < 150 {
		t.Fatalf("%d tokens a chunk: the test wants two chunks of 300", each)
	}
	for _, c := range trainingConfigs {
		t.Run(fmt.Sprintf("%s/invariant=%v", c.Working, c.BatchInvariant), func(t *testing.T) {
			newPair(t, c).crossEntropy(v, 32, 300)
		})
	}
}

// Over a vocabulary of a real size, with one likely token, the weight of the long tail is not lost.
func TestCrossEntropyLongTail(t *testing.T) {
	p := newPair(t, Config{Working: kernels.F32})
	const h, vocab, m = 16, 49152, 3
	rows := hostMatrix{vocab, h, p.normal(vocab*h, 0.05)}
	for i := range vocab {
		rows.x[i*h] = 1
	}
	rows.x[0] = 15
	spec := kernels.WeightSpec{Parts: []kernels.Matrix{rows}, Format: kernels.FormatF32}
	g, err := p.gpu.NewWeight(spec)
	if err != nil {
		t.Fatal(err)
	}
	b := p.training(vocab, seq{m, 0, -1})
	x := p.normal((m+2)*h, 0.1)
	for i := range m {
		x[i*h] = 1
		b.rec.Label[i], b.rec.Loss[i] = 7, kernels.Bits(1)
	}
	p.upload(b)
	xs, dx, nll := p.act(m+2, h, x), p.garbage(m+2, h), p.f32(1, m+2, nans(m+2))
	p.gpu.CrossEntropy(p.gpu.s, nll.gpu, dx.gpu, xs.gpu, g, b.gpu)
	losses, grads := p.gpu.values(nll.gpu), p.gpu.values(dx.gpu)
	for i := range m {
		sum, first := 0.0, 0.0
		logit := func(e int) (s float64) {
			for j := range h {
				s += float64(x[i*h+j]) * float64(rows.x[e*h+j])
			}
			return s
		}
		for e := range vocab {
			q := math.Exp(logit(e))
			sum += q
			first += q * float64(rows.x[e*h])
		}
		if want := math.Log(sum) - logit(7); math.Abs(float64(losses[i])-want) > 2e-7*(1+want) {
			t.Errorf("nll[%d] = %v, want %v", i, losses[i], want)
		}
		if want := first/sum - float64(rows.x[7*h]); math.Abs(float64(grads[i*h])-want) > 1e-5*(1+math.Abs(want)) {
			t.Errorf("dh[%d] = %v, want %v", i, grads[i*h], want)
		}
	}
}

func TestAdamW(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, rank := range []int{5, 8, 16, 64} {
			for _, corrected := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/%v", d, rank, corrected), func(t *testing.T) {
					p := newPair(t, Config{Working: d})
					const scaling = 1.5
					var sites []kernels.SiteRows
					rows := 0
					for range 13 { // 39 sites: more than a launch has
						sites = append(sites, kernels.SiteRows{Rows: 700}, kernels.SiteRows{Rows: 37}, kernels.SiteRows{Rows: 600})
						rows += 1337
					}
					n := rows * rank
					master, working, norms := p.f32(1, n, p.normal(n, 1)), p.working(1, n, make([]float32, n)), p.f32(1, 3, nans(3))
					m, v, grad, hyper := p.f32(1, n, make([]float32, n)), p.f32(1, n, make([]float32, n)), p.f32(1, n, make([]float32, n)), p.f32(1, kernels.HyperWords, make([]float32, kernels.HyperWords))
					ga := kernels.AdamWArgs{Lane: 2, Master: master.gpu, M: m.gpu, V: v.gpu, Grad: grad.gpu, Working: working.gpu, Rank: rank, Sites: sites, Norms: norms.gpu, Hyper: hyper.gpu}
					ca := kernels.AdamWArgs{Lane: 2, Master: master.cpu, M: m.cpu, V: v.cpu, Grad: grad.cpu, Working: working.cpu, Rank: rank, Sites: sites, Norms: norms.cpu, Hyper: hyper.cpu}
					if corrected {
						c := p.f32(len(sites)*rank, rank, p.normal(len(sites)*rank*rank, 0.5))
						ga.Correction, ca.Correction = c.gpu, c.cpu
					}
					gl, err := p.gpu.NewLaneTable(3)
					if err != nil {
						t.Fatal(err)
					}
					cl, _ := p.cpu.NewLaneTable(3)
					p.gpu.SetLane(p.gpu.s, gl, 2, grad.gpu, rank, scaling)
					p.cpu.SetLane(p.cpu.s, cl, 2, grad.cpu, rank, scaling)
					for step := 1; step <= 4; step++ {
						h := []float32{1e-2, 0.9, 0.99, 1e-6, 0.1, 20, float32(step), scaling}
						if step == 3 {
							h[kernels.HyperClip] = 0
						}
						g := p.normal(n, 1)
						if step == 2 {
							g[n-1] = float32(math.Inf(1))
						}
						for s, a := range map[*side]kernels.AdamWArgs{p.gpu: ga, p.cpu: ca} {
							s.Upload(s.s, a.Grad, bytesOf(g))
							s.Upload(s.s, a.Hyper, bytesOf(h))
						}
						p.again("norms", norms.gpu, func() { p.gpu.GradNorm(p.gpu.s, norms.gpu, gl) })
						p.cpu.GradNorm(p.cpu.s, norms.cpu, cl)
						got, want := p.gpu.values(norms.gpu), p.cpu.values(norms.cpu)
						if got[0] != 0 || got[1] != 0 || step != 2 && math.Abs(float64(got[2]/want[2])-1) > 1e-5 || step == 2 && !math.IsInf(float64(got[2]), 1) {
							t.Fatalf("norms %v, want %v", got, want)
						}
						p.gpu.AdamW(p.gpu.s, ga)
						p.cpu.AdamW(p.cpu.s, ca)
						for i, v := range p.gpu.values(grad.gpu) {
							if v != 0 {
								t.Fatalf("gradient[%d] is %v after the step", i, v)
							}
						}
						// Where a gradient is small beside its rounding, m/√v is not: the first step divides it by itself.
						p.same("B", master, 1, 1e-4)
						p.same("m", m, 1, 1e-4)
						p.same("v", v, 1, 1e-4)
						p.same("working", working, 1, max(1e-4, p.tol()))
					}
				})
			}
		}
	}
}

func TestGram(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, m := range []int{1, 7, 133} {
			t.Run(fmt.Sprintf("%s/%d", d, m), func(t *testing.T) {
				p := newPair(t, Config{Working: d})
				const in = 167
				b := p.training(9, seq{m, 0, -1})
				x, c := p.act(m+2, in, p.ragged(m+2, m, in)), p.f32(in, in, p.normal(in*in, 1))
				p.gpu.Gram(p.gpu.s, c.gpu, x.gpu, b.gpu)
				p.cpu.Gram(p.cpu.s, c.cpu, x.cpu, b.cpu)
				p.same("c", c, in, 1e-4)
			})
		}
	}
}

func TestCopyWide(t *testing.T) {
	p := newPair(t, Config{Working: kernels.BF16})
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		const rows, cols, from, to = 133, 88, 16, 80
		x := p.normal(rows*cols, 1)
		src, dst := p.gpu.tensor(d, rows, cols, x), p.gpu.tensor(d, rows, cols, nans(rows*cols))
		p.gpu.Copy(p.gpu.s, dst.ColRange(from-8, to-8), src.ColRange(from, to))
		for i, v := range p.gpu.values(dst) {
			r, c := i/cols, i%cols
			if in := c >= from-8 && c < to-8; in && v != x[r*cols+c+8] || !in && v == v {
				t.Fatalf("%s [%d, %d] = %v", d, r, c, v)
			}
		}
	}
}
