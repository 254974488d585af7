//go:build cuda

package cuda

import (
	"fmt"
	"math"

	"gorgonia.org/cu"

	"bhive/kernels"
)

// functionShared lists the kernels with the most dynamic shared memory each is launched with, in bytes; 0: at most 48 KiB.
var functionShared = map[string]int{
	"embed_f32": 0, "embed_bf16": 0, "gather_f32": 0, "gather_bf16": 0, "norm_f32": 0, "norm_bf16": 0, "norm8_bf16": 0,
	"residual_f32": 0, "residual_bf16": 0, "residual8wide_bf16": 0, "residual8_bf16": 0, "residual_cluster_bf16": 0,
	"mlp_f32": 0, "mlp_bf16": 0, "mlp_slice_bf16": 0, "mlp_slices_bf16": 0,
	"qkv_f32": 0, "qkv_bf16": 0, "qkv_slice64_bf16": 0, "qkv_slice128_bf16": 0, "qkv_slices64_bf16": 0, "qkv_slices128_bf16": 0,
	"sample": 0, "set_adapter": 0,
	"copy_f32_f32": 0, "copy_f32_bf16": 0, "copy_bf16_f32": 0, "copy_bf16_bf16": 0, "fill_f32": 0, "fill_bf16": 0,
	"linear_plain_f32": 0, "linear_plain_bf16": 0, "linear_plain_bf16_f32": 0,
	"linear8_bf16": skinnyShared(8, 10), "linear8_bf16_f32": skinnyShared(8, 10),
	"linear16_bf16": skinnyShared(16, 10), "linear16_bf16_f32": skinnyShared(16, 10),
	"linear32_bf16": skinnyShared(32, 8), "linear32_bf16_f32": skinnyShared(32, 8),
	"linear64_bf16": skinnyShared(64, 8), "linear64_bf16_f32": skinnyShared(64, 8),
	"linear128_bf16": skinnyShared(128, 6), "linear128_bf16_f32": skinnyShared(128, 6),
	"few8_bf16": fewShared(8, 11), "few8_bf16_f32": fewShared(8, 11), "few16_bf16": fewShared(16, 9), "few16_bf16_f32": fewShared(16, 9),
	"linear_skinny_8": ringShared(8), "linear_skinny_16": ringShared(16), "linear_skinny_32": ringShared(32), "linear_skinny_64": ringShared(64),
	"linear_skinny_128": ringShared(128), "linear_skinny_pair_128": ringShared(128),
	"attention_plain_f32": 0, "attention_plain_bf16": 0,
	"prefill128_bf16": 4 * 64 * 128 * 2, "prefill64_bf16": 4 * 64 * 64 * 2,
	"attention_decode_128": 0, "attention_decode_64": 0,
	"norm_backward_f32": 0, "norm_backward_bf16": 0, "norm_backward8_bf16": 0,
	"mlp_backward_f32": 0, "mlp_backward_bf16": 0, "mlp_backward8_bf16": 0, "mlp_forward_f32": 0, "mlp_forward_bf16": 0, "mlp_forward8_bf16": 0,
	"qkv_backward_f32": 0, "qkv_backward_bf16": 0, "qkv_backward8_bf16": 0,
	"attention_backward_plain_q_f32": 0, "attention_backward_plain_q_bf16": 0, "attention_backward_plain_kv_f32": 0, "attention_backward_plain_kv_bf16": 0,
	"attention_backward_q128_bf16": 4 * 64 * 128 * 2, "attention_backward_q64_bf16": 4 * 64 * 64 * 2,
	"attention_backward_kv128_bf16": keysShared(128), "attention_backward_kv64_bf16": keysShared(64),
	"prefill128_warpgroups": warpgroupsShared(128, 0, 4), "prefill64_warpgroups": warpgroupsShared(64, 1, 4),
	"attention_backward_q128_warpgroups": warpgroupsShared(128, 1, 4), "attention_backward_q64_warpgroups": warpgroupsShared(64, 2, 4),
	"attention_backward_kv128_warpgroups": warpgroupsShared(128, 2, 4), "attention_backward_kv64_warpgroups": warpgroupsShared(64, 2, 4),
	"copy_wide": 0, "set_lane": 0, "linear_backward_plain_f32": 0, "linear_backward_plain_bf16": 0, "linear_backward_bf16": linearBackwardShared,
	"shrink_plain_f32": 0, "shrink_plain_bf16": 0, "gradient_plain_f32": 0, "gradient_plain_bf16": 0, "shrink_bf16": shrinkShared,
	"gradient32_bf16": gradientShared(32), "gradient64_bf16": gradientShared(64), "chunk_counts": 0,
	"cross_entropy1_f32": 0, "cross_entropy8_f32": 0, "cross_entropy1_bf16": 0, "cross_entropy8_bf16": 0,
	"grad_squares": 0, "grad_norm": 0, "adamw_f32": 0, "adamw_bf16": 0, "gram_f32": 0, "gram_bf16": 0, "gram_tile_bf16": gramShared,
}

