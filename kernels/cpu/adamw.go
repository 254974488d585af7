package cpu

import (
	"fmt"
	"math"

	"bhive/kernels"
)

// normRun is the gradient elements whose squares are summed together; the sums of the runs are added in order, in float64.
const normRun = 1 << 14

type gradNormTask struct {
	b    *Backend
	grad []float32
	sums []float32
}

// GradNorm: norms[l] = Σ g² over lane l's gradient; 0 for lanes that are not set.
func (b *Backend) GradNorm(s kernels.Stream, norms kernels.Tensor, lanes kernels.LaneTable) {
	t := lanes.(*laneTable)
	n := vector(norms, len(t.lanes), "gradient norm: norms")
	if g := recording(s); g != nil {
		g.add(func() { b.runGradNorm(n, t) })
		return
	}
	b.runGradNorm(n, t)
}

func (b *Backend) runGradNorm(norms []float32, t *laneTable) {
	for i := range t.lanes {
		k := &b.gradNorm
		k.b, k.grad = b, t.lanes[i].grad
		n := parts(len(k.grad), normRun)
		grown(&k.sums, n)
		b.pool.run(taskGradNorm, n)
		sum := 0.0
		for _, v := range k.sums[:n] {
			sum += float64(v)
		}
		norms[i] = float32(sum)
	}
}

func (t *gradNormTask) part(_, i int) {
	t.sums[i] = t.b.k.SumSquares(t.grad[i*normRun : min((i+1)*normRun, len(t.grad))])
}

type adamWTask struct {
	b                  *Backend
	lane               int
	master, m, v, grad []float32
	out                working
	rank               int
	sites              []kernels.SiteRows
	correction         mat
	norms, hyper       []float32
	clip, size         float32 // the factor of the gradient; lr·√(1−β₂ᵗ)/(1−β₁ᵗ)
	move               bool    // the norm is finite
}

// adamRows is the rows of B that a part takes.
const adamRows = 512

// AdamW updates one lane's B as [kernels.AdamWArgs] says.
func (b *Backend) AdamW(s kernels.Stream, a kernels.AdamWArgs) {
	n, rows := a.Master.Cols, 0
	for _, site := range a.Sites {
		rows += site.Rows
	}
	if n != rows*a.Rank || a.Working.Cols != n || a.M.Cols != n || a.V.Cols != n || a.Grad.Cols != n {
		panic(fmt.Sprintf("cpu: adamw: a block of %d over %d rows of rank %d", n, rows, a.Rank))
	}
	t := adamWTask{b: b, lane: a.Lane, master: vector(a.Master, n, "adamw: master"), m: vector(a.M, n, "adamw: m"),
		v: vector(a.V, n, "adamw: v"), grad: vector(a.Grad, n, "adamw: gradient"), out: b.workingOf(a.Working, "adamw: working"),
		rank: a.Rank, sites: a.Sites, correction: optional(a.Correction, len(a.Sites)*a.Rank, a.Rank, "adamw: correction"),
		norms: vector(a.Norms, a.Lane+1, "adamw: norms"), hyper: vector(a.Hyper, kernels.HyperWords, "adamw: hyper")}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runAdamW(&t) })
		return
	}
	b.runAdamW(&t)
}

func (b *Backend) runAdamW(a *adamWTask) {
	b.adamW = *a
	t := &b.adamW
	norm := math.Sqrt(float64(t.norms[t.lane]))
	t.move = !math.IsNaN(norm) && !math.IsInf(norm, 0)
	t.clip = 1
	if c := float64(t.hyper[kernels.HyperClip]); c > 0 && norm > c {
		t.clip = float32(c / norm)
	}
	step := float64(t.hyper[kernels.HyperStep])
	bias1 := 1 - math.Pow(float64(t.hyper[kernels.HyperBeta1]), step)
	bias2 := 1 - math.Pow(float64(t.hyper[kernels.HyperBeta2]), step)
	t.size = float32(float64(t.hyper[kernels.HyperLR]) * math.Sqrt(bias2) / bias1)
	b.pool.run(taskAdamW, parts(len(t.master), adamRows*t.rank))
}

func (t *adamWTask) part(worker, i int) {
	from := i * adamRows * t.rank
	to := min(from+adamRows*t.rank, len(t.master))
	g := t.grad[from:to]
	if t.move {
		t.update(worker, from, to, g)
	}
	clear(g)
}

func (t *adamWTask) update(worker, from, to int, g []float32) {
	k := t.b.k
	if t.clip != 1 {
		k.Scale(g, t.clip)
	}
	if t.correction.at != nil {
		corrected := grown(&t.b.scratch[worker].a, adamRows*t.rank)[:len(g)]
		t.correct(corrected, g, from/t.rank)
		g = corrected
	}
	beta1, beta2 := t.hyper[kernels.HyperBeta1], t.hyper[kernels.HyperBeta2]
	eps, shrink := t.hyper[kernels.HyperEps], t.hyper[kernels.HyperLR]*t.hyper[kernels.HyperDecay]
	w, m, v := t.master[from:to], t.m[from:to], t.v[from:to]
	w, m, v = w[:len(g)], m[:len(g)], v[:len(g)]
	for j, x := range g {
		a := beta1*m[j] + (1-beta1)*x
		b := beta2*v[j] + (1-beta2)*x*x
		m[j], v[j] = a, b
		next := w[j] - t.size*a/(float32(math.Sqrt(float64(b)))+eps)
		w[j] = next - shrink*next
	}
	scaled := grown(&t.b.scratch[worker].b, adamRows*t.rank)[:len(w)]
	copy(scaled, w)
	k.Scale(scaled, t.hyper[kernels.HyperScaling])
	t.out.put(k, from, scaled)
}

// correct writes g·C for rows of g from the block's given row on, each with its own site's C.
func (t *adamWTask) correct(dst, g []float32, row int) {
	at := 0
	for s, site := range t.sites {
		if len(g) == 0 {
			return
		}
		if end := at + site.Rows; row < end {
			n := min(end-row, len(g)/t.rank)
			c := t.correction.from(s * t.rank)
			t.b.k.DotNNF32(dst, t.rank, g, t.rank, c.at, c.ld, n, t.rank, t.rank, false)
			dst, g, row = dst[n*t.rank:], g[n*t.rank:], row+n
		}
		at += site.Rows
	}
}
