package kernels

// Info is what a device says of itself.
type Info struct {
	Backend        string // "cpu", "cuda"
	Device         string // its name, and why it was chosen
	Working        DType  // of z, A, B, K and V
	Activation     DType  // of the residual stream, q, linear outputs
	BatchInvariant bool   // a token's result does not depend on the rest of the step, bit for bit
	MemoryTotal    int64  // bytes
	MemoryFree     int64
	CopyInPlace    bool // host and device memory are the same
	NoTraining     bool // the training ops but Copy and Zero are not on this device and panic
}

// Stream is an ordered queue of work on a device.
type Stream interface {
	// Record marks the point reached by what is enqueued so far.
	Record() Event
	// WaitFor makes what is enqueued later wait for the event, on the device.
	WaitFor(Event)
	// Sync blocks until the stream is empty and returns the first error of its work. Such an error is final for the process.
	Sync() error
}

// Event is a point in a stream.
type Event interface {
	Done() bool
	Wait() error
}

// Graph is a captured sequence of ops.
type Graph interface {
	Launch(Stream)
	Close()
}

// Memory is the part of a backend that allocates and copies. Nothing of it is called inside a step.
type Memory interface {
	// Alloc returns a zeroed tensor, or ErrNoMemory.
	Alloc(d DType, rows, cols int) (Tensor, error)
	Free(Tensor)
	// Pinned returns host memory from which uploads are asynchronous. FreePinned gives it back.
	Pinned(bytes int) ([]byte, error)
	FreePinned([]byte)
	// Upload copies len(src) bytes to the start of dst, which is contiguous. src stays unchanged until the stream has passed.
	Upload(s Stream, dst Tensor, src []byte)
	// Download copies src, contiguous, to dst. dst is valid when the stream has passed.
	Download(s Stream, dst []byte, src Tensor)

	// Streams, weights, caches and tables are given back when nothing enqueued uses them any more.
	NewStream() Stream
	FreeStream(Stream)
	NewWeight(WeightSpec) (Weight, error)
	FreeWeight(Weight)
	NewKVCache(KVSpec) (KVCache, error)
	FreeKVCache(KVCache)
	NewAdapterTable(slots int) (AdapterTable, error)
	FreeAdapterTable(AdapterTable)
	// SetAdapter writes a table entry, in the stream's order; block is [1, rank·rows] of the working dtype. A zero block empties the entry.
	SetAdapter(s Stream, t AdapterTable, slot int, block Tensor, rank int)
	NewLaneTable(lanes int) (LaneTable, error)
	FreeLaneTable(LaneTable)
	// SetLane writes a table entry; grad is F32 [1, rank·rows]; scaling is the adapter's alpha/rank.
	SetLane(s Stream, t LaneTable, lane int, grad Tensor, rank int, scaling float32)
}

// Backend is a device: memory, streams and ops. Each op's comment gives its formula; x[t] is row t of x.
// Scratch memory is planned when the backend opens and belongs to a stream: ops of different streams may run at once,
// but all ops are called from one goroutine.
type Backend interface {
	Memory
	Info() Info
	Close() error
	// Capture records what f enqueues on s as a graph, without running it; a backend without graphs keeps the list of ops. It returns
	// ErrNoMemory where the scratch memory of an op does not fit.
	Capture(s Stream, f func()) (Graph, error)

	ServingOps
	TrainingOps
}

// ServingOps are the ops of the forward pass and of sampling. T, S and rows are the actual counts in the step's header;
// tensors have at least the bucket's rows, and rows past the counts are neither read nor written.
type ServingOps interface {
	// Embed: x[t] = E[token[t]], where token[t] is Token[t], or previous.Token[Feed[t]] where Feed[t] ≥ 0.
	// x [T, H]; E a weight of [V, H] without A.
	Embed(s Stream, x Tensor, table Weight, previous Sampled, step Step)

	// RMSNorm: y[t] = x[t]·rstd[t]·w with rstd[t] = 1/√(mean(x[t]²) + eps). x, y [T, H]; w F32 [1, H]; rstd F32 [1, T], optional.
	RMSNorm(s Stream, y, x, w, rstd Tensor, eps float32, step Step)

	// Linear: yz[t] = [x[t]·Wᵀ, round(x[t]·Aᵀ)]. x [T, in]; yz [T, out+R].
	Linear(s Stream, yz, x Tensor, w Weight, step Step)

	// LinearRows is Linear over the step's rows of logits: x [rows, in], yz [rows, out].
	LinearRows(s Stream, yz, x Tensor, w Weight, step Step)

	// Reduce sums yz over the devices that share w by input columns; on one device it does nothing.
	Reduce(s Stream, yz Tensor, w Weight)

	// QKV: with y = yz + bias + B·z: q[t] = rope(norm(y's q)), K and V of the step's tokens into the cache's layer at KVSlot[t].
	QKV(s Stream, a QKVArgs, step Step)

	// Attention: o[t] = softmax(scale·q[t]·Kᵀ)·V over the keys of t's own sequence at positions p with
	// Position[t]−Window < p ≤ Position[t] (Window 0: all before). o, q [T, Hq·D].
	Attention(s Stream, a AttentionArgs, step Step)

	// ResidualNorm: out[t] = x[t] + y[t] + bias + B·z[t]; normed[t] = out[t]·rstd[t]·w.
	ResidualNorm(s Stream, a ResidualNormArgs, step Step)

	// MLP: with [g, u] = yz + bias + B·z: act[t] = silu(g)·u.
	MLP(s Stream, a MLPArgs, step Step)

	// GatherRows: y[i] = x[RowToken[i]]. x [T, H]; y [rows, H].
	GatherRows(s Stream, y, x Tensor, step Step)

	// Sample draws a token for each row of logits [rows, V], F32, which it may overwrite. In this order: penalties, bias, mask,
	// temperature, min-p, top-k, top-p; then argmax over the kept tokens of logit/temperature + gumbel(seed, RowDraw, token),
	// so that a seed gives the same draw in any batch. Counts of rows with RowPenalties are updated. Logits of which one is no
	// number, or all are −Inf, have no draw: the token is −1, also of a row with a forced one, its logprob NaN, and there are no top
	// ones. +Inf counts as the greatest float32: such a token is drawn where it is allowed, the first of several, and its logprob is 0.
	Sample(s Stream, out Sampled, logits Tensor, state SamplerState, step Step)
}

