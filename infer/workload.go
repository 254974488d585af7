package infer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"time"
)

// Popularity says how requests spread over adapters.
type Popularity string

// The popularities.
const (
	// Zipf: adapter i = 1, 2, … of n is asked for in proportion to i^−alpha.
	Zipf Popularity = "zipf"
	// Power is what S-LoRA's own generator draws: adapter ⌊n·x⌋ with x of density alpha·x^(alpha−1), which is uniform at alpha 1.
	Power Popularity = "power"
)

// WorkloadConfig describes S-LoRA's synthetic workload (Sheng et al., S-LoRA: Serving Thousands of Concurrent LoRA Adapters, arXiv 2311.03285).
type WorkloadConfig struct {
	Adapters          int
	Requests          int
	Rate              float64 // requests a second
	CV                float64 // coefficient of variation of the times between arrivals, which are Gamma-distributed
	Alpha             float64 // of the popularity
	Popularity        Popularity
	Shortest, Longest int // tokens of prompts and of texts, each uniform, both ends included
	Seed              uint64
}

// Validate says which field is out of range.
func (c WorkloadConfig) Validate() error {
	switch {
	case c.Adapters < 1:
		return fmt.Errorf("workload: Adapters = %d is below 1", c.Adapters)
	case c.Requests < 0:
		return fmt.Errorf("workload: Requests = %d is negative", c.Requests)
	case !(c.Rate > 0):
		return fmt.Errorf("workload: Rate = %v is not positive", c.Rate)
	case !(c.CV > 0):
		return fmt.Errorf("workload: CV = %v is not positive", c.CV)
	case !(c.Alpha > 0):
		return fmt.Errorf("workload: Alpha = %v is not positive", c.Alpha)
	case c.Popularity != Zipf && c.Popularity != Power:
		return fmt.Errorf("workload: no popularity %q", c.Popularity)
	case c.Shortest < 1 || c.Longest < c.Shortest:
		return fmt.Errorf("workload: lengths from %d to %d", c.Shortest, c.Longest)
	}
	return nil
}

// Arrival is one request of a workload.
type Arrival struct {
	At             time.Duration // since the beginning
	Adapter        int           // 0 … Adapters−1
	Prompt, Output int           // tokens
}

// Workload draws the requests, in order of arrival.
func Workload(c WorkloadConfig) ([]Arrival, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(c.Seed, 7))
	draw := func() int { return min(int(float64(c.Adapters)*math.Pow(r.Float64(), 1/c.Alpha)), c.Adapters-1) }
	if c.Popularity == Zipf {
		mass := zipfMass(c.Adapters, c.Alpha)
		draw = func() int { return min(sort.SearchFloat64s(mass, r.Float64()), c.Adapters-1) }
	}
	shape := 1 / (c.CV * c.CV)
	scale := 1 / (shape * c.Rate) // seconds
	out := make([]Arrival, c.Requests)
	at := 0.0
	for i := range out {
		at += scale * gamma(r, shape)
		out[i] = Arrival{At: time.Duration(at * float64(time.Second)), Adapter: draw(),
			Prompt: c.Shortest + r.IntN(c.Longest-c.Shortest+1), Output: c.Shortest + r.IntN(c.Longest-c.Shortest+1)}
	}
	return out, nil
}

// zipfMass is, for each adapter, the share of requests for it and those before it.
func zipfMass(n int, alpha float64) []float64 {
	mass, sum := make([]float64, n), 0.0
	for i := range mass {
		sum += math.Pow(float64(i+1), -alpha)
		mass[i] = sum
	}
	for i := range mass {
		mass[i] /= sum
	}
	return mass
}

// gamma draws from the Gamma distribution of a shape and scale 1 (Marsaglia and Tsang, A simple method for generating gamma variables, 2000).
func gamma(r *rand.Rand, shape float64) float64 {
	boost := 1.0
	if shape < 1 {
		boost = math.Pow(1-r.Float64(), 1/shape)
		shape++
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if u := 1 - r.Float64(); math.Log(u) < 0.5*x*x+d-d*v+d*math.Log(v) {
			return boost * d * v
		}
	}
}
