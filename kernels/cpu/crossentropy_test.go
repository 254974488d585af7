package cpu

import (
	"math"
	"slices"
	"testing"

	"bhive/kernels"
)

func TestCrossEntropy(t *testing.T) {
	for _, f := range []kernels.Format{kernels.FormatF32, kernels.FormatBF16, kernels.FormatInt8} {
		for _, m := range []int{1, 7, 133} {
			r := newRig(t, Config{Threads: 2})
			const h, vocab = 23, 151
			w := r.weight(vocab, h, 0, f)
			b := r.step(vocab, seq{n: m, adapter: -1, lane: -1})
			for i := range m {
				b.rec.Label[i] = int32(r.rng.IntN(vocab))
				if i%5 == 2 {
					b.rec.Label[i] = -1
				}
				b.rec.Loss[i] = kernels.Bits(float32(r.rng.Float64()))
			}
			x, dx := r.random(m+2, h, 1), r.garbage(m+2, h)
			nll, alone := r.garbage(1, m+2), r.garbage(1, m+2)
			r.CrossEntropy(r.s, nll, dx, x, kernels.Tensor{}, w, b.step)
			r.CrossEntropy(r.s, alone, kernels.Tensor{}, x, kernels.Tensor{}, w, b.step)
			// In the place of h, and in memory of the caller.
			again, same := r.garbage(1, m+2), r.tensor(m+2, h, values(x))
			r.CrossEntropy(r.s, again, same, same, r.garbage(5, vocab), w, b.step)
			for i, v := range values(again)[:m] {
				if v != values(nll)[i] || !slices.Equal(values(same)[i*h:][:h], values(dx)[i*h:][:h]) {
					t.Fatalf("token %d of %d has another loss or gradient in place", i, m)
				}
			}
			wide := r.wide(w)
			for i := range m {
				row, label := f64(values(x)[i*h:][:h]), b.rec.Label[i]
				loss := func() float64 {
					if label < 0 {
						return 0
					}
					sum := 0.0
					for _, e := range wide {
						sum += math.Exp(dot64(row, e))
					}
					return math.Log(sum) - dot64(row, wide[label])
				}
				near(t, "nll", values(nll)[i:], []float64{loss()}, tol)
				near(t, "nll alone", values(alone)[i:], []float64{loss()}, tol)
				for j := range h {
					near(t, "dh", values(dx)[i*h+j:], []float64{float64(kernels.Float(b.rec.Loss[i])) * slope(loss, row, j)}, tol)
				}
			}
		}
	}
}

// Over a vocabulary of a real size, with one likely token, the weight of the long tail is not lost.
func TestCrossEntropyLongTail(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const h, vocab, m = 16, 49152, 3
	rows := r.host(vocab, h)
	for i := range vocab {
		rows.x[i*h] = 1 // what all have in common
		for j := 1; j < h; j++ {
			rows.x[i*h+j] *= 0.05
		}
	}
	rows.x[0] = 15 // the likely token's logit is 14 above
	made, err := r.NewWeight(kernels.WeightSpec{Parts: []kernels.Matrix{rows}, Format: kernels.FormatF32})
	if err != nil {
		t.Fatal(err)
	}
	w := made.(*weight)
	b := r.step(vocab, seq{n: m, adapter: -1, lane: -1})
	x, dx, nll, alone := r.random(m+2, h, 0.1), r.garbage(m+2, h), r.garbage(1, m+2), r.garbage(1, m+2)
	for i := range m {
		values(x)[i*h] = 1
		b.rec.Label[i], b.rec.Loss[i] = 7, kernels.Bits(1)
	}
	r.CrossEntropy(r.s, nll, dx, x, kernels.Tensor{}, w, b.step)
	r.CrossEntropy(r.s, alone, kernels.Tensor{}, x, kernels.Tensor{}, w, b.step)
	wide := r.wide(w)
	for i := range m {
		row := f64(values(x)[i*h:][:h])
		sum, first := 0.0, 0.0 // Σ e^logit, Σ e^logit·E[·, 0]
		for _, e := range wide {
			p := math.Exp(dot64(row, e))
			sum += p
			first += p * e[0]
		}
		want := []float64{math.Log(sum) - dot64(row, wide[7])}
		near(t, "nll", values(nll)[i:], want, 2e-7)
		near(t, "nll alone", values(alone)[i:], want, 2e-7)
		near(t, "dh", values(dx)[i*h:], []float64{first/sum - wide[7][0]}, 1e-5)
	}
}
