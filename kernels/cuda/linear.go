//go:build cuda

package cuda

import (
	"fmt"
	"os"
	"strconv"

	"bhive/kernels"
)

// skinnyTokens is the most tokens that the skinny kernel takes at once.
const skinnyTokens = 128

func skinnyShared(tokens, stages int) int { return stages * (128*128 + tokens*128) }

// fewTokens is the most tokens of the kernel that joins nothing between blocks.
const fewTokens = 16

func fewShared(tokens, stages int) int { return stages*(64*256+tokens*256) + 8*4*tokens/8*4*32*4 }

// ltWorkspace is cuBLASLt's scratch, bytes.
const ltWorkspace = 32 << 20

type ltKey struct {
	n, m, k, ldx, ldy int
	wide, back        bool
}

// name of a product in a profile.
func (k ltKey) name(b *Backend) string {
	if b.marks == nil {
		return ""
	}
	return fmt.Sprintf("cuBLASLt [%d, %d]·[%d, %d]", k.m, k.k, k.k, k.n)
}

// Linear: yz[t] = [x[t]·Wᵀ, round(x[t]·Aᵀ)].
func (b *Backend) Linear(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, step kernels.Step) {
	own, m := w.(*weight), step.Bucket.Tokens
	matrix(yz, b.config.Working, m, own.rows(), "linear: yz")
	matrix(x, b.config.Working, m, own.in, "linear: x")
	b.linear(s.(*stream), yz, x, own, m, recordOf(step).head(kernels.HeadTokens))
}

// LinearRows is Linear over the step's rows of logits, which are float32.
func (b *Backend) LinearRows(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, step kernels.Step) {
	own, m := w.(*weight), step.Bucket.Rows
	if own.r != 0 {
		panic(fmt.Sprintf("cuda: linear rows: a weight with an A of %d rows", own.r))
	}
	matrix(yz, kernels.F32, m, own.out, "linear rows: yz")
	matrix(x, b.config.Working, m, own.in, "linear rows: x")
	b.linear(s.(*stream), yz, x, own, m, recordOf(step).head(kernels.HeadRows))
}

func (b *Backend) linear(s *stream, y, x kernels.Tensor, w *weight, m int, count uint64) {
	n, k := w.rows(), w.in
	wide := b.config.Working == kernels.BF16 && y.DType == kernels.F32
	suffix := b.suffix()
	if wide {
		suffix = "_bf16_f32"
	}
	if b.config.Working == kernels.F32 || k%8 != 0 || x.Stride%8 != 0 || address(x)%16 != 0 {
		b.launch(s, "linear_plain"+suffix, parts(n, 64), parts(m, 64), 1, 256, 0,
			address(y), uint64(y.Stride), address(x), uint64(x.Stride), uint64(w.at), uint64(n), uint64(k), uint64(m), count, 0, 0, 0)
		return
	}
	route := b.route(m, n, k, wide)
	if route == bySkinny && !wide && (n%2 != 0 || y.Stride%2 != 0 || address(y)%4 != 0) {
		route = byOwn
	}
	if route == byLt && b.linearLt(s, y, x, w, m, wide) {
		return
	}
	if route == bySkinny {
		b.skinny(s, y, x, w, m, count, wide)
		return
	}
	if m <= fewTokens && !b.config.BatchInvariant {
		rows, tokens := 16*parts(parts(n, 16), b.processors), 8
		if m > 8 {
			tokens = 16
		}
		name := fmt.Sprintf("few%d%s", tokens, suffix)
		b.launch(s, name, parts(n, rows), 1, 1, 256, functionShared[name],
			address(y), uint64(y.Stride), address(x), uint64(x.Stride), uint64(w.at), uint64(n), uint64(k), uint64(m), count, 0, uint64(rows), 0)
		return
	}
	blocks := min(b.processors, parts(n, 128)*parts(k, 64))
	partial, arrived := s.shares(n)
	for first := 0; first < m; first += skinnyTokens {
		part, tokens := min(skinnyTokens, m-first), 8
		for tokens < part {
			tokens *= 2
		}
		name := fmt.Sprintf("linear%d%s", tokens, suffix)
		b.launch(s, name, blocks, 1, 1, 256, functionShared[name],
			address(y)+uint64(first*y.Stride*y.DType.Size()), uint64(y.Stride), address(x)+uint64(first*x.Stride*x.DType.Size()), uint64(x.Stride),
			uint64(w.at), uint64(n), uint64(k), uint64(part), count, uint64(first), partial, arrived)
	}
}

// Ways of a linear.
type way int

const (
	byOwn    way = iota // mma.sync: below Hopper, and odd shapes
	bySkinny            // the weight streamed through tensor copies, at most 128 tokens at a time
	byLt                // cuBLASLt
)

// smallWeight is the number of a weight's values below which its stream through tensor copies does not pay for its start.
const smallWeight = 4 << 20

// route says how m tokens meet a weight [n, k]; kernels/BENCHMARKS.md has the times.
func (b *Backend) route(m, n, k int, wide bool) way {
	switch {
	case b.only != nil:
		return *b.only
	case b.hopper && b.lt == "" && n*k < smallWeight:
		if m <= 8 { // it joins nothing between blocks
			return byOwn
		}
		return byLt
	case b.hopper && (b.lt != "" || m <= 64 || m <= skinnyTokens && (wide && m > 96 || !wide && n*k >= 32<<20)):
		return bySkinny
	case b.lt == "" && m > fewTokens:
		return byLt
	}
	return byOwn
}

