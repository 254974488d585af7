package main

import (
	"bhive/infer"
	"bhive/infer/checkpoint"
)

// samplingDefaults are the model's own sampling parameters, as vLLM takes them from generation_config.json.
func samplingDefaults(g checkpoint.Generation) infer.Params {
	p := infer.DefaultParams()
	if g.DoSample != nil && !*g.DoSample {
		p.Temperature = 0
	}
	number := func(dst *float32, v *float64) {
		if v != nil {
			*dst = float32(*v)
		}
	}
	number(&p.Temperature, g.Temperature)
	number(&p.TopP, g.TopP)
	number(&p.MinP, g.MinP)
	number(&p.RepetitionPenalty, g.RepetitionPenalty)
	if g.TopK != nil {
		p.TopK = *g.TopK
	}
	return p
}