// QKVArgs are the arguments of QKV.
type QKVArgs struct {
	Q            Tensor // out, [T, Hq·D]
	YZ           Tensor // [T, (Hq+2·Hkv)·D + R]
	Bias         Tensor // F32 [1, (Hq+2·Hkv)·D], optional
	QNorm, KNorm Tensor // F32 [1, D], optional: RMSNorm of each head before the rotation
	Eps          float32
	Rope         Tensor // F32 [positions, D]: cosines of D/2 angles, then sines; pairs are (i, i+D/2)
	Cache        KVCache
	Layer        int
	B            BRef
	Pre          Tensor // optional save, [T, (Hq+Hkv)·D]: q and k before their norms
}

// AttentionArgs are the arguments of Attention.
type AttentionArgs struct {
	Out, Q Tensor // [T, Hq·D]
	Cache  KVCache
	Layer  int
	Scale  float32
	Window int
	LSE    Tensor // optional save, F32 [T, Hq]: log Σ exp of the scaled scores
}

// ResidualNormArgs are the arguments of ResidualNorm. Out may be X.
type ResidualNormArgs struct {
	Out, Normed Tensor // [T, H]
	X           Tensor // [T, H], the residual stream
	YZ          Tensor // [T, H + R]
	Bias        Tensor // F32 [1, H], optional
	Norm        Tensor // F32 [1, H]
	Eps         float32
	B           BRef
	Rstd        Tensor // optional save, F32 [1, T]
	// Carry, [T, H], optional: what the stream lacks for being stored rounded. Out's rounding is added to it; with Fold it is added to the sum first,
	// and begins anew. The norm is of Out as it is stored.
	Carry Tensor
	Fold  bool
}

// MLPArgs are the arguments of MLP.
type MLPArgs struct {
	Act    Tensor // out, [T, F]
	YZ     Tensor // [T, 2·F + R]
	Bias   Tensor // F32 [1, 2·F], optional
	B      BRef
	GateUp Tensor // optional save, [T, 2·F]: g and u; may be YZ's first columns
}