// Places in a record, in the order in which kernels.Record declares them.
const (
	atHead = iota
	atToken
	atFeed
	atPosition
	atKVSlot
	atSeq
	atAdapter
	atQueryStart
	atContext
	atBlockTable
	atSegStart
	atSegAdapter
	atSegLane
	atRowToken
	atRowSampler
	atRowForced
	atRowFlags
	atRowTopK
	atRowTop
	atRowSeedLo
	atRowSeedHi
	atRowDraw
	atRowTemperature
	atRowTopP
	atRowMinP
	atRowRepetition
	atRowPresence
	atRowFrequency
	atLabel // of a training step, as is the next
	atLoss
)

// record gives addresses of a step's fields.
type record struct {
	base    uint64
	offsets []int
}

func recordOf(step kernels.Step) record {
	return record{address(step.Words), kernels.Offsets(step.Bucket)}
}

func (r record) at(field int) uint64 { return r.base + 4*uint64(r.offsets[field]) }

// head is the address of a count.
func (r record) head(word int) uint64 { return r.base + 4*uint64(word) }

func float(x float64) uint64 { return math.Float64bits(x) }

func (b *Backend) suffix() string {
	if b.config.Working == kernels.BF16 {
		return "_bf16"
	}
	return "_f32"
}

// launch enqueues a kernel with one block of arguments of 8 bytes each.
func (b *Backend) launch(s kernels.Stream, name string, gx, gy, gz, threads, shared int, args ...uint64) {
	b.launchOn(s.(*stream).s, name, gx, gy, gz, threads, shared, b.overlap, args...)
}

func (b *Backend) launchOn(s cu.Stream, name string, gx, gy, gz, threads, shared int, overlap bool, args ...uint64) {
	if gx == 0 || gy == 0 || gz == 0 {
		return
	}
	f, ok := b.functions[name]
	if !ok {
		panic("cuda: no kernel " + name)
	}
	b.args = append(b.args[:0], args...)
	if err := b.timed(s, name, func() error { return launchRaw(f, gx, gy, gz, threads, shared, s, b.args, overlap) }); err != nil {
		b.keep(fmt.Errorf("%s: %w", name, err))
	}
}

// gridRows is the most blocks of a grid in its second direction.
const gridRows = 65535

func parts(n, each int) int { return (n + each - 1) / each }

// rowThreads is the threads of a block that takes one row of n elements.
func rowThreads(n int) int { return max(32, min(1024, parts(n, 32)*32)) }

// Embed: x[t] = E[token[t]].
func (b *Backend) Embed(s kernels.Stream, x kernels.Tensor, table kernels.Weight, previous kernels.Sampled, step kernels.Step) {
	w, r := table.(*weight), recordOf(step)
	at, xs := matrix(x, b.config.Working, step.Bucket.Tokens, w.in, "embed: x")
	b.launch(s, "embed"+b.suffix(), step.Bucket.Tokens, 1, 1, min(256, rowThreads(w.in)), 0,
		at, xs, uint64(w.at), uint64(w.in), address(previous.Token), r.at(atToken), r.at(atFeed), r.at(atHead))
}

// GatherRows: y[i] = x[RowToken[i]].
func (b *Backend) GatherRows(s kernels.Stream, y, x kernels.Tensor, step kernels.Step) {
	r := recordOf(step)
	ya, ys := matrix(y, b.config.Working, step.Bucket.Rows, y.Cols, "gather: y")
	xa, xs := matrix(x, b.config.Working, step.Bucket.Tokens, y.Cols, "gather: x")
	b.launch(s, "gather"+b.suffix(), step.Bucket.Rows, 1, 1, min(256, rowThreads(y.Cols)), 0, ya, ys, xa, xs, uint64(y.Cols), r.at(atRowToken), r.at(atHead))
}

