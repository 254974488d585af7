package infer

import (
	"context"
	"slices"
	"testing"
	"time"

	"bhive/kernels"
)

// pondering is a constraint that takes as long as a test says for the mask behind so many tokens.
type pondering struct {
	scripted
	behind  int
	asked   chan<- struct{} // told that the mask is being found
	proceed <-chan struct{}
}

func (s *pondering) Mask(dst []int32) {
	if s.behind == 0 {
		s.asked <- struct{}{}
		<-s.proceed
	}
	s.behind--
	s.scripted.Mask(dst)
}

// TestSlowMask: while a mask is being found, at the beginning of a text or within, others' requests begin and end, the mask's own can be cancelled, and it
// goes on as if nothing had been.
func TestSlowMask(t *testing.T) {
	b := newRig(t, kernels.F32)
	prompt, script := b.tok.Encode("Once upon a time", false), b.tok.Encode(" The quick fox", false)
	for _, c := range []Config{{MaxSeqs: 4, MaxTokens: 16, KVBlocks: 64}, {MaxSeqs: 4, MaxTokens: 16, KVBlocks: 64, Overlap: true},
		{MaxSeqs: 4, MaxTokens: 4, KVBlocks: 10, BlockTokens: 4, NoPrefixCache: true}} {
		e := b.start(t, c)
		for _, behind := range []int{0, 2} {
			asked, proceed := make(chan struct{}), make(chan struct{})
			request := func() Request {
				return Request{Tenant: "slow", Prompt: prompt, Params: greedily(24), Constrain: func() Constraint {
					return &pondering{scripted{slices.Clone(script)}, behind, asked, proceed}
				}}
			}
			g, err := e.Submit(t.Context(), request())
			if err != nil {
				t.Fatal(err)
			}
			<-asked
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			long := greedily(20)
			long.IgnoreEOS = true
			for _, r := range []Request{{Prompt: prompt, Params: long}, // longer than what the cache has room for beside the other
				{Prompt: prompt, Params: greedily(24), Constrain: func() Constraint { return &scripted{slices.Clone(script)} }}} {
				other, err := e.Submit(ctx, r)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := all(ctx, other, 1); err != nil || r.Constrain != nil && !slices.Equal(got[0].IDs, script) {
					t.Fatalf("another request beside a mask behind %d tokens: %+v, %v", behind, got, err)
				}
			}
			// A second one of the tenant waits for its turn, and is cancelled in the meantime.
			ctx2, leave := context.WithCancel(ctx)
			second, err := e.Submit(ctx2, request())
			if err != nil {
				t.Fatal(err)
			}
			leave()
			if got, err := all(ctx, second, 1); err != nil || got[0].Reason != FinishCancelled {
				t.Errorf("%+v, %v", got, err)
			}
			close(proceed)
			if got, err := all(ctx, g, 1); err != nil || !slices.Equal(got[0].IDs, script) || got[0].Reason != FinishStop {
				t.Errorf("behind %d tokens %+v, %v", behind, got, err)
			}
		}
		if s := e.Stats(); s.Running+s.Waiting+s.KVUsed != 0 {
			t.Errorf("at the end %+v", s)
		}
	}
}

// TestHeldIsNotDrawn: a sequence that was preempted while its mask is being found is computed again but for the token whose logits the mask is for.
func TestHeldIsNotDrawn(t *testing.T) {
	s := newScheduler(Config{MaxSeqs: 2, MaxTokens: 6, BlockTokens: 4, KVBlocks: 8}.defaults(), 8)
	prompt := []int32{1, 2, 3, 4, 5, 6, 7, 8, 9}
	q := &sequence{work: &work{Request: Request{Params: greedily(4)}, prompt: prompt}, tokens: prompt, limit: 20, row: -1, held: true}
	s.queue.push(q, false)
	for _, want := range []int{6, 2, 0} {
		p := s.plan()
		if p.tokens != want || slices.ContainsFunc(p.items, func(it item) bool { return it.draw }) {
			t.Errorf("%d tokens are computed, want %d without a draw", p.tokens, want)
		}
		p.launched()
	}
	q.held = false
	if p := s.plan(); p.tokens != 1 || !p.items[0].draw {
		t.Errorf("%+v", p)
	}
}
