package main

import (
	"context"
	"fmt"
	"time"

	"bhive/infer"
	"bhive/kernels/cpu"
)

// engineRows measures what only a whole engine shows.
func (c *benchGPUCmd) engineRows(ctx context.Context, l *loaded) error {
	if c.wants("http") {
		if err := c.httpRows(ctx, l); err != nil {
			return fmt.Errorf("HTTP: %w", err)
		}
	}
	if !c.wants("swaps") && !c.wants("first-token") && !c.wants("slora") {
		return nil
	}
	z := c.sizes
	f := c.footprint(l)
	each := f.AdapterBytes(c.Rank) + 1<<10
	device := int64(c.AdapterGiB * (1 << 30))
	host := each * int64(z.streams+2*z.swapHost) * 5 / 4 // slabs are not filled to their ends
	if c.wants("slora") {
		host = max(host, c.hostBytes())
	}
	begin := time.Now()
	b, err := infer.OpenEngineBench(l.model, l.tokenizer, infer.EngineBenchConfig{Rank: c.Rank, Slots: 4096, DeviceBytes: device, HostBytes: host, StoreBandwidth: c.StoreGBs * 1e9,
		MaxTokens: c.Budget, Utilization: c.utilization(l)})
	if err != nil {
		return err
	}
	defer b.Close()
	c.say("adapters of rank %d: %.1f MiB each; %.1f GiB of device memory, %.1f GiB of host memory (taken in %.1f s), then a store of %g GB/s", c.Rank, float64(each)/(1<<20),
		float64(device)/(1<<30), float64(host)/(1<<30), time.Since(begin).Seconds(), c.StoreGBs)
	linkMS := 1e3 * float64(f.AdapterBytes(c.Rank)) / c.report.Ceilings.Link
	if c.wants("swaps") {
		s, err := b.Swaps(ctx, z.streams, z.prompt, z.tokens, 16, z.swapHost, z.perSecond)
		if err != nil {
			return fmt.Errorf("swaps: %w", err)
		}
		row := benchRow{Kind: rowSwaps, Batch: s.Batch, Distinct: s.Batch, Rank: c.Rank, Context: z.prompt + z.tokens/2, R: l.model.R()}
		quiet := row
		quiet.Name = fmt.Sprintf("engine's steps, B = %d, as many adapters of rank %d", s.Batch, c.Rank)
		quiet.Milliseconds, quiet.TokensPerSecond = ms(s.QuietMedian), float64(s.Batch)/s.QuietMedian.Seconds()
		quiet.More = map[string]float64{"worst_ms": ms(s.QuietWorst), "worst_to_median": s.QuietWorst.Seconds() / s.QuietMedian.Seconds()}
		quiet.Note = fmt.Sprintf("worst %.3f ms, %.2f × the median", ms(s.QuietWorst), quiet.More["worst_to_median"])
		c.add(quiet)
		row.Name = fmt.Sprintf("the same while %.0f swaps a second go on", s.PerSecond)
		row.Milliseconds, row.TokensPerSecond, row.AgainstBase = ms(s.Median), float64(s.Batch)/s.Median.Seconds(), s.Median.Seconds()/s.QuietMedian.Seconds()
		row.More = map[string]float64{"worst_ms": ms(s.Worst), "p99_ms": ms(s.P99), "worst_to_median": s.Worst.Seconds() / s.Median.Seconds(), "swaps_per_second": s.PerSecond,
			"steps": float64(s.Steps), "link_share": s.PerSecond * linkMS / 1e3}
		row.Note = fmt.Sprintf("p99 %.3f, worst %.3f ms: %.2f × the median of %d; %.0f %% of the link", ms(s.P99), ms(s.Worst), row.More["worst_to_median"], s.Steps, 100*row.More["link_share"])
		c.add(row)
	}
	if c.wants("first-token") {
		for _, beside := range []int{0, z.streams / 2} {
			r, err := b.FirstToken(ctx, z.pairs, z.prompt, z.swapHost, beside, z.prompt+z.tokens)
			if err != nil {
				return fmt.Errorf("first tokens: %w", err)
			}
			name := "first token added by a host-tier adapter, idle engine (p50)"
			if beside > 0 {
				name = fmt.Sprintf("first token added by a host-tier adapter, %d streams beside (p50)", beside)
			}
			c.add(benchRow{Name: name, Kind: rowFirstToken, Batch: beside, Rank: c.Rank, R: l.model.R(), Milliseconds: ms(r.AddedP50), FloorMS: linkMS,
				More: map[string]float64{"added_p99_ms": ms(r.AddedP99), "resident_first_token_ms": ms(r.Resident), "host_first_token_ms": ms(r.Host), "pairs": float64(r.Pairs)},
				Note: fmt.Sprintf("p99 %.3f ms; first token %.3f ms resident, %.3f from the host", ms(r.AddedP99), ms(r.Resident), ms(r.Host))})
		}
	}
	if c.wants("slora") {
		return c.sloraRows(ctx, l, b)
	}
	return nil
}

