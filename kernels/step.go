package kernels

import (
	"math"
	"unsafe"
)

// Bucket is the capacity of a step record: the constants that a captured graph is compiled for. The actual counts
// stand in the record's header and are at most these.
type Bucket struct {
	Tokens   int // T: tokens in the step
	Seqs     int // S: sequences; also the most adapter segments
	Rows     int // rows of logits wanted
	Blocks   int // KV blocks a sequence can have: the width of the block table
	MaxQuery int // most tokens one sequence has in the step; 1 for a pure decode
	Training bool
}

// Header words of a record: counts.
const (
	HeadTokens = iota
	HeadSeqs
	HeadRows
	HeadSegs
	headWords = 16
)

// Row flags, per row of logits.
const (
	RowPenalties = 1 << iota // apply and update the sampler row's token counts
	RowBias                  // add the sampler row's logit bias
	RowMask                  // only tokens whose bit is set in the sampler row's mask
	RowGreedy                // argmax after penalties, bias and mask; temperature is not read
)

// Record is a step's metadata as one run of 32-bit words, the same on the host and on the device. Every field is a
// slice of Words of fixed place and capacity for its bucket; floats are stored by their bits.
// Entries past the actual counts are not read.
type Record struct {
	Bucket Bucket
	Words  []int32

	Head []int32 // [16] counts: HeadTokens, HeadSeqs, HeadRows, HeadSegs

	// Per token, [T].
	Token    []int32 // token id; not read where Feed ≥ 0
	Feed     []int32 // row of the previous step's sampled tokens to take the id from, or −1
	Position []int32 // position in its sequence, from 0
	KVSlot   []int32 // where its K and V go: block·P + offset
	Seq      []int32 // index of its sequence in this step
	Adapter  []int32 // adapter slot, or −1 for the base

	// Per sequence. A sequence's tokens are consecutive, in order of position.
	QueryStart []int32 // [S+1] first token of each sequence; QueryStart[nSeqs] = number of tokens
	Context    []int32 // [S] tokens of KV after this step, its own included
	BlockTable []int32 // [S, Blocks] KV blocks, in order

	// Segments: runs of consecutive tokens with one adapter slot. Tokens of the base have segments with adapter −1 too,
	// so that the segments cover all tokens.
	SegStart   []int32 // [S+1]
	SegAdapter []int32 // [S] adapter slot or −1
	SegLane    []int32 // [S] training lane whose gradient the segment adds to, or −1

	// Per row of logits, [Rows].
	RowToken       []int32 // token of the step whose hidden state the row is for
	RowSampler     []int32 // row of the sampler state
	RowForced      []int32 // −1: sample; else this token is "drawn" (its logprob is wanted)
	RowFlags       []int32 // RowPenalties | …
	RowTopK        []int32 // 0: all
	RowTop         []int32 // top logprobs wanted, ≤ MaxTopLogprobs
	RowSeedLo      []int32 // the draw depends on (seed, RowDraw, token) alone
	RowSeedHi      []int32
	RowDraw        []int32 // position of the token being drawn, in its sequence
	RowTemperature []int32 // float32 bits, here and below; > 0 unless RowGreedy
	RowTopP        []int32 // 1: all
	RowMinP        []int32 // 0: off
	RowRepetition  []int32 // 1: off
	RowPresence    []int32 // 0: off
	RowFrequency   []int32 // 0: off

	// Training only, per token, [T].
	Label []int32 // the token to be predicted here, or −1 where nothing is trained
	Loss  []int32 // float32 bits: weight of this token's negative log-likelihood in its lane's loss
}

// MaxTopLogprobs is the most top logprobs a row can ask for.
const MaxTopLogprobs = 20

// fields lists the record's fields with their capacity in words, in the order of their place.
func (r *Record) fields() []struct {
	at *[]int32
	n  int
} {
	b := r.Bucket
	type f = struct {
		at *[]int32
		n  int
	}
	fs := []f{{&r.Head, headWords}}
	for _, p := range []*[]int32{&r.Token, &r.Feed, &r.Position, &r.KVSlot, &r.Seq, &r.Adapter} {
		fs = append(fs, f{p, b.Tokens})
	}
	fs = append(fs, f{&r.QueryStart, b.Seqs + 1}, f{&r.Context, b.Seqs}, f{&r.BlockTable, b.Seqs * b.Blocks},
		f{&r.SegStart, b.Seqs + 1}, f{&r.SegAdapter, b.Seqs}, f{&r.SegLane, b.Seqs})
	for _, p := range []*[]int32{&r.RowToken, &r.RowSampler, &r.RowForced, &r.RowFlags, &r.RowTopK, &r.RowTop, &r.RowSeedLo, &r.RowSeedHi,
		&r.RowDraw, &r.RowTemperature, &r.RowTopP, &r.RowMinP, &r.RowRepetition, &r.RowPresence, &r.RowFrequency} {
		fs = append(fs, f{p, b.Rows})
	}
	if b.Training {
		fs = append(fs, f{&r.Label, b.Tokens}, f{&r.Loss, b.Tokens})
	}
	return fs
}

// RecordWords is the number of 32-bit words of a bucket's record.
func RecordWords(b Bucket) int {
	n := 0
	for _, f := range (&Record{Bucket: b}).fields() {
		n += (f.n + 3) &^ 3 // fields start at 16 bytes
	}
	return n
}

// NewRecord lays a record out over words, which has RecordWords(b) of them; with nil it makes them.
func NewRecord(b Bucket, words []int32) *Record {
	if words == nil {
		words = make([]int32, RecordWords(b))
	}
	if len(words) != RecordWords(b) {
		panic("kernels: a record's words do not fit its bucket")
	}
	r := &Record{Bucket: b, Words: words}
	at := 0
	for _, f := range r.fields() {
		*f.at = words[at : at+f.n : at+f.n]
		at += (f.n + 3) &^ 3
	}
	return r
}

// Bytes is the record as it is copied to the device.
func (r *Record) Bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(r.Words))), 4*len(r.Words))
}

// Offsets gives the place of each field in words, in the order in which the Record declares them: what a device's
// kernels index by.
func Offsets(b Bucket) []int {
	var out []int
	at := 0
	for _, f := range (&Record{Bucket: b}).fields() {
		out = append(out, at)
		at += (f.n + 3) &^ 3
	}
	return out
}

// Bits and Float convert between a float32 and its word in a record.
func Bits(f float32) int32  { return int32(math.Float32bits(f)) }
func Float(w int32) float32 { return math.Float32frombits(uint32(w)) }

// Step is a record on the device: what ops read.
type Step struct {
	Bucket Bucket
	Words  Tensor // I32 [1, RecordWords(Bucket)]
}
