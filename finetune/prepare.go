package finetune

import (
	"cmp"
	"context"
	"fmt"
	"math"

	"bhive/adapters"
)

// preparation is what reading a job's examples yields. It is made beside Run's goroutine and belongs to one goroutine at a time.
type preparation struct {
	spec JobSpec
	data jobData
	id   string

	options   LaneOptions
	tokens    int64 // of an epoch
	truncated int
	prompts   []string
	promptIDs [][]int
}

// prepare reads a job's examples and turns its spec into a lane's options.
func (m *Manager) prepare(ctx context.Context, p *preparation) error {
	s := &p.spec
	most, before := m.longest(), s.MaxLength
	if before == 0 || p.data.Checkpoint == "" {
		s.MaxLength = min(cmp.Or(before, most), most)
	}
	ex, err := m.read(ctx, *s, p.data.Param, p.data.Training)
	if err != nil {
		return err
	}
	o := &p.options
	o.Train, p.truncated = ex.Examples, ex.Truncated
	prompts := ex.Prompts
	switch {
	case p.data.Validation != "":
		held, err := m.read(ctx, *s, "validation_file", p.data.Validation)
		if err != nil {
			return err
		}
		o.Held, prompts = held.Examples, held.Prompts
		p.truncated += held.Truncated
	case s.ValidationSplit > 0:
		if len(ex.Examples) < 2 {
			return &ExamplesError{Param: p.data.Param, Total: 1, Lines: []LineError{{Line: 1, Message: "a validation split needs at least two examples"}}}
		}
		train, held := splitValidation(len(ex.Examples), s.ValidationSplit, s.Seed)
		pick := func(list []int) (out []Example) {
			for _, i := range list {
				out = append(out, ex.Examples[i])
			}
			return out
		}
		o.Train, o.Held = pick(train), pick(held)
		prompts = nil
		for _, i := range held {
			if i < len(ex.Prompts) {
				prompts = append(prompts, ex.Prompts[i])
			}
		}
	}
	if s.MaxLength > most && p.truncated > 0 {
		return fmt.Errorf("%w: its examples were cut to %d tokens, and here they have at most %d", ErrCheckpoint, s.MaxLength, most)
	}
	for _, e := range o.Train {
		p.tokens += int64(len(e.IDs))
	}
	if err := m.begins(ctx, p); err != nil {
		return err
	}
	p.schedule(m.d.Model.Basis)
	return p.chooseSamples(prompts, m.d.Encoder)
}

// begins finds what B the job begins with: a checkpoint, its parent, or zeros.
func (m *Manager) begins(ctx context.Context, p *preparation) error {
	s, o := &p.spec, &p.options
	o.Rank, o.Alpha = s.Rank, s.Alpha
	basis := m.d.Model.Basis // which may be another than at Submit
	if s.Rank > basis.R {
		return fmt.Errorf("%w: %w", fieldErrorf("rank", "must be at most %d, the rows of the basis, is %d", basis.R, s.Rank), adapters.ErrRank)
	}
	before := p.data.Rows
	p.data.Rows = basis.RowsDigest(s.Rank) // hashed now, it need not be when the first of a rank is published
	if p.data.Checkpoint != "" {
		if before != "" && before != p.data.Rows {
			return fmt.Errorf("%w: it was trained over other rows of A than the basis has now", ErrCheckpoint)
		}
		c, err := m.loadCheckpoint(ctx, p, s.Rank*m.d.Model.Geometry.OutTotal())
		if err != nil {
			return err
		}
		o.From = c
		return nil
	}
	if s.Parent == "" {
		return nil
	}
	v, err := m.parent(ctx, s.Tenant, s.Parent)
	if err != nil {
		return err
	}
	if v.Rank != s.Rank || v.Alpha != s.Alpha {
		return fieldErrorf("parent", "is now of rank %d and alpha %g, the job of rank %d and alpha %g", v.Rank, v.Alpha, s.Rank, s.Alpha)
	}
	w, _, err := m.d.Registry.Load(ctx, v, m.d.Model.Geometry)
	if err != nil {
		return fmt.Errorf("loading parent %s@%d: %w", v.Name, v.Number, err)
	}
	if d := w.Scaling / (s.Alpha / float64(s.Rank)); math.Abs(d-1) > 1e-6 { // alpha/√r, say
		for i := range w.Data {
			w.Data[i] *= float32(d)
		}
	}
	o.Start = w
	p.data.Parent = fmt.Sprintf("%s@%d", v.Name, v.Number)
	if v.Name == s.Name {
		p.data.ParentNo = v.Number
	}
	return nil
}

