package infer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bhive/kernels"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRequests runs what needs an engine and no special configuration.
func TestRequests(t *testing.T) {
	b := newRig(t, kernels.F32)
	e := b.start(t, Config{MaxSeqs: 4, MaxTokens: 64, KVBlocks: 128, MaxContext: 256})
	prompt := b.tok.Encode("Once upon a time there was a", false)
	plain := generate(t, e, Request{Prompt: prompt, Params: greedily(24)})[0]
	if len(plain.IDs) != 24 || plain.Reason != FinishLength || plain.Usage.Completion != 24 || plain.Usage.Prompt != len(prompt) {
		t.Fatalf("greedy: %+v", plain)
	}
	run := func(p Params) choice { return generate(t, e, Request{Prompt: prompt, Params: p})[0] }

	t.Run("stop string", func(t *testing.T) {
		mid := strings.Index(plain.Text[12:], " ") + 12
		p := greedily(24)
		p.Stop = []string{"not in there", plain.Text[mid-2 : mid+3]}
		got := run(p)
		if got.Text != plain.Text[:mid-2] || got.Reason != FinishStop || got.Stop != p.Stop[1] {
			t.Errorf("text %q for stop %q in %q: %+v", got.Text, p.Stop[1], plain.Text, got)
		}
		p.IncludeStop = true
		if got := run(p); got.Text != plain.Text[:mid+3] {
			t.Errorf("with the stop string: %q", got.Text)
		}
		p.MinTokens = 24
		if got := run(p); got.Text != plain.Text || got.Reason != FinishLength {
			t.Errorf("below min_tokens: %+v", got)
		}
	})
	t.Run("stop token", func(t *testing.T) {
		p := greedily(24)
		p.StopTokens = []int{plain.IDs[5]}
		first := slices.Index(plain.IDs, plain.IDs[5])
		got := run(p)
		if !slices.Equal(got.IDs, plain.IDs[:first]) || got.Reason != FinishStop || got.Stop != fmt.Sprint(plain.IDs[5]) || got.Usage.Completion != first+1 {
			t.Errorf("%+v", got)
		}
		p.IncludeStop = true
		if got := run(p); !slices.Equal(got.IDs, plain.IDs[:first+1]) || got.Text != b.tok.Decode(plain.IDs[:first+1], true) || got.Stop != fmt.Sprint(plain.IDs[5]) {
			t.Errorf("with the stop token: %+v", got)
		}
		p.Stop = []string{b.tok.TokenString(plain.IDs[5])} // the text ends with both
		if got := run(p); got.Text != b.tok.Decode(plain.IDs[:first+1], true) || got.Reason != FinishStop {
			t.Errorf("with the stop token, which is a stop string: %+v", got)
		}
		p.IncludeStop, p.Stop = false, nil
		p.MinTokens = 10
		if got := run(p); len(got.IDs) < 10 || slices.Contains(got.IDs[:10], plain.IDs[5]) {
			t.Errorf("min_tokens does not hold a stop token back: %+v", got)
		}
	})
	t.Run("end of text", func(t *testing.T) {
		p := greedily(24)
		p.LogitBias = map[int]float32{2: 100}
		if got := run(p); got.Text != "" || got.Reason != FinishStop || got.Usage.Completion != 1 || got.Stop != "" {
			t.Errorf("%+v", got)
		}
		p.IncludeStop, p.SkipSpecial = true, false
		if got := run(p); got.Text != b.tok.TokenString(2) || got.Reason != FinishStop || got.Stop != "" {
			t.Errorf("with the end of text: %+v", got)
		}
		p.IncludeStop, p.SkipSpecial = false, true
		p.IgnoreEOS = true
		if got := run(p); got.Text != "" || got.Reason != FinishLength || len(got.IDs) != 24 {
			t.Errorf("ignored: %+v", got)
		}
		p.SkipSpecial = false
		if got := run(p); got.Text != strings.Repeat(b.tok.TokenString(2), 24) {
			t.Errorf("special tokens shown: %q", got.Text)
		}
		p.IgnoreEOS, p.MinTokens = false, 3
		if got := run(p); got.Usage.Completion != 4 {
			t.Errorf("min_tokens 3: %+v", got)
		}
	})
	t.Run("seed", func(t *testing.T) {
		seed := int64(3)
		p := DefaultParams()
		p.MaxTokens, p.Seed, p.N = 12, &seed, 3
		one := generate(t, e, Request{Prompt: prompt, Params: p})
		if one[0].Text == one[1].Text {
			t.Error("two choices are equal")
		}
		next := seed + 1
		p.Seed, p.N = &next, 1
		if got := run(p); got.Text != one[1].Text {
			t.Error("choice 1 does not draw with the next seed")
		}
		p.Seed = nil
		if first, second := run(p), run(p); first.Text == second.Text {
			t.Error("without a seed two texts are equal")
		}
	})
	t.Run("logprobs", func(t *testing.T) {
		p := greedily(6)
		p.Logprobs, p.PromptLogprobs = 4, true
		got := run(p)
		if len(got.Prompt) != len(prompt) || got.Prompt[0].Top != nil {
			t.Fatalf("%d prompt tokens of %d", len(got.Prompt), len(prompt))
		}
		for i, x := range slices.Concat(got.Prompt[1:], got.Tokens) {
			if x.Logprob >= 0 || len(x.Top) != 4 || x.Rank < 1 || (x.Rank <= 4 && x.Top[x.Rank-1].ID != x.ID) {
				t.Errorf("token %d: %+v", i, x)
			}
		}
		for i, x := range got.Tokens {
			if x.Rank != 1 {
				t.Errorf("greedy token %d has rank %d", i, x.Rank)
			}
		}
		// Scoring prompt and text as a prompt gives the text's logprobs again.
		whole := generate(t, e, Request{Prompt: slices.Concat(prompt, got.IDs), Params: p})[0]
		for i, x := range got.Tokens {
			if s := whole.Prompt[len(prompt)+i]; s.Logprob != x.Logprob || s.ID != x.ID {
				t.Errorf("token %d scored as a prompt: %v, generated: %v", i, s.Logprob, x.Logprob)
			}
		}
	})
	t.Run("constraint", func(t *testing.T) {
		script := b.tok.Encode(" The quick fox", false)
		got := generate(t, e, Request{Prompt: prompt, Params: greedily(24), Constrain: func() Constraint { return &scripted{ids: script} }})[0]
		if !slices.Equal(got.IDs, script) || got.Reason != FinishStop {
			t.Errorf("%+v, want %v", got, script)
		}
	})
	t.Run("context", func(t *testing.T) {
		long := make([]int, 250)
		p := greedily(0)
		p.IgnoreEOS = true
		if got := generate(t, e, Request{Prompt: long, Params: p})[0]; got.Usage.Completion != 6 || got.Reason != FinishLength {
			t.Errorf("%+v", got)
		}
		_, err := e.Submit(t.Context(), Request{Prompt: make([]int, 256), Params: p})
		if !errors.Is(err, ErrPromptTooLong) || !strings.Contains(err.Error(), "256 tokens") {
			t.Error(err)
		}
		p.MaxTokens = 6
		if got := generate(t, e, Request{Prompt: long, Params: p})[0]; got.Usage.Completion != 6 {
			t.Errorf("%+v", got)
		}
		for _, n := range []int{7, math.MaxInt} {
			p.MaxTokens = n
			if _, err := e.Submit(t.Context(), Request{Prompt: long, Params: p}); !errors.Is(err, ErrMaxTokens) || !strings.Contains(err.Error(), "256 tokens") {
				t.Error(err)
			}
		}
	})
	t.Run("bad requests", func(t *testing.T) {
		for field, r := range map[string]Request{
			"prompt": {Params: greedily(1)},
			"top_p":  {Prompt: prompt, Params: Params{Temperature: 1, RepetitionPenalty: 1, N: 1}},
		} {
			_, err := e.Submit(t.Context(), r)
			var bad *ParamError
			if !errors.As(err, &bad) || bad.Param != field {
				t.Errorf("%s: %v", field, err)
			}
		}
		if _, err := e.Submit(t.Context(), Request{Prompt: []int{1, 4096}, Params: greedily(1)}); err == nil {
			t.Error("a token outside the vocabulary is accepted")
		}
	})
	t.Run("do", func(t *testing.T) {
		want := errors.New("from inside")
		if err := e.Do(t.Context(), func() error { return want }); !errors.Is(err, want) {
			t.Error(err)
		}
	})
	if s := e.Stats(); s.Running+s.Waiting+s.KVUsed != 0 {
		t.Errorf("at the end %+v", s)
	}
}

