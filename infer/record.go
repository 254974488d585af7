package infer

import (
	"fmt"

	"bhive/kernels"
)

// StepSeq is one sequence's part of a step.
type StepSeq struct {
	Tokens []int32 // ids of consecutive tokens, at least one
	Feed   []int32 // optional, per token: row of the previous step's sampled tokens to take the id from, or −1
	Start  int     // position of the first of them
	Blocks []int32 // KV blocks of the sequence in order, enough for Start+len(Tokens) tokens

	Adapter int // adapter slot, or −1 (adapters.BaseSlot) for the base
	Lane    int // training lane, or −1; read in training buckets only

	Rows []Row // rows of logits wanted, in order

	// Training buckets only, per token; nil: nothing is trained.
	Labels []int32   // token to be predicted, or −1
	Loss   []float32 // weight of its negative log-likelihood
}

// Row asks for the logits at one token, and says how its successor is drawn.
type Row struct {
	Token       int   // index into the sequence's Tokens of this step
	Sampler     int   // row of the sampler state
	Forced      int   // token that counts as drawn, or −1
	Flags       int   // kernels.RowGreedy | …
	TopK        int   // 0: all
	Top         int   // top logprobs wanted
	Seed        int64 // with Draw it fixes the draw
	Draw        int   // position of the token being drawn
	Temperature float32
	TopP        float32 // 1: all
	MinP        float32 // 0: off
	Repetition  float32 // 1: off
	Presence    float32 // 0: off
	Frequency   float32 // 0: off
}

// GreedyRow asks for the likeliest successor of a token.
func GreedyRow(token int) Row {
	return Row{Token: token, Forced: -1, Flags: kernels.RowGreedy, Temperature: 1, TopP: 1, Repetition: 1}
}

// BucketOf is the smallest bucket that holds the sequences; blocks is the width of its block table.
func BucketOf(seqs []StepSeq, blocks int, training bool) kernels.Bucket {
	b := kernels.Bucket{Seqs: len(seqs), Blocks: blocks, Training: training}
	for i := range seqs {
		b.Tokens += len(seqs[i].Tokens)
		b.Rows += len(seqs[i].Rows)
		b.MaxQuery = max(b.MaxQuery, len(seqs[i].Tokens))
	}
	return b
}

// FillRecord writes a step of these sequences into r, in order; neighbours with one adapter and lane share a segment.
// A KV block holds blockTokens tokens. It allocates nothing. A step that does not fit the bucket is a bug and panics.
func FillRecord(r *kernels.Record, blockTokens int, seqs []StepSeq) {
	b := r.Bucket
	if len(seqs) > b.Seqs {
		panic(fmt.Sprintf("infer: %d sequences in a bucket of %d", len(seqs), b.Seqs))
	}
	tokens, rows, segs := 0, 0, 0
	for i := range seqs {
		q := &seqs[i]
		n := len(q.Tokens)
		fits(n > 0 && n <= b.MaxQuery, "tokens of a sequence", n, b.MaxQuery)
		fits(tokens+n <= b.Tokens, "tokens", tokens+n, b.Tokens)
		fits(rows+len(q.Rows) <= b.Rows, "rows", rows+len(q.Rows), b.Rows)
		context := q.Start + n
		used := (context + blockTokens - 1) / blockTokens
		fits(used <= b.Blocks, "blocks of a sequence", used, b.Blocks)
		fits(used <= len(q.Blocks), "blocks of a context", used, len(q.Blocks))

		r.QueryStart[i], r.Context[i] = int32(tokens), int32(context)
		copy(r.BlockTable[i*b.Blocks:(i+1)*b.Blocks], q.Blocks)

		lane := -1
		if b.Training {
			lane = q.Lane
		}
		if segs == 0 || r.SegAdapter[segs-1] != int32(q.Adapter) || r.SegLane[segs-1] != int32(lane) {
			r.SegStart[segs], r.SegAdapter[segs], r.SegLane[segs] = int32(tokens), int32(q.Adapter), int32(lane)
			segs++
		}
		for j, id := range q.Tokens {
			t, p := tokens+j, q.Start+j
			r.Token[t], r.Feed[t], r.Position[t], r.Seq[t], r.Adapter[t] = id, -1, int32(p), int32(i), int32(q.Adapter)
			r.KVSlot[t] = q.Blocks[p/blockTokens]*int32(blockTokens) + int32(p%blockTokens)
			if q.Feed != nil {
				r.Feed[t] = q.Feed[j]
			}
			if b.Training {
				r.Label[t], r.Loss[t] = -1, 0
				if q.Labels != nil {
					r.Label[t] = q.Labels[j]
				}
				if q.Loss != nil {
					r.Loss[t] = kernels.Bits(q.Loss[j])
				}
			}
		}
		for j := range q.Rows {
			w := &q.Rows[j]
			fits(w.Token >= 0 && w.Token < n, "token of a row", w.Token, n)
			fillRow(r, rows+j, tokens, w)
		}
		tokens, rows = tokens+n, rows+len(q.Rows)
	}
	r.QueryStart[len(seqs)], r.SegStart[segs] = int32(tokens), int32(tokens)
	r.Head[kernels.HeadTokens], r.Head[kernels.HeadSeqs] = int32(tokens), int32(len(seqs))
	r.Head[kernels.HeadRows], r.Head[kernels.HeadSegs] = int32(rows), int32(segs)
}

func fillRow(r *kernels.Record, i, base int, w *Row) {
	r.RowToken[i], r.RowSampler[i], r.RowForced[i], r.RowFlags[i] = int32(base+w.Token), int32(w.Sampler), int32(w.Forced), int32(w.Flags)
	r.RowTopK[i], r.RowTop[i], r.RowDraw[i] = int32(w.TopK), int32(w.Top), int32(w.Draw)
	r.RowSeedLo[i], r.RowSeedHi[i] = int32(uint32(w.Seed)), int32(uint32(uint64(w.Seed)>>32))
	r.RowTemperature[i], r.RowTopP[i], r.RowMinP[i] = kernels.Bits(w.Temperature), kernels.Bits(w.TopP), kernels.Bits(w.MinP)
	r.RowRepetition[i], r.RowPresence[i], r.RowFrequency[i] = kernels.Bits(w.Repetition), kernels.Bits(w.Presence), kernels.Bits(w.Frequency)
}

func fits(ok bool, what string, n, most int) {
	if !ok {
		panic(fmt.Sprintf("infer: a step does not fit its bucket: %s: %d, room for %d", what, n, most))
	}
}
