package main

import (
	"context"
	"errors"
	"fmt"

	"bhive/finetune"
	"bhive/infer"
)

// coserveRows measures streaming clients and training beside each other on one device.
func (c *benchGPUCmd) coserveRows(ctx context.Context, l *loaded) (err error) {
	z := c.sizes
	training, err := finetune.OpenBench(l.model, finetune.BenchConfig{Rank: c.Rank, Length: z.length, Sequences: z.examples}) // before the KV cache takes what is left
	if err != nil {
		return err
	}
	defer training.Close()
	if _, err := training.Step(); err != nil { // allocates scratch, chooses algorithms
		return err
	}
	each := c.footprint(l).AdapterBytes(c.Rank) + 1<<10
	b, err := infer.OpenEngineBench(l.model, l.tokenizer, infer.EngineBenchConfig{Rank: c.Rank, Slots: 4 * z.clients, DeviceBytes: int64(z.clients+2) * each,
		HostBytes: int64(2*z.clients) * each, MaxTokens: c.Budget, Utilization: c.utilization(l)})
	if err != nil {
		return err
	}
	defer b.Close()
	r, err := b.Beside(ctx, infer.BesideConfig{Clients: z.clients, Prompt: z.prompt, Tokens: z.tokens, Seconds: c.Seconds, Targets: c.TPOTTarget, Background: training, Rate: training.Rate})
	if err = errors.Join(err, training.Err()); err != nil {
		return err
	}
	row := benchRow{Kind: rowCoserve, Batch: z.clients, Distinct: z.clients, Rank: c.Rank, Context: z.prompt + z.tokens/2, R: l.model.R()}
	alone := row
	alone.Batch, alone.Distinct, alone.Context = 0, 0, 0
	alone.Name = fmt.Sprintf("training %d × %d tokens through the engine, no clients: a step", z.examples, z.length)
	alone.TokensPerSecond = r.Alone
	if r.Alone > 0 {
		alone.Milliseconds = 1e3 * float64(training.Tokens()) / r.Alone
	}
	c.add(alone)
	phase := func(s infer.StreamsResult) benchRow {
		p := row
		p.Milliseconds, p.TokensPerSecond = ms(s.TokenP50), s.Generated
		if s.TokenP50 == 0 { // no text was long enough for a mean
			p.Milliseconds = ms(s.GapP50)
		}
		p.More = map[string]float64{"tpot_p50_ms": ms(s.TokenP50), "tpot_p99_ms": ms(s.TokenP99), "gap_p50_ms": ms(s.GapP50), "gap_p99_ms": ms(s.GapP99),
			"ttft_p50_ms": ms(s.FirstP50), "ttft_p99_ms": ms(s.FirstP99), "requests": float64(s.Requests), "busy": s.Busy, "period_s": r.Period.Seconds()}
		p.Note = fmt.Sprintf("TPOT p99 %.2f ms; token to token p50 %.2f, p99 %.2f ms; TTFT p50 %.1f, p99 %.1f ms; steps %.0f %% of the time", ms(s.TokenP99), ms(s.GapP50), ms(s.GapP99),
			ms(s.FirstP50), ms(s.FirstP99), 100*s.Busy)
		return p
	}
	without := phase(r.Without)
	without.Name = fmt.Sprintf("%d streaming clients, a request every %.2f s each: a token (p50)", z.clients, r.Period.Seconds())
	c.add(without)
	for i, s := range r.With {
		with := phase(s)
		target := "1.25 × a step alone"
		if t := c.TPOTTarget[i]; t > 0 {
			target = t.String()
		}
		with.Name = fmt.Sprintf("the same beside training, target %s: a token (p50)", target)
		with.AgainstBase = with.Milliseconds / without.Milliseconds
		kept := 0.0
		if r.Alone > 0 {
			kept = s.Rate / r.Alone
		}
		for name, v := range map[string]float64{"tpot_target_ms": ms(s.Target), "training_tokens_per_second": s.Rate, "training_of_alone": kept, "idle_share": s.IdleShare,
			"slice_p50_ms": ms(s.Median), "longest_slice_ms": ms(s.LongestSlice)} {
			with.More[name] = v
		}
		with.Note += fmt.Sprintf("; target in force %.2f ms; training %.0f tok/s, %.2f of alone, %.2f of the time without a step; slices p50 %.2f, longest %.2f ms", ms(s.Target), s.Rate, kept,
			s.IdleShare, ms(s.Median), ms(s.LongestSlice))
		c.add(with)
	}
	return nil
}
