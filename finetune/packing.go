package finetune

import (
	"math/rand/v2"
)

// Order is the endless sequence of examples that training goes through: epoch after epoch, each shuffled by the seed and its
// number. An Order at the same cursor yields the same examples.
type Order struct {
	n     int
	seed  uint64
	epoch int   // of perm
	perm  []int // nil before the first
	fixed bool  // unshuffled
}

// NewOrder orders n examples.
func NewOrder(n int, seed int64) *Order { return &Order{n: n, seed: uint64(seed)} }

// At is the example at a cursor: the number of examples taken before it.
func (o *Order) At(cursor int64) int {
	epoch, i := int(cursor/int64(o.n)), int(cursor%int64(o.n))
	if o.fixed {
		return i
	}
	if o.perm == nil || o.epoch != epoch {
		o.epoch, o.perm = epoch, rand.New(rand.NewPCG(o.seed, uint64(epoch))).Perm(o.n)
	}
	return o.perm[i]
}

// splitValidation holds a share of n examples out, at least one and not all. Both lists ascend.
func splitValidation(n int, share float64, seed int64) (train, held []int) {
	k := min(max(1, int(share*float64(n)+0.5)), n-1)
	out := make([]bool, n)
	for _, i := range rand.New(rand.NewPCG(uint64(seed), 0x76616c)).Perm(n)[:max(k, 0)] {
		out[i] = true
	}
	for i := range n {
		if out[i] {
			held = append(held, i)
		} else {
			train = append(train, i)
		}
	}
	return train, held
}

// Batching says how many examples make an optimizer step.
type Batching struct {
	Examples int // of a batch; or
	Tokens   int // of a batch, in whole examples: as many as fit, at least one
	Batches  int // of an optimizer step
}

// Chunk is a run of whole examples of one lane that goes through the model at once. How a lane's examples are cut into chunks depends on
// the lane alone, so that its sums have the same order whoever else is in the batch.
type Chunk struct {
	Examples []int // indices
	Tokens   int
	Eval     bool // forward only
	Last     bool // of its optimizer step, or of its evaluation
}

// batch takes the examples of one optimizer step from a cursor, and cuts them into chunks of at most capacity tokens and seqs
// sequences. It returns the number of labels in the step and the cursor after it.
func (b Batching) batch(set []Example, o *Order, cursor int64, capacity, seqs int) (chunks []Chunk, trained int, next int64) {
	for range b.Batches {
		var list []int
		for tokens := 0; ; cursor++ {
			i := o.At(cursor)
			n := len(set[i].IDs)
			if len(list) > 0 && (b.Examples > 0 && len(list) == b.Examples || b.Examples == 0 && tokens+n > b.Tokens) {
				break
			}
			list = append(list, i)
			tokens += n
			trained += set[i].Trained()
		}
		chunks = append(chunks, cut(set, list, capacity, seqs)...)
	}
	chunks[len(chunks)-1].Last = true
	return chunks, trained, cursor
}

// evaluation cuts all of a set into chunks for a forward pass.
func evaluation(set []Example, capacity, seqs int) []Chunk {
	list := make([]int, len(set))
	for i := range list {
		list[i] = i
	}
	chunks := cut(set, list, capacity, seqs)
	for i := range chunks {
		chunks[i].Eval = true
	}
	chunks[len(chunks)-1].Last = true
	return chunks
}

func cut(set []Example, list []int, capacity, seqs int) (chunks []Chunk) {
	var c Chunk
	for _, i := range list {
		n := len(set[i].IDs)
		if n > capacity {
			panic("finetune: an example is longer than a step")
		}
		if c.Tokens+n > capacity || len(c.Examples) == seqs {
			chunks = append(chunks, c)
			c = Chunk{}
		}
		c.Examples = append(c.Examples, i)
		c.Tokens += n
	}
	return append(chunks, c)
}

// steps is the number of optimizer steps that go once through set's n examples, or (by tokens) about so many.
func (b Batching) stepsPerEpoch(set []Example) float64 {
	if b.Examples > 0 {
		return float64(len(set)) / float64(b.Examples*b.Batches)
	}
	var tokens int64
	for _, e := range set {
		tokens += int64(len(e.IDs))
	}
	return max(float64(tokens)/float64(b.Tokens*b.Batches), 1e-9)
}
