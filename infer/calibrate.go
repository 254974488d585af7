package infer

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"bhive/adapters"
	"bhive/kernels"
)

// ErrSequenceTooLong is returned by a Scorer and by Calibrate for a sequence longer than the model's context or the scorer's KV cache.
var ErrSequenceTooLong = errors.New("sequence too long")

// ErrCalibration is returned by Calibrate where the sequences leave nothing to measure.
var ErrCalibration = errors.New("nothing to calibrate on")

//go:embed calibration.txt
var calibrationText string

// CalibrationTexts are short texts of ordinary English, written for this project: what a basis of method activations is
// measured on where a user gives none of his own.
func CalibrationTexts() []string {
	return strings.Split(strings.TrimSpace(calibrationText), "\n\n")
}

// CalibrateConfig says how inputs are measured. The zero value of a field is its default.
type CalibrateConfig struct {
	// Skip is the number of first tokens of each sequence that do not count: attention makes outliers of them that would
	// hide everything else. Default 4; below 0: all count.
	Skip int
	// Bytes bounds the memory of moments on the device; the model is run again for each group of layers that fits. Default 1 GiB.
	Bytes  int64
	Scorer ScorerConfig
}

// Calibrate measures the uncentred second moments E[x·xᵀ] of all sites' inputs over the sequences. cov is what adapters.BasisConfig.Cov
// wants: [in, in] row-major, safe for concurrent use. The moments stay in host memory as float32 as long as cov does.
func Calibrate(ctx context.Context, m *Model, sequences [][]int32, c CalibrateConfig) (cov func(layer int, site adapters.Site) []float64, err error) {
	if c.Skip == 0 {
		c.Skip = 4
	}
	c.Skip = max(c.Skip, 0)
	if c.Bytes == 0 {
		c.Bytes = 1 << 30
	}
	s, err := NewScorer(m, c.Scorer)
	if err != nil {
		return nil, fmt.Errorf("calibrating: %w", err)
	}
	defer s.Close()
	var seqs []Sequence
	count := 0
	for _, ids := range sequences {
		if len(ids) <= c.Skip {
			continue
		}
		labels := make([]int32, len(ids)) // 0: counts
		for i := range c.Skip {
			labels[i] = -1
		}
		count += len(ids) - c.Skip
		seqs = append(seqs, Sequence{Tokens: ids, Adapter: adapters.BaseSlot, Labels: labels})
	}
	if count == 0 {
		return nil, fmt.Errorf("calibrating: no sequence is longer than %d tokens: %w", c.Skip, ErrCalibration)
	}
	sums := make([][]float32, m.Config.Layers*int(adapters.NumSites))
	var layerBytes int64
	for site := adapters.AttnIn; site < adapters.NumSites; site++ {
		n := int64(m.Geometry.In(site))
		layerBytes += 4 * n * n
	}
	group := int(max(1, c.Bytes/layerBytes))
	for l0 := 0; l0 < m.Config.Layers; l0 += group {
		if err := s.moments(ctx, seqs, l0, min(l0+group, m.Config.Layers), sums); err != nil {
			return nil, fmt.Errorf("calibrating layers from %d: %w", l0, err)
		}
	}
	return func(layer int, site adapters.Site) []float64 {
		sum := sums[layer*int(adapters.NumSites)+int(site)]
		out := make([]float64, len(sum))
		for i, v := range sum {
			out[i] = float64(v) / float64(count)
		}
		return out
	}, nil
}

// moments adds up x·xᵀ of the sites of layers [l0, l1) and puts the sums of each into sums.
func (s *Scorer) moments(ctx context.Context, seqs []Sequence, l0, l1 int, sums [][]float32) error {
	m, be := s.m, s.m.Backend
	grams := make([]kernels.Tensor, len(sums))
	a := allocator{mem: be}
	defer func() { a.free() }()
	at := func(l int, site adapters.Site) int { return l*int(adapters.NumSites) + int(site) }
	for l := l0; l < l1; l++ {
		for site := adapters.AttnIn; site < adapters.NumSites; site++ {
			grams[at(l, site)] = a.alloc(kernels.F32, m.Geometry.In(site), m.Geometry.In(site))
		}
	}
	if a.err != nil {
		return a.err
	}
	err := s.schedule(ctx, seqs, func(step []StepSeq, _ []int) error {
		sc := s.trainStep(step)
		m.EmbedTokens(s.stream, s.state, sc, nil)
		for l := range l1 {
			m.forwardLayer(s.stream, s.state, sc, l, nil, func(site adapters.Site, x kernels.Tensor) {
				if l >= l0 {
					be.Gram(s.stream, grams[at(l, site)], x, sc.Step)
				}
			})
		}
		return s.stream.Sync()
	})
	if err != nil {
		return err
	}
	for l := l0; l < l1; l++ {
		for site := adapters.AttnIn; site < adapters.NumSites; site++ {
			i := at(l, site)
			sums[i] = make([]float32, grams[i].Elements())
			be.Download(s.stream, f32Bytes(sums[i]), grams[i])
		}
	}
	return s.stream.Sync()
}
