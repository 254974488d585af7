package infer

import (
	"fmt"
	"slices"
	"testing"

	"bhive/kernels"

	"pgregory.net/rapid"
)

// TestSchedulerModel runs the scheduler against a pretended device whose K and V are the tokens themselves: each step reads the whole context of
// its tokens through the block tables, so that a block that was given out twice, evicted in use or found under a wrong key shows. The
// text, a hash of the context, must be that of each sequence alone.
func TestSchedulerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			MaxSeqs:       rapid.IntRange(1, 5).Draw(t, "seqs"),
			BlockTokens:   rapid.IntRange(1, 5).Draw(t, "block"),
			NoPrefixCache: rapid.IntRange(0, 3).Draw(t, "prefix") == 0,
			Overlap:       rapid.Bool().Draw(t, "overlap"),
			MaxContext:    24,
			PromptRows:    3,
		}
		c.MaxTokens = c.MaxSeqs + rapid.IntRange(0, 20).Draw(t, "budget")
		c = c.defaults()
		least := (c.MaxContext + c.BlockTokens - 1) / c.BlockTokens
		s := newScheduler(c, rapid.IntRange(least, 3*least).Draw(t, "blocks"))
		d := &fakeDevice{config: c, kv: make([]int32, len(s.blocks.refs)*c.BlockTokens), sampled: make([]int32, 64)}
		for _, shape := range bucketShapes(c) {
			d.buckets = append(d.buckets, &bucket{Bucket: shape, records: []*kernels.Record{kernels.NewRecord(shape, nil), kernels.NewRecord(shape, nil)}})
		}

		n := rapid.IntRange(1, 12).Draw(t, "requests")
		var all, left []*sequence
		for i := range n {
			w := &work{order: uint64(i)}
			w.Tenant = fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "tenant"))
			w.root = rootKey("", w.Tenant)
			w.Params = DefaultParams()
			w.Params.PromptLogprobs = rapid.IntRange(0, 4).Draw(t, "scores") == 0
			size := rapid.IntRange(1, 16).Draw(t, "prompt")
			for j := range size { // prompts share prefixes
				w.prompt = append(w.prompt, int32(j%4)+int32(rapid.IntRange(0, 20).Draw(t, "token")/20))
			}
			w.Params.MaxTokens = rapid.IntRange(1, 12).Draw(t, "new")
			w.newSequences(c.MaxContext)
			all = append(all, w.seqs[0])
		}
		left = slices.Clone(all)
		arrive := func() {
			if len(left) > 0 {
				s.queue.push(left[0], false)
				left = left[1:]
			}
		}
		var flights []*flight
		for steps := 0; ; steps++ {
			if steps > 5000 {
				t.Fatal("no end")
			}
			if rapid.IntRange(0, 2).Draw(t, "arrives") == 0 || steps > 50 {
				arrive()
			}
			p := s.plan()
			if p.tokens > c.MaxTokens || len(p.items) > c.MaxSeqs {
				t.Fatalf("a step of %d tokens and %d sequences", p.tokens, len(p.items))
			}
			if len(p.items) > 0 {
				f := &flight{plan: p, out: &results{}}
				d.step(t, f)
				f.launched()
				flights = append(flights, f)
			}
			if len(flights) > 0 && (len(flights) == c.flights() || len(p.items) == 0) {
				f := flights[0]
				flights = flights[1:]
				for _, it := range f.items {
					q := it.sequence
					if it.draw {
						q.pending--
					}
					s.confirm(it)
					if q.phase == done {
						continue
					}
					for j := range it.score {
						if len(q.prompts) == 0 {
							q.prompts = make([]TokenInfo, 1)
						}
						if at := it.scoreAt + j + 1; at == len(q.prompts) {
							q.prompts = append(q.prompts, TokenInfo{ID: int(f.out.token[it.row+j])})
						}
					}
					if it.draw {
						q.tokens = append(q.tokens, f.out.token[it.row+it.score])
						if len(q.tokens) == q.limit || rapid.IntRange(0, 30).Draw(t, "ends") == 0 {
							s.finish(q)
						}
					}
				}
				continue
			}
			if len(p.items) == 0 {
				if len(left) > 0 {
					arrive()
					continue
				}
				if len(s.run) > 0 || s.queue.waiting > 0 {
					t.Fatalf("%d sequences run and %d wait, and nothing can be done", len(s.run), s.queue.waiting)
				}
				break
			}
		}
		for _, q := range all {
			for i := len(q.prompt); i < len(q.tokens); i++ {
				if want := fakeToken(q.tokens[:i]); q.tokens[i] != want {
					t.Fatalf("sequence %d: token %d is %d, alone it is %d", q.order, i, q.tokens[i], want)
				}
			}
			if q.Params.PromptLogprobs && len(q.prompt) > 1 {
				if len(q.prompts) != len(q.prompt) {
					t.Fatalf("sequence %d: %d prompt tokens of %d are scored", q.order, len(q.prompts), len(q.prompt))
				}
				for i := 1; i < len(q.prompt); i++ {
					if q.prompts[i].ID != int(fakeToken(q.prompt[:i])) {
						t.Fatalf("sequence %d: prompt token %d was scored in another context", q.order, i)
					}
				}
			}
		}
		if s.blocks.used() != 0 || len(s.rows) != c.MaxSeqs {
			t.Fatalf("at the end %d blocks and %d rows are in use", s.blocks.used(), c.MaxSeqs-len(s.rows))
		}
	})
}

