package checkpoint

import (
	"fmt"
	"math"
)

// RopeType says how rotary frequencies are scaled.
type RopeType string

// The scalings that are implemented.
const (
	RopeDefault RopeType = "default"
	RopeLinear  RopeType = "linear"
	RopeLlama3  RopeType = "llama3"
	RopeYarn    RopeType = "yarn"
)

// Rope is the rotary embedding. Only the fields of its Type count.
type Rope struct {
	Type   RopeType
	Dim    int     // rotated values of a head, even
	Theta  float64 // base of the frequencies
	Factor float64 // linear, llama3, yarn

	OriginalMaxPositions int     // llama3, yarn: tokens of context before scaling
	LowFreqFactor        float64 // llama3
	HighFreqFactor       float64 // llama3

	BetaFast, BetaSlow   float64 // yarn; rotations, default 32 and 1
	AttentionFactor      float64 // yarn; 0: derived from Factor and the mscales
	MScale, MScaleAllDim float64 // yarn; 0: absent
	NoTruncate           bool    // yarn: the correction range is not rounded to whole dimensions

	// FreqFactors [Dim/2] divide the plain frequencies. A GGUF of type llama3 holds these instead of the factors above.
	FreqFactors []float32
}

// InvFreq is the inverse frequencies [Dim/2] and the factor on cos and sin, in the float32 arithmetic of Transformers.
func (r Rope) InvFreq() (inv []float32, attnFactor float32) {
	inv = make([]float32, r.Dim/2)
	for i := range inv {
		inv[i] = 1 / r.posFreq(i)
	}
	switch r.Type {
	case RopeDefault:
	case RopeLinear:
		for i := range inv {
			inv[i] /= float32(r.Factor)
		}
	case RopeLlama3:
		r.llama3(inv)
	case RopeYarn:
		r.yarn(inv)
		return inv, float32(r.attention())
	default:
		panic("checkpoint: RoPE of type " + string(r.Type))
	}
	return inv, 1
}

func (r Rope) posFreq(i int) float32 {
	return float32(math.Pow(float64(float32(r.Theta)), float64(float32(2*i)/float32(r.Dim))))
}

func (r Rope) llama3(inv []float32) {
	if r.FreqFactors != nil {
		for i := range inv {
			inv[i] /= r.FreqFactors[i]
		}
		return
	}
	old := float64(r.OriginalMaxPositions)
	low, high := float32(old/r.LowFreqFactor), float32(old/r.HighFreqFactor)
	for i, f := range inv {
		wavelen := float32(2*math.Pi) / f
		switch {
		case wavelen > low:
			inv[i] = f / float32(r.Factor)
		case wavelen >= high:
			s := (float32(old)/wavelen - float32(r.LowFreqFactor)) / float32(r.HighFreqFactor-r.LowFreqFactor)
			inv[i] = float32((1-s)*f/float32(r.Factor)) + float32(s*f)
		}
	}
}

func (r Rope) yarn(inv []float32) {
	dim := float64(r.Dim)
	at := func(rotations float64) float64 {
		return dim * math.Log(float64(r.OriginalMaxPositions)/(rotations*2*math.Pi)) / (2 * math.Log(r.Theta))
	}
	low, high := at(r.BetaFast), at(r.BetaSlow)
	if !r.NoTruncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, dim-1)
	if low == high {
		high += 0.001
	}
	for i, f := range inv {
		ramp := min(max((float32(i)-float32(low))/float32(high-low), 0), 1)
		keep := 1 - ramp
		scaled := 1 / (float32(r.Factor) * r.posFreq(i))
		inv[i] = float32(scaled*(1-keep)) + float32(f*keep)
	}
}

// attention is yarn's factor on cos and sin.
func (r Rope) attention() float64 {
	scale := func(m float64) float64 {
		if r.Factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(r.Factor) + 1
	}
	switch {
	case r.AttentionFactor != 0:
		return r.AttentionFactor
	case r.MScale != 0 && r.MScaleAllDim != 0:
		return scale(r.MScale) / scale(r.MScaleAllDim)
	}
	return scale(1)
}

// Validate checks the fields of the type.
func (r Rope) Validate() error {
	bad := func(field string, v any) error {
		return fmt.Errorf("%w: rope (%s): %s = %v", ErrFormat, r.Type, field, v)
	}
	positive := func(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
	switch {
	case r.Dim <= 0 || r.Dim%2 != 0:
		return bad("dimension", r.Dim)
	case !positive(r.Theta) || r.Theta == 1:
		return bad("rope_theta", r.Theta)
	}
	switch r.Type {
	case RopeDefault:
		return nil
	case RopeLinear, RopeLlama3, RopeYarn:
	default:
		return fmt.Errorf("%w: rope_type %q (default, linear, llama3 and yarn are)", ErrUnsupported, r.Type)
	}
	if r.FreqFactors != nil {
		if len(r.FreqFactors) != r.Dim/2 {
			return bad("number of frequency factors", len(r.FreqFactors))
		}
		for _, f := range r.FreqFactors {
			if !positive(float64(f)) {
				return bad("frequency factor", f)
			}
		}
		return nil
	}
	if !positive(r.Factor) {
		return bad("factor", r.Factor)
	}
	if r.Type == RopeLinear {
		return nil
	}
	if r.OriginalMaxPositions <= 0 {
		return bad("original_max_position_embeddings", r.OriginalMaxPositions)
	}
	switch {
	case r.Type == RopeLlama3 && !positive(r.LowFreqFactor):
		return bad("low_freq_factor", r.LowFreqFactor)
	case r.Type == RopeLlama3 && !(positive(r.HighFreqFactor) && r.HighFreqFactor > r.LowFreqFactor):
		return bad("high_freq_factor", r.HighFreqFactor)
	case r.Type == RopeYarn && !positive(r.BetaFast):
		return bad("beta_fast", r.BetaFast)
	case r.Type == RopeYarn && !positive(r.BetaSlow):
		return bad("beta_slow", r.BetaSlow)
	case r.Type == RopeYarn && (r.AttentionFactor < 0 || math.IsNaN(r.AttentionFactor)):
		return bad("attention_factor", r.AttentionFactor)
	}
	return nil
}
