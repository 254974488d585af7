package finetune

import "math"

// Schedule gives each optimizer step's learning rate.
type Schedule struct {
	Kind   string  // ScheduleConstant, ScheduleLinear or ScheduleCosine
	Rate   float64 // the highest
	Warmup int     // steps of linear warm-up
	Steps  int     // in all
}

// At is the learning rate of step s, from 0: rate·(s+1)/warmup while s < warmup, and then constant, or falling from the rate towards
// 0 at step Steps, linearly or as 0.5·(1+cos(π(s−warmup)/(steps−warmup))).
func (c Schedule) At(s int) float64 {
	if s < c.Warmup {
		return c.Rate * float64(s+1) / float64(c.Warmup)
	}
	done := 1.0
	if c.Steps > c.Warmup {
		done = min(1, float64(s-c.Warmup)/float64(c.Steps-c.Warmup))
	}
	switch c.Kind {
	case ScheduleLinear:
		return c.Rate * (1 - done)
	case ScheduleCosine:
		return c.Rate * 0.5 * (1 + math.Cos(math.Pi*done))
	default:
		return c.Rate
	}
}