// fakeDevice computes hashes of contexts from records.
type fakeDevice struct {
	config  Config
	buckets []*bucket
	kv      []int32
	sampled []int32
}

func fakeToken(context []int32) int32 {
	h := uint32(2166136261)
	for _, t := range context {
		h = (h ^ uint32(t)) * 16777619
	}
	return int32(h % 5)
}

func (d *fakeDevice) step(t *rapid.T, f *flight) {
	b := bucketFor(d.buckets, &f.plan)
	r := b.next()
	fill(r, &f.plan, d.config.BlockTokens)
	n, seqs := int(r.Head[kernels.HeadTokens]), int(r.Head[kernels.HeadSeqs])
	for i := range n {
		token := r.Token[i]
		if r.Feed[i] >= 0 {
			token = d.sampled[r.Feed[i]]
		}
		d.kv[r.KVSlot[i]] = token
	}
	if r.QueryStart[seqs] != int32(n) || int(r.Head[kernels.HeadTokens]) != f.tokens || int(r.Head[kernels.HeadRows]) != f.rows {
		t.Fatal("the header does not fit the plan")
	}
	out := make([]int32, f.rows)
	for row := range out {
		i := int(r.RowToken[row])
		table := r.BlockTable[int(r.Seq[i])*b.Blocks:]
		var context []int32
		for p := range int(r.Position[i]) + 1 {
			context = append(context, d.kv[int(table[p/d.config.BlockTokens])*d.config.BlockTokens+p%d.config.BlockTokens])
		}
		out[row] = fakeToken(context)
	}
	copy(d.sampled, out)
	f.out.token = out
}

// TestTenantsShareFairly: a tenant with one request is not behind all requests of another.
func TestTenantsShareFairly(t *testing.T) {
	s := newScheduler(Config{MaxSeqs: 1, MaxTokens: 64, BlockTokens: 4, MaxContext: 64}.defaults(), 32)
	add := func(order int, tenant string) *sequence {
		w := &work{order: uint64(order), prompt: []int32{1, 2, 3, 4, 5}}
		w.Tenant, w.Params = tenant, DefaultParams()
		w.newSequences(64)
		s.queue.push(w.seqs[0], false)
		return w.seqs[0]
	}
	for i := range 5 {
		add(i, "many")
	}
	few := add(5, "few")
	s.plan()
	s.finish(s.run[0])
	s.plan()
	if s.run[0] != few {
		t.Errorf("the second to run is %s's, want few's", s.run[0].Tenant)
	}
}

// TestChoicesShareTheirPrompt: until they run, many choices hold one prompt; then each has tokens of its own.
func TestChoicesShareTheirPrompt(t *testing.T) {
	w := &work{prompt: []int32{1, 2, 3}}
	w.Params = DefaultParams()
	w.Params.N = maxChoices
	w.newSequences(64)
	for i, q := range w.seqs {
		if &q.tokens[0] != &w.prompt[0] {
			t.Fatalf("choice %d holds a prompt of its own", i)
		}
		q.tokens = append(q.tokens, int32(i))
	}
	for i, q := range w.seqs {
		if q.tokens[3] != int32(i) {
			t.Errorf("choice %d has token %d of another", i, q.tokens[3])
		}
	}
}

// TestPreemptedComeFirst: what a preempted sequence gave back is not given to one that has not run, also while a step of it is under way.
func TestPreemptedComeFirst(t *testing.T) {
	s := newScheduler(Config{MaxSeqs: 3, MaxTokens: 64, BlockTokens: 4, MaxContext: 16, Overlap: true}.defaults(), 4)
	add := func(order, prompt int) *sequence {
		w := &work{order: uint64(order), prompt: make([]int32, prompt)}
		for i := range w.prompt {
			w.prompt[i] = int32(order)
		}
		w.Params = DefaultParams()
		w.newSequences(16)
		s.queue.push(w.seqs[0], false)
		return w.seqs[0]
	}
	old, young := add(0, 7), add(1, 7)
	step := func() plan {
		p := s.plan()
		p.launched()
		return p
	}
	read := func(p plan) {
		for _, it := range p.items {
			it.pending--
			s.confirm(it)
			it.tokens = append(it.tokens, 9)
		}
	}
	first, second := step(), step()
	late := add(2, 3)
	read(first)
	third := step() // old needs a third block
	if young.phase != queued || young.inflight == 0 || old.phase != running {
		t.Fatalf("the younger is not preempted in flight: %+v", young)
	}
	if late.phase == running {
		t.Error("one that has not run got the blocks")
	}
	read(second)
	read(third)
	s.finish(old)
	step()
	if young.phase != running || late.phase != running {
		t.Error("they do not run when there is room")
	}
}
