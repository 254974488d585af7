package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"bhive/infer"
	"bhive/infer/grammar"

	"golang.org/x/sync/errgroup"
)

// grammarResult compares texts under a JSON Schema and free ones that took turns.
type grammarResult struct {
	Streams int           `json:"streams"`
	Step    time.Duration `json:"step_ns"` // for a token of each stream under the schema
	Free    time.Duration `json:"free_ns"`
	Cost    float64       `json:"cost"`    // median of the rounds' Step/Free − 1
	Mask    time.Duration `json:"mask_ns"` // of it the mask of one token, all its states seen before
}

// benchGrammar runs an engine without HTTP. Drawing is at temperature 1, so that texts differ and states vary.
type benchGrammar struct {
	l       *loaded
	streams int
	tokens  int
	rounds  int

	engine *infer.Engine
	masks  maskTimes
}

// benchSchema has what answers have: names, numbers, choices and lists. It does not end before max_tokens does.
const benchSchema = `{"type":"array","minItems":1000,"items":{"type":"object","properties":{
	"name":{"type":"string","maxLength":24},"age":{"type":"integer","minimum":0,"maximum":130},"kind":{"enum":["one","another","neither"]},
	"tags":{"type":"array","items":{"type":"string","pattern":"^[a-z ]{1,12}$"},"maxItems":4},"score":{"type":"number"}},
	"required":["name","age","kind","tags","score"],"additionalProperties":false}}`

// maskTimes adds up what masks take.
type maskTimes struct {
	n     int
	total time.Duration
}

type timedMatcher struct {
	*grammar.Matcher
	t *maskTimes
}

func (m timedMatcher) Mask(dst []int32) {
	begin := time.Now()
	m.Matcher.Mask(dst)
	m.t.total += time.Since(begin)
	m.t.n++
}

func (b *benchGrammar) run(ctx context.Context) (r grammarResult, err error) {
	g, err := grammar.Compile(json.RawMessage(benchSchema))
	if err != nil {
		return r, fmt.Errorf("benchmark: %w", err)
	}
	t := b.l.tokenizer
	bound := grammar.NewVocabulary(t.VocabSize(), func(id int) []byte {
		if t.IsSpecial(id) {
			return nil
		}
		return t.TokenBytes(id)
	}, b.l.model.Config.EOS).Bind(g)
	if b.engine, err = infer.New(infer.Config{MaxSeqs: b.streams, MaxContext: b.tokens + 16, NoPrefixCache: true}, b.l.model, nil, nil, t); err != nil {
		return r, err
	}
	if err := b.engine.Open(); err != nil {
		return r, err
	}
	defer b.engine.Close()
	run, stop := context.WithCancel(ctx)
	var engine errgroup.Group
	engine.Go(func() error { return b.engine.Run(run) })
	defer func() {
		stop()
		err = errors.Join(err, engine.Wait())
	}()
	var steps, frees []time.Duration
	var costs []float64
	for round := -1; round < b.rounds; round++ { // the first one warms up
		free, err := b.round(ctx, round, nil)
		if err != nil {
			return r, err
		}
		b.masks = maskTimes{} // the engine is idle
		step, err := b.round(ctx, round, func() infer.Constraint { return timedMatcher{bound.New(), &b.masks} })
		if err != nil {
			return r, err
		}
		if round >= 0 {
			steps, frees, costs = append(steps, step), append(frees, free), append(costs, float64(step)/float64(free)-1)
		}
	}
	return grammarResult{Streams: b.streams, Step: median(steps), Free: median(frees), Cost: median(costs), Mask: b.masks.total / time.Duration(max(b.masks.n, 1))}, nil
}

// round runs all streams to max_tokens, and returns the time of a token of each.
func (b *benchGrammar) round(ctx context.Context, round int, constrain func() infer.Constraint) (time.Duration, error) {
	var all errgroup.Group
	begin := time.Now()
	for i := range b.streams {
		seed := int64(1000*(round+1) + i)
		p := infer.DefaultParams()
		p.MaxTokens, p.IgnoreEOS, p.Seed = b.tokens, true, &seed
		all.Go(func() error {
			g, err := b.engine.Submit(ctx, infer.Request{Prompt: []int{5, 6, 7 + i}, Params: p, Constrain: constrain})
			if err != nil {
				return err
			}
			for {
				d, err := g.Next(ctx)
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if d.FinishReason != "" && d.FinishReason != infer.FinishLength {
					return fmt.Errorf("benchmark: a text ended by %s", d.FinishReason)
				}
			}
		})
	}
	err := all.Wait()
	return time.Since(begin) / time.Duration(b.tokens), err
}
