package server

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// BenchmarkStreams runs 8 streams at once over HTTP; beside the time of an engine step it gives what HTTP adds.
func BenchmarkStreams(b *testing.B) {
	c := serve(b)
	engine := shared(b).deps.Engine
	q := endless("demo")
	q["max_tokens"] = 500
	raw := string(mustJSON(q))
	before := engine.Stats()
	for b.Loop() {
		var streams sync.WaitGroup
		for range 8 {
			streams.Go(func() {
				r, err := http.NewRequestWithContext(b.Context(), "POST", c.url+"/v1/chat/completions", strings.NewReader(raw))
				if err != nil {
					b.Error(err)
					return
				}
				r.Header.Set("Content-Type", "application/json")
				a, err := http.DefaultClient.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				defer a.Body.Close()
				if _, err := io.Copy(io.Discard, a.Body); err != nil {
					b.Error(err)
				}
			})
		}
		streams.Wait()
	}
	after := engine.Stats()
	tokens := float64(after.GeneratedTokens - before.GeneratedTokens)
	b.ReportMetric(b.Elapsed().Seconds()/tokens*1e6, "µs/token")
	b.ReportMetric((after.StepTime-before.StepTime).Seconds()/tokens*1e6, "µs-step/token")
	b.ReportMetric(tokens/b.Elapsed().Seconds(), "tokens/s")
}
