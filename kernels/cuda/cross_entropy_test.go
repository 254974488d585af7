//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"bhive/kernels"
)

func (p *pair) crossEntropy(v, h, m int) {
	p.Helper()
	w := p.weight(v, h, 0)
	b := p.training(v, seq{m, 0, -1})
	x := p.act(m+2, h, p.ragged(m+2, m, h))
	dh, nll, alone := p.garbage(m+2, h), p.f32(1, m+2, nans(m+2)), p.f32(1, m+2, nans(m+2))
	p.repeats("dh", dh.gpu.RowRange(0, m), func() { p.gpu.CrossEntropy(p.gpu.s, nll.gpu, dh.gpu, x.gpu, kernels.Tensor{}, w.gpu, b.gpu) })
	p.gpu.CrossEntropy(p.gpu.s, alone.gpu, kernels.Tensor{}, x.gpu, kernels.Tensor{}, w.gpu, b.gpu)
	p.cpu.CrossEntropy(p.cpu.s, nll.cpu, dh.cpu, x.cpu, kernels.Tensor{}, w.cpu, b.cpu)
	p.cpu.CrossEntropy(p.cpu.s, alone.cpu, kernels.Tensor{}, x.cpu, kernels.Tensor{}, w.cpu, b.cpu)
	// In the place of h, and in memory of the caller, a chunk of which is smaller.
	chunk, err := p.gpu.Alloc(kernels.F32, 2+m/2, v)
	if err != nil {
		p.Fatal(err)
	}
	defer p.gpu.Free(chunk)
	place, again := p.garbage(m+2, h), p.f32(1, m+2, nans(m+2))
	p.gpu.Copy(p.gpu.s, place.gpu, x.gpu)
	p.gpu.CrossEntropy(p.gpu.s, again.gpu, place.gpu, place.gpu, chunk, w.gpu, b.gpu)
	p.same("nll in place", both{column(again.gpu), column(nll.cpu)}, m, 2e-5)
	p.sameRows("dh in place", both{place.gpu, dh.cpu}, m, max(p.tol(), 1e-4))
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
			for _, m := range short([]int{1, 7, 133}, []int{7, 133}) {
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
	for _, c := range short(trainingConfigs, trainingConfigs[1:2]) {
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
	p.gpu.CrossEntropy(p.gpu.s, nll.gpu, dx.gpu, xs.gpu, kernels.Tensor{}, g, b.gpu)
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
