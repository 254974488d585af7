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
	w := recordWriter{r: r, blockTokens: blockTokens}
	for i := range seqs {
		q := &seqs[i]
		w.begin(q.Start, len(q.Tokens), q.Blocks, q.Adapter, q.Lane)
		for j, id := range q.Tokens {
			feed := int32(-1)
			if q.Feed != nil {
				feed = q.Feed[j]
			}
			if r.Bucket.Training {
				label, loss := int32(-1), float32(0)
				if q.Labels != nil {
					label = q.Labels[j]
				}
				if q.Loss != nil {
					loss = q.Loss[j]
				}
				r.Label[w.tokens], r.Loss[w.tokens] = label, kernels.Bits(loss)
			}
			w.token(id, feed)
		}
		for j := range q.Rows {
			w.row(&q.Rows[j])
		}
	}
	w.end()
}

// recordWriter writes a step into a record: for each sequence begin, its tokens and its rows, and end after the last.
type recordWriter struct {
	r           *kernels.Record
	blockTokens int

	seqs, tokens, rows, segs int // written

	blocks        []int32 // of the sequence under way
	adapter       int32
	first, n, pos int // its first token in the step, its tokens, the next one's position
}

// begin starts a sequence of n tokens from position start on.
func (w *recordWriter) begin(start, n int, blocks []int32, adapter, lane int) {
	r, b := w.r, &w.r.Bucket
	context := start + n
	used := (context + w.blockTokens - 1) / w.blockTokens
	fits(w.seqs < b.Seqs, "sequences", w.seqs+1, b.Seqs)
	fits(n > 0 && n <= b.MaxQuery, "tokens of a sequence", n, b.MaxQuery)
	fits(w.tokens+n <= b.Tokens, "tokens", w.tokens+n, b.Tokens)
	fits(used <= b.Blocks, "blocks of a sequence", used, b.Blocks)
	fits(used <= len(blocks), "blocks of a context", used, len(blocks))
	w.blocks, w.adapter, w.first, w.n, w.pos = blocks, int32(adapter), w.tokens, n, start

	r.QueryStart[w.seqs], r.Context[w.seqs] = int32(w.tokens), int32(context)
	copy(r.BlockTable[w.seqs*b.Blocks:(w.seqs+1)*b.Blocks], blocks)
	if !b.Training {
		lane = -1
	}
	if w.segs == 0 || r.SegAdapter[w.segs-1] != w.adapter || r.SegLane[w.segs-1] != int32(lane) {
		r.SegStart[w.segs], r.SegAdapter[w.segs], r.SegLane[w.segs] = int32(w.tokens), w.adapter, int32(lane)
		w.segs++
	}
	w.seqs++
}

// token writes the sequence's next token: id, or what the previous step drew in row feed, where that is not −1.
func (w *recordWriter) token(id, feed int32) {
	r, t, p := w.r, w.tokens, w.blockTokens
	r.Token[t], r.Feed[t], r.Position[t], r.Seq[t], r.Adapter[t] = id, feed, int32(w.pos), int32(w.seqs-1), w.adapter
	r.KVSlot[t] = w.blocks[w.pos/p]*int32(p) + int32(w.pos%p)
	w.tokens++
	w.pos++
}

// row asks for the logits of one of the sequence's tokens.
func (w *recordWriter) row(q *Row) {
	r, i := w.r, w.rows
	fits(i < r.Bucket.Rows, "rows", i+1, r.Bucket.Rows)
	fits(q.Token >= 0 && q.Token < w.n, "token of a row", q.Token, w.n)
	r.RowToken[i], r.RowSampler[i], r.RowForced[i], r.RowFlags[i] = int32(w.first+q.Token), int32(q.Sampler), int32(q.Forced), int32(q.Flags)
	r.RowTopK[i], r.RowTop[i], r.RowDraw[i] = int32(q.TopK), int32(q.Top), int32(q.Draw)
	r.RowSeedLo[i], r.RowSeedHi[i] = int32(uint32(q.Seed)), int32(uint32(uint64(q.Seed)>>32))
	r.RowTemperature[i], r.RowTopP[i], r.RowMinP[i] = kernels.Bits(q.Temperature), kernels.Bits(q.TopP), kernels.Bits(q.MinP)
	r.RowRepetition[i], r.RowPresence[i], r.RowFrequency[i] = kernels.Bits(q.Repetition), kernels.Bits(q.Presence), kernels.Bits(q.Frequency)
	w.rows++
}

// end writes the counts.
func (w *recordWriter) end() {
	r := w.r
	r.QueryStart[w.seqs], r.SegStart[w.segs] = int32(w.tokens), int32(w.tokens)
	r.Head[kernels.HeadTokens], r.Head[kernels.HeadSeqs] = int32(w.tokens), int32(w.seqs)
	r.Head[kernels.HeadRows], r.Head[kernels.HeadSegs] = int32(w.rows), int32(w.segs)
}

func fits(ok bool, what string, n, most int) {
	if !ok {
		panic(fmt.Sprintf("infer: a step does not fit its bucket: %s: %d, room for %d", what, n, most))
	}
}