// RMSNorm: y[t] = x[t]·rstd[t]·w.
func (b *Backend) RMSNorm(s kernels.Stream, y, x, w, rstd kernels.Tensor, eps float32, step kernels.Step) {
	n := step.Bucket.Tokens
	ya, ys := matrix(y, b.config.Working, n, x.Cols, "norm: y")
	xa, xs := matrix(x, b.config.Working, n, x.Cols, "norm: x")
	name, threads := "norm"+b.suffix(), min(512, rowThreads(x.Cols))
	if h := x.Cols; b.config.Working == kernels.BF16 && h%8 == 0 && h <= 8*1024 && (xs|ys)%8 == 0 && (xa|ya)%16 == 0 {
		name, threads = "norm8_bf16", rowThreads(h/8)
	}
	b.launch(s, name, n, 1, 1, threads, 0,
		ya, ys, xa, xs, vector(w, x.Cols, "norm: w"), vector(rstd, n, "norm: rstd"), uint64(x.Cols), float(float64(eps)), recordOf(step).at(atHead))
}

// Reduce does nothing on one device.
func (b *Backend) Reduce(kernels.Stream, kernels.Tensor, kernels.Weight) {}

// tableOf checks a site's B and gives its table and offset.
func tableOf(r kernels.BRef, out int, name string) (table, offset uint64) {
	if r.Table == nil {
		return 0, 0
	}
	if r.Out != out {
		panic(fmt.Sprintf("cuda: %s: B has %d rows, want %d", name, r.Out, out))
	}
	return uint64(r.Table.(*adapterTable).at), uint64(r.Offset)
}

// noAdapters drops the table where the weight has no A and so no z.
func noAdapters(table uint64, z int) uint64 {
	if z == 0 {
		return 0
	}
	return table
}

// slicesOf is how many slices of 8 tokens, one after another, a block of an epilogue takes of a step: where there are many, B's rows stay in its registers.
func slicesOf(step kernels.Step) int {
	if step.Bucket.Tokens <= 256 {
		return 1
	}
	return 8
}

// QKV adds bias and B·z, norms and rotates the heads, and writes q, and K and V into the cache.
func (b *Backend) QKV(s kernels.Stream, a kernels.QKVArgs, step kernels.Step) {
	c, r, m, dt := a.Cache.(*kvCache), recordOf(step), step.Bucket.Tokens, b.config.Working
	d, kv := c.spec.HeadDim, c.spec.KVHeads
	heads := a.Q.Cols / d
	out := (heads + 2*kv) * d
	z := max(0, a.YZ.Cols-out)
	qa, qs := matrix(a.Q, dt, m, heads*d, "qkv: q")
	ya, ys := matrix(a.YZ, dt, m, out+z, "qkv: yz")
	ra, rs := matrix(a.Rope, kernels.F32, 0, d, "qkv: rope")
	pa, ps := optional(a.Pre, dt, m, (heads+kv)*d, "qkv: pre")
	table, offset := tableOf(a.B, out, "qkv")
	name, each, gy, threads := "qkv", 1, heads+2*kv, parts(d, 32)*32
	if dt == kernels.BF16 && (d == 64 || d == 128) && (qs|ps|rs)%4 == 0 && ys%8 == 0 && (ya|ra)%16 == 0 && (qa|pa)%8 == 0 {
		name, each, threads = fmt.Sprintf("qkv_slice%d", d), 8, 128
		if n := slicesOf(step); n > 1 {
			name, each, threads = fmt.Sprintf("qkv_slices%d", d), 8*n, 256 // which share the angles
		}
		gy = parts(gy*d, 2*threads)
	}
	b.launch(s, name+b.suffix(), parts(m, each), gy, 1, threads, 4*(((z+3)&^3)+2*d),
		qa, qs, ya, ys, vector(a.Bias, out, "qkv: bias"), vector(a.QNorm, d, "qkv: q norm"), vector(a.KNorm, d, "qkv: k norm"), float(float64(a.Eps)),
		ra, rs, c.k(a.Layer), c.v(a.Layer), uint64(heads), uint64(kv), uint64(d), uint64(z), pa, ps, noAdapters(table, z), offset,
		r.at(atAdapter), r.at(atPosition), r.at(atKVSlot), r.at(atHead), uint64(slicesOf(step)))
}