// hostBytes is the host memory for adapters in the S-LoRA rows. What is asked for is not bounded: a virtual machine's memory may grow as it is used.
func (c *benchGPUCmd) hostBytes() int64 {
	if c.HostGiB > 0 {
		return int64(c.HostGiB * (1 << 30))
	}
	host := int64(64 << 30)
	if most := cpu.MachineMemory() / 2; most > 0 {
		host = min(host, most)
	}
	return host
}

// utilization is of the KV caches of engine rows.
func (c *benchGPUCmd) utilization(l *loaded) float64 {
	if l.backend.Info().CopyInPlace {
		return 0
	}
	return 0.92
}

// httpRows compares the engine alone and behind HTTP.
func (c *benchGPUCmd) httpRows(ctx context.Context, l *loaded) error {
	z := c.sizes
	h := benchHTTP{l: l, clients: z.streams, prompt: z.prompt, tokens: z.tokens, rounds: z.rounds, budget: max(c.Budget, z.streams)}
	bare, over, ratio, err := h.turns(ctx)
	if err != nil {
		return err
	}
	tokens := float64(z.streams * z.tokens)
	row := benchRow{Name: fmt.Sprintf("engine alone, %d streams of %d + %d tokens, a token", z.streams, z.prompt, z.tokens), Kind: rowHTTP, Batch: z.streams, Context: z.prompt + z.tokens/2,
		R: l.model.R(), Milliseconds: ms(bare) / float64(z.tokens), TokensPerSecond: tokens / bare.Seconds()}
	c.add(row)
	row.Name = "the same through HTTP, streaming"
	row.Milliseconds, row.TokensPerSecond, row.AgainstBase = ms(over)/float64(z.tokens), tokens/over.Seconds(), 1/ratio
	row.More = map[string]float64{"of_engine": ratio}
	row.Note = fmt.Sprintf("%.3f of the engine's tokens", ratio)
	c.add(row)
	return nil
}

// sloraRows runs S-LoRA's workload with more and more adapters.
func (c *benchGPUCmd) sloraRows(ctx context.Context, l *loaded, b *infer.EngineBench) error {
	z := c.sizes
	w := infer.WorkloadConfig{CV: c.CV, Alpha: c.Alpha, Shortest: z.shortest, Longest: z.longish, Seed: 1}
	var first, rate float64
	run := func(n int, p infer.Popularity) error {
		w.Adapters, w.Popularity = n, p
		r, err := b.SLoRA(ctx, infer.SLoRAConfig{Workload: w, MaxSeqs: c.SLoRASeqs, Seconds: c.Seconds, Rate: rate})
		if err != nil {
			return fmt.Errorf("S-LoRA's workload with %d adapters: %w", n, err)
		}
		if first == 0 {
			first, rate = r.Throughput, r.Rate
		}
		kept := r.Throughput / first
		more := map[string]float64{"throughput_kept": kept, "requests_per_second": r.Requests, "steady_rate_per_second": r.Rate, "finished": float64(r.Finished),
			"ttft_p50_ms": ms(r.FirstP50), "ttft_p90_ms": ms(r.FirstP90), "ttft_p99_ms": ms(r.FirstP99), "tpot_p50_ms": ms(r.TokenP50), "tpot_p99_ms": ms(r.TokenP99),
			"device_share": r.DeviceHits, "host_share": r.HostHits, "store_share": r.StoreHits, "kv_tokens": float64(r.KVTokens),
			"device_bytes": float64(r.DeviceBytes), "host_bytes": float64(r.HostBytes)}
		if p == infer.Zipf {
			more["zipf_alpha"] = c.Alpha
		}
		c.add(benchRow{Name: fmt.Sprintf("S-LoRA's workload, %d adapters, %s %g: a token (p50)", n, p, c.Alpha), Kind: rowSLoRA, Distinct: n, Batch: c.SLoRASeqs, Rank: c.Rank, R: l.model.R(),
			Milliseconds: ms(r.TokenP50), TokensPerSecond: r.Throughput,
			More: more,
			Note: fmt.Sprintf("saturated %.2f req/s, %.3f of the first row; at %.2f req/s TTFT p50 %.1f, p90 %.1f, p99 %.1f ms, TPOT p99 %.2f ms; B's on device %.0f %%, host %.0f %%, store %.0f %%",
				r.Requests, kept, r.Rate, ms(r.FirstP50), ms(r.FirstP90), ms(r.FirstP99), ms(r.TokenP99), 100*r.DeviceHits, 100*r.HostHits, 100*r.StoreHits)})
		return nil
	}
	for _, n := range c.Counts {
		if err := run(n, c.Popularity); err != nil {
			return err
		}
	}
	if c.Popularity == infer.Zipf && len(c.Counts) > 1 { // and as S-LoRA's own generator draws it
		return run(c.Counts[len(c.Counts)-1], infer.Power)
	}
	return nil
}
