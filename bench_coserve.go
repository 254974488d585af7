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
	table := coserveTable{c: c, batch: training.Tokens(), without: map[bool]float64{}, row: benchRow{Kind: rowCoserve, Batch: z.clients, Distinct: z.clients, Rank: c.Rank, R: l.model.R()}}
	err = b.Beside(ctx, infer.BesideConfig{Clients: z.clients, Prompt: z.prompt, Heavy: infer.Arrivals{PerSecond: c.Arrivals, Tokens: z.text}, Light: z.light, Seconds: c.Seconds,
		Targets: c.TPOTTarget, Background: training, TokensTaken: training.Rate}, table.add)
	return errors.Join(err, training.Err())
}

// coserveTable makes rows of what co-serving shows, one phase after the other.
type coserveTable struct {
	c       *benchGPUCmd
	row     benchRow         // what all have
	batch   int              // tokens of a training step
	alone   float64          // training without clients, tokens a second
	without map[bool]float64 // milliseconds of a token without training, under light load and under the other
}

func (t *coserveTable) add(s infer.StreamsResult) {
	if s.PerSecond == 0 {
		t.addAlone(s)
		return
	}
	r, z := t.row, t.c.sizes
	r.Context = z.prompt + s.Tokens/2
	r.Milliseconds, r.TokensPerSecond = ms(s.TokenP50), s.Generated
	if s.TokenP50 == 0 { // no text began and ended
		r.Milliseconds = ms(max(s.GapP50, s.FirstP50))
	}
	r.More = map[string]float64{"tpot_p50_ms": ms(s.TokenP50), "tpot_p99_ms": ms(s.TokenP99), "gap_p50_ms": ms(s.GapP50), "gap_p99_ms": ms(s.GapP99),
		"ttft_p50_ms": ms(s.FirstP50), "ttft_p99_ms": ms(s.FirstP99), "arrivals_per_second": s.PerSecond, "text_tokens": float64(s.Tokens), "requests": float64(s.Requests),
		"ended": float64(s.Ended), "waited": float64(s.Waited), "running": s.Running, "busy": s.Busy}
	r.Name = fmt.Sprintf("%d streaming clients, %.3g requests/s of %d + %d tokens, ", z.clients, s.PerSecond, z.prompt, s.Tokens)
	r.Note = fmt.Sprintf("TPOT p99 %.2f ms of %d; token to token p50 %.2f, p99 %.2f ms; TTFT p50 %.1f, p99 %.1f ms of %d, %d waited for a client; %.1f run, steps %.0f %% of the time",
		ms(s.TokenP99), s.Ended, ms(s.GapP50), ms(s.GapP99), ms(s.FirstP50), ms(s.FirstP99), s.Requests, s.Waited, s.Running, 100*s.Busy)
	if s.Background {
		t.beside(&r, s)
	} else {
		r.Name += "without training"
		t.without[t.light(s)] = r.Milliseconds
	}
	t.c.add(r)
}

// addAlone is training through the engine without clients.
func (t *coserveTable) addAlone(s infer.StreamsResult) {
	z, r := t.c.sizes, t.row
	r.Batch, r.Distinct = 0, 0
	r.Name = fmt.Sprintf("training %d × %d tokens through the engine, no clients: a step", z.examples, z.length)
	t.alone, r.TokensPerSecond = s.Rate, s.Rate
	if s.Rate > 0 {
		r.Milliseconds = 1e3 * float64(t.batch) / s.Rate
	}
	t.c.add(r)
}

// light says whether the load leaves the device idle between requests.
func (t *coserveTable) light(s infer.StreamsResult) bool { return s.Arrivals == t.c.sizes.light }

// beside adds what training got. How much of the time without a step that is in tokens counts also what cutting costs it.
func (t *coserveTable) beside(r *benchRow, s infer.StreamsResult) {
	target := "1.25 × idle"
	if s.Asked > 0 {
		target = s.Asked.String()
	}
	r.Name += "beside training, target " + target
	r.AgainstBase = r.Milliseconds / t.without[t.light(s)]
	var kept, progress float64
	if t.alone > 0 {
		kept = s.Rate / t.alone
		if s.Busy < 1 {
			progress = kept / (1 - s.Busy)
		}
	}
	for name, v := range map[string]float64{"tpot_target_ms": ms(s.Target), "training_tokens_per_second": s.Rate, "training_of_alone": kept, "training_of_idle": progress,
		"idle_share": s.IdleShare, "slack_share": s.SlackShare, "slice_p50_ms": ms(s.Median), "longest_slice_ms": ms(s.LongestSlice), "wait_p50_ms": ms(s.WaitP50), "longest_wait_ms": ms(s.LongestWait)} {
		r.More[name] = v
	}
	r.Note += fmt.Sprintf("; target in force %.2f ms; training %.0f tok/s, %.2f of alone, %.2f of alone × the time without a step; %.2f of that time", ms(s.Target), s.Rate, kept, progress,
		s.IdleShare)
	if !t.light(s) { // otherwise most of what it gets is no slack of steps
		r.Note += fmt.Sprintf(", %.2f of what the target leaves", s.SlackShare)
	}
	r.Note += fmt.Sprintf("; slices p50 %.2f, longest %.2f ms; a prompt's step waited for them %.2f ms (p50), at most %.2f", ms(s.Median), ms(s.LongestSlice), ms(s.WaitP50), ms(s.LongestWait))
}