// leastSteps is how many optimizer steps a job should have where nothing says how many: fewer leave B half trained.
const leastSteps = 60

// schedule fills in the options and, in the spec, the defaults that depend on the examples.
func (p *preparation) schedule(basis *adapters.Basis) {
	s, o := &p.spec, &p.options
	if s.BatchTokens == 0 {
		setDefault(&s.BatchSize, 16)
		s.BatchSize = min(s.BatchSize, len(o.Train))
	} else {
		s.BatchTokens = int(min(int64(s.BatchTokens), p.tokens))
	}
	o.Batching = Batching{Examples: s.BatchSize, Tokens: s.BatchTokens, Batches: s.Accumulation}
	steps := s.MaxSteps
	if steps == 0 {
		perEpoch := o.Batching.stepsPerEpoch(o.Train)
		setDefault(&s.Epochs, min(max(math.Ceil(leastSteps/perEpoch), 3), 10))
		steps = max(1, int(math.Ceil(s.Epochs*perEpoch-1e-9)))
	}
	warmup := s.WarmupSteps
	if warmup == 0 && s.WarmupRatio > 0 {
		warmup = int(math.Ceil(s.WarmupRatio * float64(steps)))
	}
	rate := s.LearningRate.Value
	if s.LearningRate.Auto {
		rate = AutoRate(basis, s.Rank, s.Alpha)
	}
	o.Schedule = Schedule{Kind: s.Scheduler, Rate: rate, Warmup: min(warmup, steps-1), Steps: steps}
	if len(o.Held) > 0 {
		setDefault(&s.EvalSteps, max(1, steps/10))
	}
	setDefault(&s.SampleSteps, max(1, steps/8))
	if s.Correction == nil {
		s.Correction = ptr(autoCorrection(basis.Method))
	}
	for _, name := range s.TargetModules {
		proj, _ := adapters.ParseProj(name)
		o.Targets = append(o.Targets, proj)
	}
	o.Seed, o.EvalSteps, o.Correction = s.Seed, s.EvalSteps, *s.Correction
	o.InOrder = s.Shuffle != nil && !*s.Shuffle // jobs of earlier versions say nothing
	o.Beta1, o.Beta2, o.Epsilon, o.Decay, o.Clip = s.AdamBeta1, s.AdamBeta2, s.AdamEpsilon, s.WeightDecay, *s.MaxGradNorm
	o.KeepBest = s.Publish == PublishBest
}

// chooseSamples encodes the prompts to be shown.
func (p *preparation) chooseSamples(held []string, enc Encoder) error {
	list := p.spec.SamplePrompts
	if len(list) == 1 && list[0] == "auto" {
		list = nil
		for _, prompt := range held {
			if prompt != "" && len(list) < 4 {
				list = append(list, prompt)
			}
		}
	}
	for i, text := range list {
		ids := enc.Text(text)
		if !p.spec.Raw {
			var err error
			if ids, err = enc.Prompt(text); err != nil {
				return fieldErrorf(fmt.Sprintf("sample_prompts[%d]", i), "%v", err)
			}
		}
		p.prompts, p.promptIDs = append(p.prompts, text), append(p.promptIDs, ids)
	}
	return nil
}

// summary is what a version keeps of its training.
type summary struct {
	Job        string   `json:"job"`
	Spec       JobSpec  `json:"spec"`
	Parent     string   `json:"parent,omitempty"`
	Progress   Progress `json:"progress"`
	Step       int      `json:"step"`
	Loss       float64  `json:"loss"`
	Correction bool     `json:"correction"`
	Rate       float64  `json:"learning_rate"`
}
