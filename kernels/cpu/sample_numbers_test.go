package cpu

import (
	"math"
	"testing"

	"bhive/kernels"
)

// TestSampleExtremes: +Inf counts as the greatest number, however a row is drawn, and so does what a penalty or the temperature takes
// beyond it; beside logits so large that they take up any noise the first of the greatest wins.
func TestSampleExtremes(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const v = 100
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		name    string
		set     map[int]float32
		rep     float32
		token   int32
		logprob float32
		second  float32 // that of the second of the top ones
	}{
		{name: "one +Inf", set: map[int]float32{40: inf}, token: 40, second: -math.MaxFloat32},
		{name: "two of them", set: map[int]float32{99: inf, 41: inf}, token: 41},
		{name: "the greatest numbers", set: map[int]float32{33: math.MaxFloat32, 35: math.MaxFloat32}, token: 33},
		{name: "large ones", set: map[int]float32{33: 1e12, 35: 1e12, 36: 1e11}, token: 33},
		{name: "beside −Inf", set: map[int]float32{3: -inf, 5: inf, 7: -inf}, token: 5, second: -math.MaxFloat32},
		{name: "divided by a small penalty", set: map[int]float32{1: 1, 2: 1}, rep: 1e-40, token: 1, logprob: -float32(math.Log(98+2*math.E)) + 1, second: -float32(math.Log(98+2*math.E)) + 1},
	} {
		d := newDraws(r, 6, v)
		rec := d.b.rec
		for i := range 6 {
			clear(d.row(i))
			for id, x := range c.set {
				d.row(i)[id] = x
			}
			rec.RowTop[i] = 2
			if c.rep > 0 {
				rec.RowFlags[i], rec.RowRepetition[i] = kernels.RowPenalties, kernels.Bits(c.rep)
				ints(d.state.Counts, "test")[i*v+1], ints(d.state.Counts, "test")[i*v+2] = kernels.SeenInPrompt, kernels.SeenInPrompt
			}
		}
		rec.RowFlags[0] |= kernels.RowGreedy
		rec.RowTopP[2], rec.RowTopK[3], rec.RowMinP[4] = kernels.Bits(0.5), 4, kernels.Bits(0.1)
		rec.RowTemperature[4], rec.RowTemperature[5] = kernels.Bits(1e-5), kernels.Bits(10)
		near := func(a, b float32) bool { return math.Abs(float64(a)-float64(b)) <= 1e-4 || a == b }
		for i, token := range d.run() {
			if p := values(d.out.Logprob)[i]; token != c.token || !near(p, c.logprob) {
				t.Errorf("%s: row %d draws %d with logprob %v, want %d with %v", c.name, i, token, p, c.token, c.logprob)
			}
			top := values(d.out.TopLogprob)[i*kernels.MaxTopLogprobs:]
			if ids := ints(d.out.TopID, "test")[i*kernels.MaxTopLogprobs:]; ids[0] != c.token || !near(top[0], c.logprob) || c.second != 0 && !near(top[1], c.second) {
				t.Errorf("%s: row %d has the top tokens %v with %v", c.name, i, ids[:2], top[:2])
			}
		}
	}
}

// TestNoNumbersNoDraw: a row with a logit that is no number, or with none above −Inf, draws nothing, however it would, and a step that is fed from it runs.
func TestNoNumbersNoDraw(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	d := newDraws(r, 4, 50)
	for i := range 4 {
		for j, x := range d.row(i) {
			d.row(i)[j] = x*0 + float32(j%7)
		}
	}
	rec := d.b.rec
	rec.RowFlags[1], rec.RowFlags[2] = kernels.RowGreedy, kernels.RowPenalties
	rec.RowForced[3] = 5
	for i := range 4 {
		rec.RowTop[i] = 3
	}
	for _, bad := range []float32{float32(math.NaN()), float32(math.Copysign(math.NaN(), -1)), negInf, 1} { // first with, then without
		for i := range 4 {
			d.row(i)[49] = bad
			if bad == negInf { // all of them
				for j := range d.row(i) {
					d.row(i)[j] = bad
				}
			}
			if bad == 1 {
				clear(d.row(i)[:49])
			}
		}
		for i, token := range d.run() {
			if (token == -1) != (bad != 1) {
				t.Errorf("beside %v row %d draws %d", bad, i, token)
			}
			if p := values(d.out.Logprob)[i]; (p != p) != (bad != 1) {
				t.Errorf("beside %v row %d has a logprob of %v", bad, i, p)
			}
			if id := ints(d.out.TopID, "test")[i*kernels.MaxTopLogprobs]; (id == -1) != (bad != 1) {
				t.Errorf("beside %v row %d has %d as the top token", bad, i, id)
			}
		}
	}
}