// scripted allows one text.
type scripted struct{ ids []int }

func (s *scripted) Mask(dst []int32) {
	if len(s.ids) > 0 {
		dst[s.ids[0]/32] |= 1 << (s.ids[0] % 32)
	}
}

func (s *scripted) Accept(token int) {
	if token != s.ids[0] {
		panic("a token that was not allowed")
	}
	s.ids = s.ids[1:]
}

// paced lets an engine make so many steps, so that a text does not come to the end of its context while a test's goroutine waits for its turn.
type paced struct {
	mu   sync.Mutex
	more sync.Cond
	left int
}

// allow lets n steps be made from now on.
func (p *paced) allow(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = n
	p.more.Broadcast()
}

func (p *paced) ObserveStep(StepInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.left == 0 {
		p.more.Wait()
	}
	p.left--
}

func (p *paced) ObserveFinish(RequestInfo)  {}
func (p *paced) ObserveSlice(time.Duration) {}

// TestEndings: a request that ends early gives everything back, and others go on.
func TestEndings(t *testing.T) {
	b := newRig(t, kernels.F32)
	pace := &paced{}
	pace.more.L = &pace.mu
	const some = 40 // steps: all that follow one call of allow need fewer
	e := b.start(t, Config{MaxSeqs: 2, MaxTokens: 64, KVBlocks: 128, QueueLimit: 3, Overlap: true, Observer: pace})
	defer pace.allow(math.MaxInt)
	pace.allow(some)
	prompt := b.tok.Encode("Once upon a time", false)
	endless := greedily(0)
	endless.IgnoreEOS = true
	beside, err := e.Submit(t.Context(), Request{Prompt: prompt, Params: endless})
	if err != nil {
		t.Fatal(err)
	}
	read := func(g *Generation) Delta {
		t.Helper()
		pace.allow(some)
		d, err := g.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	read(beside)

	ctx, leave := context.WithCancel(t.Context())
	g, err := e.Submit(ctx, Request{Prompt: prompt, Params: endless})
	if err != nil {
		t.Fatal(err)
	}
	read(g)
	// Both rows are taken: further requests wait, until the queue is full.
	var waiting []*Generation
	for {
		w, err := e.Submit(t.Context(), Request{Prompt: prompt, Params: greedily(2)})
		if err != nil {
			if !errors.Is(err, ErrQueueFull) {
				t.Fatal(err)
			}
			break
		}
		waiting = append(waiting, w)
	}
	if len(waiting) != 3 {
		t.Errorf("%d requests wait, want 3", len(waiting))
	}
	waiting[0].Close() // cancelled in the queue
	leave()            // the client goes away
	pace.allow(some)
	for _, x := range []*Generation{g, waiting[0]} {
		last := Delta{}
		for {
			d, err := x.Next(t.Context())
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			last = d
		}
		if last.FinishReason != FinishCancelled {
			t.Errorf("ended with %q", last.FinishReason)
		}
	}
	for _, w := range waiting[1:] {
		pace.allow(some)
		if got, err := all(t.Context(), w, 1); err != nil || got[0].Usage.Completion != 2 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	late, err := e.Submit(t.Context(), Request{Prompt: prompt, Params: endless, Deadline: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	pace.allow(some)
	if got, err := all(t.Context(), late, 1); err != nil || got[0].Reason != FinishDeadline {
		t.Errorf("%+v, %v", got, err)
	}
	read(beside)

	// Draining refuses, lets run, and ends.
	short, stop := context.WithCancel(t.Context())
	stop()
	if err := e.Drain(short); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := e.Submit(t.Context(), Request{Prompt: prompt, Params: endless}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	beside.Close()
	pace.allow(some)
	if err := e.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if s := e.Stats(); s.KVUsed != 0 || s.Running != 0 || s.Waiting != 0 || s.Requests[FinishCancelled] != 3 {
		t.Errorf("at the end %+v", s)
	}
}

// TestGoneBeforeItStarts: a client that has left, or a deadline that has passed, by the time of Submit ends the request however the
// engine's goroutine and the canceller's meet.
func TestGoneBeforeItStarts(t *testing.T) {
	b := newRig(t, kernels.F32)
	e := b.start(t, Config{MaxSeqs: 2, MaxTokens: 64, KVBlocks: 128, QueueLimit: 3, Overlap: true})
	gone, leave := context.WithCancel(t.Context())
	leave()
	for i := range 2000 { // a cancellation that is lost in one of some thousand shows here
		r, ctx, want := Request{Prompt: []int{1}, Params: greedily(0)}, gone, FinishCancelled // a text as long as the context: the canceller has time
		r.Params.IgnoreEOS = true
		if i%2 == 1 {
			r.Deadline, ctx, want = time.Now(), t.Context(), FinishDeadline
		}
		g, err := e.Submit(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := all(t.Context(), g, 1); err != nil || got[0].Reason != want {
			t.Fatalf("request %d: %+v, %v, want %q", i, got, err, want)
		}
	}
}