// ResidualNorm: out[t] = x[t] + y[t] + bias + B·z[t]; normed[t] = out[t]·rstd[t]·w.
func (b *Backend) ResidualNorm(s kernels.Stream, a kernels.ResidualNormArgs, step kernels.Step) {
	h, m, dt, r := a.X.Cols, step.Bucket.Tokens, b.config.Working, recordOf(step)
	z := max(0, a.YZ.Cols-h)
	oa, os := matrix(a.Out, dt, m, h, "residual: out")
	na, ns := matrix(a.Normed, dt, m, h, "residual: normed")
	xa, xs := matrix(a.X, dt, m, h, "residual: x")
	ya, ys := matrix(a.YZ, dt, m, h+z, "residual: yz")
	ca, cs := optional(a.Carry, dt, m, h, "residual: carry")
	fold := uint64(0)
	if a.Fold {
		fold = 1
	}
	table, offset := tableOf(a.B, h, "residual")
	name, blocks, threads := "residual", m, rowThreads(h)
	switch eights := dt == kernels.BF16 && h%8 == 0 && h <= 8*1024 && (os|ns|xs|ys|cs)%8 == 0 && (oa|na|xa|ya|ca)%16 == 0; {
	case eights && b.hopper && (slicesOf(step) > 1 || b.config.BatchInvariant): // clusters start late: a few tokens don't gain that back
		name, blocks, threads = "residual_cluster", 8*parts(m, 8), 128*parts(h, 2048)
	case eights && h <= 8*512:
		name, threads = "residual8", rowThreads(h/8)
	case eights:
		name, threads = "residual8wide", rowThreads(h/8)
	case h > 16*threads:
		panic(fmt.Sprintf("cuda: residual: a row of %d, at most %d", h, 16*1024))
	}
	b.launch(s, name+b.suffix(), blocks, 1, 1, threads, 4*((z+3)&^3),
		oa, os, na, ns, xa, xs, ya, ys, vector(a.Bias, h, "residual: bias"), vector(a.Norm, h, "residual: norm"), vector(a.Rstd, m, "residual: rstd"),
		uint64(h), uint64(z), float(float64(a.Eps)), noAdapters(table, z), offset, r.at(atAdapter), r.at(atHead), ca, cs, fold)
}

// MLP: with [g, u] = y + bias + B·z: act[t] = silu(g)·u.
func (b *Backend) MLP(s kernels.Stream, a kernels.MLPArgs, step kernels.Step) {
	ff, m, dt, r := a.Act.Cols, step.Bucket.Tokens, b.config.Working, recordOf(step)
	z := max(0, a.YZ.Cols-2*ff)
	aa, as := matrix(a.Act, dt, m, ff, "mlp: act")
	ya, ys := matrix(a.YZ, dt, m, 2*ff+z, "mlp: yz")
	ga, gs := optional(a.GateUp, dt, m, 2*ff, "mlp: gate and up")
	table, offset := tableOf(a.B, 2*ff, "mlp")
	name, each, width, threads := "mlp", 1, 256, 256
	if dt == kernels.BF16 && ff%8 == 0 && (as|ys|gs)%8 == 0 && (aa|ya|ga)%16 == 0 {
		name, each, width, threads = "mlp_slice", 8, 128, 64
		if n := slicesOf(step); n > 1 {
			name, each, width, threads = "mlp_slices", 8*n, 256, 128
		}
	}
	launch := func(tokens int, act, yz, save, adapter, count uint64) {
		b.launch(s, name+b.suffix(), parts(ff, width), parts(tokens, each), 1, threads, 4*((z+3)&^3),
			act, as, yz, ys, vector(a.Bias, 2*ff, "mlp: bias"), save, gs, uint64(ff), uint64(z), noAdapters(table, z), offset, adapter, count, uint64(slicesOf(step)))
	}
	if most := gridRows * each; m > most {
		counts, size := b.chunkCounts(s.(*stream), 0, m, most, r.at(atHead)), uint64(dt.Size())
		for i := range parts(m, most) {
			at := uint64(i * most)
			launch(min(most, m-i*most), aa+at*as*size, ya+at*ys*size, ga+at*gs*size, r.at(atAdapter)+4*at, counts+4*uint64(i))
		}
		return
	}
	launch(m, aa, ya, ga, r.at(atAdapter), r.at(atHead))
}

// chunkCounts enqueues the counts of the step's tokens in chunks of each of [from, to), and gives their address. They stand there until the stream's next ones.
func (b *Backend) chunkCounts(s *stream, from, to, each int, head uint64) uint64 {
	n := parts(to-from, each)
	counts := s.grow(&s.chunks, 4*int64(n))
	b.launch(s, "chunk_counts", 1, 1, 1, 32, 0, counts, uint64(n), uint64(from), uint64(each), head)
	return counts
}