// shares is the workspace of linears whose blocks share tiles: their sums, and counters, for n rows of the weight.
func (s *stream) shares(n int) (partial, arrived uint64) {
	return s.grow(&s.partial, int64(s.b.processors)*2*256*4*64), s.grow(&s.arrived, 4*int64(parts(n, 64)+1))
}

// mapKey is what a tensor map describes.
type mapKey struct {
	at                          uint64
	rows, cols, stride, boxRows int // stride 0: in turns
}

func (b *Backend) tensorMap(at uint64, rows, cols, stride, boxRows int) tensorMap {
	key := mapKey{at, rows, cols, stride, boxRows}
	m, ok := b.maps[key]
	if !ok {
		var err error
		if stride == 0 {
			m, err = makeTurnsMap(at, rows/2, cols)
		} else {
			m, err = makeMap(at, rows, cols, stride, boxRows)
		}
		if err != nil {
			b.keep(err)
		}
		b.maps[key] = m
	}
	return m
}

// skinnyStages is the depth of the ring of linear_skinny_<tokens>. Above 113 KiB no two of its blocks meet on a multiprocessor; just below 132 or 164 KiB, which
// are sizes that shared memory can have, the kernels beside it have the most L1.
func skinnyStages(tokens int) int { return stagesOf(64, tokens) }

func stagesOf(rows, tokens int) int {
	ring := 126 << 10
	switch {
	case tokens > 64:
		ring = 200 << 10
	case tokens > 32:
		ring = 160 << 10
	}
	return min(24, ring/((rows+tokens)*128))
}

func ringShared(tokens int) int { return 1024 + skinnyStages(tokens)*(64+tokens)*128 }

// Of the experiment.
var (
	wideFrom   = number("WIDE_FROM", 1<<62)
	wideTokens = number("WIDE_TOKENS", 64)
)

func number(name string, v int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return v
}

// skinny streams the weight once for each 128 tokens.
func (b *Backend) skinny(s *stream, y, x kernels.Tensor, w *weight, m int, count uint64, wide bool) {
	n, k := w.rows(), w.in
	partial, arrived := s.shares(n)
	f32 := uint64(0)
	if wide {
		f32 = 1
	}
	for first := 0; first < m; first += skinnyTokens {
		rows, tokens := min(skinnyTokens, m-first), 8
		for tokens < rows {
			tokens *= 2
		}
		name, blocks := fmt.Sprintf("linear_skinny_%d", tokens), 1
		if tokens == 128 && !b.config.BatchInvariant { // pairs cut k otherwise
			name, blocks = "linear_skinny_pair_128", 2
		}
		box, threads := 64, 160
		if tokens >= wideTokens && n*k >= wideFrom && !b.config.BatchInvariant {
			name, box, threads, blocks = fmt.Sprintf("linear_skinny_wide_%d", tokens), 128, 288, 1
		}
		wm := b.tensorMap(uint64(w.at), n, k, k, box)
		xm := b.tensorMap(address(x)+uint64(2*first*x.Stride), rows, k, x.Stride, tokens/blocks)
		b.args = append(append(b.args[:0], wm[:]...), xm[:]...)
		b.args = append(b.args, address(y)+uint64(first*y.Stride*y.DType.Size()), uint64(y.Stride), uint64(n), uint64(k), uint64(rows), count, uint64(first),
			partial, arrived, uint64(stagesOf(box, tokens)), f32)
		for len(b.args) < 48 {
			b.args = append(b.args, 0)
		}
		grid := min(parts(n, box*blocks)*parts(k, 64), b.processors/blocks) * blocks
		if err := launchValue(b.functions[name], grid, threads, 1024+stagesOf(box, tokens)*(box+tokens)*128, s.s, b.args, b.overlap); err != nil {
			b.keep(fmt.Errorf("%s: %w", name, err))
		}
	}
}

// linearLt multiplies by cuBLASLt, on all the bucket's rows; those past the count hold no numbers of meaning. It reports whether it can.
func (b *Backend) linearLt(s *stream, y, x kernels.Tensor, w *weight, m int, wide bool) bool {
	return b.multiplyLt(s, ltKey{n: w.rows(), m: m, k: w.in, ldx: x.Stride, ldy: y.Stride, wide: wide}, uint64(w.at), address(x), address(y), 0)
}

// multiplyLt multiplies by cuBLASLt, y ← product + beta·y, and reports whether it can.
func (b *Backend) multiplyLt(s *stream, key ltKey, w, x, y uint64, beta float32) bool {
	p, ok := b.plans[key]
	if !ok {
		p = ltMake(key, ltWorkspace)
		b.plans[key] = p
	}
	if p == nil {
		return false
	}
	workspace := s.grow(&s.workspace, ltWorkspace)
	b.keep(b.timed(s.s, key.name(b), func() error { return ltRun(p, w, x, y, beta, workspace, ltWorkspace, s.s) }))
	return true
}