// TrainingOps are the ops of the backward pass and the optimizer. Gradients of activations have the activation dtype, those
// of B and everything of the optimizer float32; reductions have a fixed order.
type TrainingOps interface {
	// CrossEntropy: for each token t in [from, to) with Label[t] ≥ 0 and p = softmax(h[t]·Eᵀ): nll[t] = −log p[Label[t]], and, where dh is
	// present, dh[t] = Loss[t]·(p − onehot(Label[t]))·E. Others of the range get zeros; from and to are bucket constants. Logits exist for a
	// chunk of tokens at a time, in logits, F32 [chunk, V]; where it is absent, in the stream's scratch. h, dh [T, H], dh may be h; nll F32 [1, T];
	// E a weight of [V, H] without A.
	CrossEntropy(s Stream, nll, dh, h, logits Tensor, head Weight, from, to int, step Step)

	// LossTokens is how many tokens, of steps of up to tokens, a chunk of CrossEntropy had best have.
	LossTokens(tokens int, head Weight) int

	// NormBackward adds to dx the gradient through y = x·rstd·w: dx[t] += rstd·(w·dy − x·rstd²·mean(w·dy·x)).
	// dx, dy, x [T, H]; w F32 [1, H]; rstd F32 [1, T].
	NormBackward(s Stream, dx, dy, x, w, rstd Tensor, step Step)

	// ExpandBackward, for each segment with adapter a and lane l: dz[t] = dy[t]·B (scaled B; zero past a's rank, and for the base), written
	// into dyz's last R columns; dB of lane l += scaling·dy[t]ᵀ·z[t], summed in order of t.
	ExpandBackward(s Stream, a ExpandBackwardArgs, step Step)

	// LinearBackward: dx[t] = dyz[t]·[W; A], or dx[t] += with accumulate. dyz [T, out+R]; dx [T, in].
	LinearBackward(s Stream, dx, dyz Tensor, w Weight, accumulate bool, step Step)

	// MLPBackward: dg = da·u·σ(g)(1 + g(1−σ(g))), du = da·silu(g). da [T, F]; gateUp [T, 2·F]; dgu [T, 2·F], may be gateUp.
	MLPBackward(s Stream, dgu, da, gateUp Tensor, step Step)

	// MLPForward recomputes act from a saved g and u, where a plan does not keep it: act = silu(g)·u.
	MLPForward(s Stream, act, gateUp Tensor, step Step)

	// AttentionBackward: gradients of Attention by q, k and v, k and v of the step's own tokens only (training has no earlier context).
	AttentionBackward(s Stream, a AttentionBackwardArgs, step Step)

	// QKVBackward turns gradients of rotated q, k and of v into those of the linear's output: dy = [normᵀ(ropeᵀ(dq)), normᵀ(ropeᵀ(dk)), dv].
	QKVBackward(s Stream, a QKVBackwardArgs, step Step)

	// GradNorm: norms[l] = Σ g² over lane l's gradient, in a fixed order; F32 [1, lanes]. Lanes that are not set get 0.
	GradNorm(s Stream, norms Tensor, lanes LaneTable)

	// AdamW updates one lane's B; see AdamWArgs.
	AdamW(s Stream, a AdamWArgs)

	// Zero: t = 0.
	Zero(s Stream, t Tensor)
	// Copy: dst = src, converting the dtype; the same rows and columns.
	Copy(s Stream, dst, src Tensor)
	// Gram: c += Σ x[t]ᵀ·x[t] over the step's tokens with Label[t] ≥ 0 (a training step: what a calibration leaves out has label −1).
	// x [T, in]; c F32 [in, in].
	Gram(s Stream, c, x Tensor, step Step)
}

// ExpandBackwardArgs are the arguments of ExpandBackward.
type ExpandBackwardArgs struct {
	DYZ  Tensor // in: dy in the first Out columns; out: dz in the last R. [T, out + R]
	Z    Tensor // saved, [T, R]; may be DYZ's last columns, which are read before they are written
	B    BRef
	Grad GradRef
}

// AttentionBackwardArgs are the arguments of AttentionBackward.
type AttentionBackwardArgs struct {
	DQ     Tensor // out, [T, Hq·D]
	DK, DV Tensor // out, [T, Hkv·D]
	DO     Tensor // [T, Hq·D]
	O, Q   Tensor // saved
	LSE    Tensor // saved, F32 [T, Hq]
	Cache  KVCache
	Layer  int
	Scale  float32
	Window int
}

// QKVBackwardArgs are the arguments of QKVBackward.
type QKVBackwardArgs struct {
	DY           Tensor // out, [T, (Hq+2·Hkv)·D], the first columns of dyz
	DQ, DK, DV   Tensor
	Rope         Tensor
	QNorm, KNorm Tensor
	Eps          float32
	Pre          Tensor // saved where there are norms
	Heads        int    // Hq
	KVHeads      int
}

// AdamWArgs are the arguments of AdamW: with n = √norms[lane], gradients g of a [out, r] block of B,
//
//	g ← g·min(1, clip/n);  ĝ = g·C (C of the block's site, or g itself);  m ← β₁m + (1−β₁)ĝ;  v ← β₂v + (1−β₂)ĝ²;
//	B ← B − lr·√(1−β₂ᵗ)/(1−β₁ᵗ)·m/(√v + eps);  B ← B − lr·decay·B;  working ← scaling·B.
//
// Where n is not finite nothing changes. In every case the gradient is zeroed.
type AdamWArgs struct {
	Lane       int
	Master     Tensor // F32 [1, rank·rows], as are M, V and Grad
	M, V, Grad Tensor
	Working    Tensor // out, working dtype, [1, rank·rows]
	Rank       int
	Sites      []SiteRows // bucket constant: the sites of the block, in order
	Correction Tensor     // F32 [sites·rank, rank], C already divided by scaling²; optional
	Norms      Tensor     // F32 [1, lanes]: Σ g² from GradNorm
	Hyper      Tensor     // F32 [1, HyperWords]
}

// SiteRows is a run of rows of B that share a correction.
type SiteRows struct{ Rows int }

// Places in AdamWArgs.Hyper.
const (
	HyperLR = iota
	HyperBeta1
	HyperBeta2
	HyperEps
	HyperDecay
	HyperClip    // 0: none
	HyperStep    // t, from 1
	HyperScaling // alpha/rank
	HyperWords   = 8
)
