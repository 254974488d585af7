package infer

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bhive/kernels"
)

// TestFillRecord checks a record against what each field means, token by token, after the words went through a copy.
func TestFillRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.IntRange(1, 9).Draw(t, "block")
		training := rapid.Bool().Draw(t, "training")
		id := rapid.Int32Range(0, 1000)
		var seqs []StepSeq
		blocks := 0
		for range rapid.IntRange(0, 6).Draw(t, "seqs") {
			n := rapid.IntRange(1, 12).Draw(t, "tokens")
			q := StepSeq{
				Tokens:  rapid.SliceOfN(id, n, n).Draw(t, "ids"),
				Start:   rapid.IntRange(0, 30).Draw(t, "start"),
				Adapter: rapid.IntRange(-1, 1).Draw(t, "adapter"),
				Lane:    rapid.IntRange(-1, 1).Draw(t, "lane"),
			}
			need := (q.Start + n + p - 1) / p
			q.Blocks = rapid.SliceOfN(id, need, need+1).Draw(t, "blocks")
			blocks = max(blocks, need)
			if rapid.Bool().Draw(t, "feed") {
				q.Feed = rapid.SliceOfN(rapid.Int32Range(-1, 5), n, n).Draw(t, "feeds")
			}
			if rapid.Bool().Draw(t, "labels") {
				q.Labels = rapid.SliceOfN(rapid.Int32Range(-1, 5), n, n).Draw(t, "labels")
				q.Loss = rapid.SliceOfN(rapid.Float32Range(0, 2), n, n).Draw(t, "loss")
			}
			for range rapid.IntRange(0, 3).Draw(t, "rows") {
				q.Rows = append(q.Rows, Row{Token: rapid.IntRange(0, n-1).Draw(t, "row"), Sampler: 3, Forced: -1, Seed: rapid.Int64().Draw(t, "seed"), TopP: 0.5})
			}
			seqs = append(seqs, q)
		}
		bucket := BucketOf(seqs, blocks+1, training)
		bucket.Tokens += rapid.IntRange(0, 5).Draw(t, "room")
		bucket.Seqs++
		filled := kernels.NewRecord(bucket, nil)
		for i := range filled.Words {
			filled.Words[i] = -77 // what an earlier step left
		}
		FillRecord(filled, p, seqs)
		r := kernels.NewRecord(bucket, slices.Clone(filled.Words))

		tokens, rows := 0, 0
		for i, q := range seqs {
			equal(t, "query start", r.QueryStart[i], tokens)
			equal(t, "context", r.Context[i], q.Start+len(q.Tokens))
			for j, id := range q.Tokens {
				at, position := tokens+j, q.Start+j
				equal(t, "token", r.Token[at], int(id))
				equal(t, "position", r.Position[at], position)
				equal(t, "slot", r.KVSlot[at], int(q.Blocks[position/p])*p+position%p)
				equal(t, "table", r.BlockTable[i*bucket.Blocks+position/p], int(q.Blocks[position/p]))
				equal(t, "sequence", r.Seq[at], i)
				equal(t, "adapter", r.Adapter[at], q.Adapter)
				feed, label, loss, lane := int32(-1), int32(-1), float32(0), -1
				if q.Feed != nil {
					feed = q.Feed[j]
				}
				equal(t, "feed", r.Feed[at], int(feed))
				if training {
					lane = q.Lane
					if q.Labels != nil {
						label, loss = q.Labels[j], q.Loss[j]
					}
					equal(t, "label", r.Label[at], int(label))
					equal(t, "loss", r.Loss[at], int(kernels.Bits(loss)))
				}
				s := segmentAt(r, at)
				equal(t, "segment's adapter", r.SegAdapter[s], q.Adapter)
				equal(t, "segment's lane", r.SegLane[s], lane)
			}
			for j, w := range q.Rows {
				equal(t, "row's token", r.RowToken[rows+j], tokens+w.Token)
				equal(t, "row's top-p", r.RowTopP[rows+j], int(kernels.Bits(0.5)))
				if got := int64(uint64(uint32(r.RowSeedHi[rows+j]))<<32 | uint64(uint32(r.RowSeedLo[rows+j]))); got != w.Seed {
					t.Fatalf("seed %d, want %d", got, w.Seed)
				}
			}
			tokens, rows = tokens+len(q.Tokens), rows+len(q.Rows)
		}
		equal(t, "tokens", r.Head[kernels.HeadTokens], tokens)
		equal(t, "sequences", r.Head[kernels.HeadSeqs], len(seqs))
		equal(t, "rows", r.Head[kernels.HeadRows], rows)
		equal(t, "last query start", r.QueryStart[len(seqs)], tokens)
		n := int(r.Head[kernels.HeadSegs])
		equal(t, "segments' end", r.SegStart[n], tokens)
		for s := 1; s < n; s++ {
			if r.SegStart[s] <= r.SegStart[s-1] || r.SegAdapter[s] == r.SegAdapter[s-1] && r.SegLane[s] == r.SegLane[s-1] {
				t.Fatalf("segments %v of adapters %v and lanes %v", r.SegStart[:n+1], r.SegAdapter[:n], r.SegLane[:n])
			}
		}
	})
}

func segmentAt(r *kernels.Record, token int) int {
	s := 0
	for int(r.SegStart[s+1]) <= token {
		s++
	}
	return s
}

func equal(t *rapid.T, what string, got int32, want int) {
	t.Helper()
	if int(got) != want {
		t.Fatalf("%s is %d, want %d", what, got, want)
	}
}

// TestFillRecordPanics: a step that does not fit its bucket is a bug.
func TestFillRecordPanics(t *testing.T) {
	good := StepSeq{Tokens: []int32{1, 2}, Start: 3, Blocks: []int32{0, 1}, Adapter: -1, Rows: []Row{GreedyRow(1)}}
	bucket := kernels.Bucket{Tokens: 2, Seqs: 1, Rows: 1, Blocks: 2, MaxQuery: 2}
	for name, f := range map[string]func(*kernels.Bucket, *StepSeq){
		"fits":          func(*kernels.Bucket, *StepSeq) {},
		"tokens":        func(b *kernels.Bucket, _ *StepSeq) { b.Tokens = 1 },
		"sequences":     func(b *kernels.Bucket, _ *StepSeq) { b.Seqs = 0 },
		"rows":          func(b *kernels.Bucket, _ *StepSeq) { b.Rows = 0 },
		"query":         func(b *kernels.Bucket, _ *StepSeq) { b.MaxQuery = 1 },
		"block table":   func(b *kernels.Bucket, _ *StepSeq) { b.Blocks = 1 },
		"blocks":        func(_ *kernels.Bucket, q *StepSeq) { q.Blocks = q.Blocks[:1] },
		"row's token":   func(_ *kernels.Bucket, q *StepSeq) { q.Rows = []Row{GreedyRow(2)} },
		"without token": func(_ *kernels.Bucket, q *StepSeq) { q.Tokens = nil },
	} {
		t.Run(name, func(t *testing.T) {
			b, q := bucket, good
			f(&b, &q)
			defer func() {
				if got := recover() != nil; got != (name != "fits") {
					t.Errorf("panic: %v", got)
				}
			}()
			FillRecord(kernels.NewRecord(b, nil), 4, []StepSeq{q})
		})
	}
}