// Zero: t = 0.
func (b *Backend) Zero(s kernels.Stream, t kernels.Tensor) {
	defer b.enter()()
	rows, n := t.Rows, int64(t.Cols*t.DType.Size())
	if t.Contiguous() {
		rows, n = 1, t.Elements()*int64(t.DType.Size())
	}
	if n == 0 {
		return
	}
	for i := range rows {
		own := s.(*stream).s
		b.keep(b.timed(own, "zero", func() error {
			return cu.MemsetD8Async(cu.DevicePtr(address(t)+uint64(i*t.Stride*t.DType.Size())), 0, n, own)
		}))
	}
}

// Copy: dst = src, converting between float32 and bfloat16.
func (b *Backend) Copy(s kernels.Stream, dst, src kernels.Tensor) {
	if dst.Rows != src.Rows || dst.Cols != src.Cols {
		panic(fmt.Sprintf("cuda: copy of [%d, %d] to [%d, %d]", src.Rows, src.Cols, dst.Rows, dst.Cols))
	}
	if n := src.Elements() * int64(src.DType.Size()); dst.DType == src.DType && dst.Contiguous() && src.Contiguous() && n > 0 {
		defer b.enter()()
		own := s.(*stream).s
		b.keep(b.timed(own, "copy", func() error {
			return cu.MemcpyDtoDAsync(cu.DevicePtr(address(dst)), cu.DevicePtr(address(src)), n, own)
		}))
		return
	}
	if size := src.DType.Size(); dst.DType == src.DType && (dst.Stride|src.Stride|src.Cols)*size%16 == 0 && (address(dst)|address(src))%16 == 0 && src.Elements() < 1<<32 {
		each := 16 / size
		b.launch(s, "copy_wide", parts(dst.Rows*dst.Cols/each, 1024), 1, 1, 256, 0,
			address(dst), uint64(dst.Stride/each), address(src), uint64(src.Stride/each), uint64(dst.Rows), uint64(dst.Cols/each))
		return
	}
	names := map[kernels.DType]string{kernels.F32: "_f32", kernels.BF16: "_bf16", kernels.I32: "_f32"}
	if dst.DType != src.DType && (dst.DType == kernels.I32 || src.DType == kernels.I32) || names[dst.DType] == "" || names[src.DType] == "" {
		panic(fmt.Sprintf("cuda: copy of %s to %s", src.DType, dst.DType))
	}
	for at := 0; at < dst.Rows; at += gridRows {
		to := min(at+gridRows, dst.Rows)
		d, from := dst.RowRange(at, to), src.RowRange(at, to)
		b.launch(s, "copy"+names[dst.DType]+names[src.DType], parts(d.Cols, 256), d.Rows, 1, 256, 0,
			address(d), uint64(d.Stride), address(from), uint64(from.Stride), uint64(d.Cols))
	}
}

// Sample draws a token for each row of logits.
func (b *Backend) Sample(s kernels.Stream, out kernels.Sampled, logits kernels.Tensor, state kernels.SamplerState, step kernels.Step) {
	rows, v, r := step.Bucket.Rows, logits.Cols, recordOf(step)
	la, ls := matrix(logits, kernels.F32, rows, v, "sample: logits")
	own := s.(*stream)
	x := own.grow(&own.logits, 4*int64(rows)*int64(v))
	stride := func(t kernels.Tensor) uint64 { return uint64(t.Stride) }
	b.launch(s, "sample", rows, 1, 1, 1024, 0,
		la, ls, x, uint64(v), address(out.Token), address(out.Logprob), address(out.TopID), stride(out.TopID), address(out.TopLogprob), stride(out.TopLogprob), address(out.Rank),
		address(state.Counts), stride(state.Counts), address(state.BiasID), stride(state.BiasID), address(state.Bias), stride(state.Bias), uint64(state.BiasID.Cols),
		address(state.Mask), stride(state.Mask),
		r.at(atRowSampler), r.at(atRowForced), r.at(atRowFlags), r.at(atRowTopK), r.at(atRowTop), r.at(atRowSeedLo), r.at(atRowSeedHi), r.at(atRowDraw),
		r.at(atRowTemperature), r.at(atRowTopP), r.at(atRowMinP), r.at(atRowRepetition), r.at(atRowPresence), r.at(atRowFrequency), r.at(atHead))
}
