package finetune

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
)

// LearningRate is a number, or "auto": [AutoRate] chooses.
type LearningRate struct {
	Auto  bool
	Value float64
}

// MarshalJSON writes "auto" or the number.
func (r LearningRate) MarshalJSON() ([]byte, error) {
	if r.Auto || r.Value == 0 {
		return []byte(`"auto"`), nil
	}
	return json.Marshal(r.Value)
}

// UnmarshalJSON accepts "auto", a number or null.
func (r *LearningRate) UnmarshalJSON(b []byte) error {
	switch b = bytes.TrimSpace(b); {
	case bytes.Equal(b, []byte("null")), bytes.Equal(b, []byte(`"auto"`)):
		*r = LearningRate{Auto: true}
		return nil
	default:
		*r = LearningRate{}
		if err := json.Unmarshal(b, &r.Value); err != nil {
			return fieldErrorf("learning_rate", `want a number or "auto", not %.40s`, b)
		}
		return nil
	}
}

// Schedules of the learning rate after its warm-up.
const (
	ScheduleConstant = "constant"
	ScheduleLinear   = "linear" // to 0 at the last step
	ScheduleCosine   = "cosine" // to 0 at the last step
)

// What a finished job publishes.
const (
	PublishLast = "last"
	PublishBest = "best" // the evaluation with the lowest loss; needs validation
)

// JobSpec says what to train. Its JSON names are those that users of OpenAI's fine-tuning and of PEFT expect; zero values
// mean the default that Validate writes in.
type JobSpec struct {
	Tenant string `json:"-"`    // owner; the server sets it
	Name   string `json:"name"` // adapter to publish
	// Parent is the version to go on training from: "name" (its live version) or "name@7". Empty: B starts at zero and Name
	// must not exist. Where it is Name itself, the job publishes Name's next version.
	Parent string `json:"parent,omitempty"`

	// The examples: one of Examples (inline, each a JSON object) and Training (JSONL).
	Examples   []json.RawMessage `json:"examples,omitempty"`
	Training   io.Reader         `json:"-"`
	Validation io.Reader         `json:"-"` // JSONL, optional
	// Deferred leaves reading the examples to the state validating_files, as OpenAI's jobs do; otherwise Submit returns their errors.
	Deferred bool `json:"-"`

	// TrainingFile and ValidationFile are the ids of the uploaded files that Training and Validation were read from; the server opens them.
	TrainingFile   string            `json:"training_file,omitempty"`
	ValidationFile string            `json:"validation_file,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"` // the client's own notes: at most 16, keys of at most 64 and values of at most 512 bytes

	Rank  int     `json:"rank,omitempty"`  // default: 16, or the parent's; at most the basis's R
	Alpha float64 `json:"alpha,omitempty"` // default: 2·rank, or the parent's
	// TargetModules restricts training to these projections (q_proj … down_proj); the others stay as the parent has them. Default: all.
	TargetModules []string `json:"target_modules,omitempty"`

	LearningRate LearningRate `json:"learning_rate"` // default: auto
	Scheduler    string       `json:"lr_scheduler_type,omitempty"`
	WarmupSteps  int          `json:"warmup_steps,omitempty"`
	WarmupRatio  float64      `json:"warmup_ratio,omitempty"` // share of all steps; with WarmupSteps 0. Default: none
	Epochs       float64      `json:"epochs,omitempty"`       // default: 3, or up to 10 where so few examples would make fewer than 60 steps; not with MaxSteps
	MaxSteps     int          `json:"max_steps,omitempty"`    // optimizer steps; default: as Epochs says

	BatchSize    int `json:"batch_size,omitempty"`                  // examples of an optimizer step; default: 16, or fewer where examples are few
	BatchTokens  int `json:"batch_tokens,omitempty"`                // instead of BatchSize: tokens of an optimizer step, in whole examples; fewer where there are fewer in all
	Accumulation int `json:"gradient_accumulation_steps,omitempty"` // so many of these batches make one optimizer step; default: 1

	WeightDecay float64  `json:"weight_decay,omitempty"`  // decoupled; default: 0
	MaxGradNorm *float64 `json:"max_grad_norm,omitempty"` // default: 1; 0: no clipping
	AdamBeta1   float64  `json:"adam_beta1,omitempty"`    // default: 0.9
	AdamBeta2   float64  `json:"adam_beta2,omitempty"`    // default: 0.999
	AdamEpsilon float64  `json:"adam_epsilon,omitempty"`  // default: 1e-6
	Correction  *bool    `json:"correction,omitempty"`    // of the gradient by (A·Aᵀ)⁻¹/s²; default: by the basis's method
	Seed        int64    `json:"seed,omitempty"`          // order of the examples and the validation split
	Shuffle     *bool    `json:"shuffle,omitempty"`       // default: true; false: each epoch takes the examples in their own order

	ValidationSplit float64 `json:"validation_split,omitempty"` // share of the examples held out; not with Validation
	EvalSteps       int     `json:"eval_steps,omitempty"`       // optimizer steps between evaluations; default: a tenth of all
	Publish         string  `json:"publish,omitempty"`          // last or best; default: best with validation, else last

	MaxLength int  `json:"max_length,omitempty"` // tokens of an example; default and at most: the model's context and the trainer's batch
	Truncate  bool `json:"truncate,omitempty"`   // cut longer examples at their end; otherwise they are errors
	Raw       bool `json:"raw,omitempty"`        // prompt and completion as they stand, not as turns of the chat template

	// SamplePrompts asks for events of type sample: greedy continuations by the base and by the candidate. They are user turns, or
	// with Raw plain text. The one prompt "auto" takes up to four held-out, else first, examples.
	SamplePrompts []string `json:"sample_prompts,omitempty"`
	SampleSteps   int      `json:"sample_steps,omitempty"`  // optimizer steps between samples; default: an eighth of all
	SampleTokens  int      `json:"sample_tokens,omitempty"` // most tokens of a sample; default: 48
}

const (
	maxSamplePrompts = 16
	maxPromptBytes   = 64 << 10
	maxStepExamples  = 1 << 16
	maxStepTokens    = 10_000_000
)

// Projections that target_modules may name.
var projections = []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

// ParseSpec reads a JobSpec from JSON. Unknown fields and wrong types are *FieldErrors.
func ParseSpec(r io.Reader) (JobSpec, error) {
	var spec JobSpec
	spec.LearningRate.Auto = true
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&spec); err != nil {
		return JobSpec{}, specError(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return JobSpec{}, fieldErrorf("body", "there is something after the object")
	}
	return spec, nil
}

// Validate writes the defaults that need no model into the spec and checks every field; an error is a *FieldError.
func (s *JobSpec) Validate() error {
	finite := func(field string, v, low, high float64) error {
		if math.IsNaN(v) || v < low || v > high {
			return fieldErrorf(field, "must be between %g and %g, is %g", low, high, v)
		}
		return nil
	}
	count := func(field string, v, high int) error {
		if v < 0 || v > high {
			return fieldErrorf(field, "must be between 0 and %d, is %d", high, v)
		}
		return nil
	}
	if s.Name == "" {
		return fieldErrorf("name", "must not be empty")
	}
	if s.LearningRate.Value == 0 {
		s.LearningRate.Auto = true
	}
	if s.Scheduler == "" {
		s.Scheduler = ScheduleCosine
	}
	validated := s.Validation != nil || s.ValidationSplit > 0
	if s.Publish == "" {
		s.Publish = PublishLast
		if validated {
			s.Publish = PublishBest
		}
	}
	if s.MaxGradNorm == nil {
		s.MaxGradNorm = ptr(1.0)
	}
	if s.Shuffle == nil {
		s.Shuffle = ptr(true)
	}
	setDefault(&s.Accumulation, 1)
	setDefault(&s.AdamBeta1, 0.9)
	setDefault(&s.AdamBeta2, 0.999)
	setDefault(&s.AdamEpsilon, 1e-6)
	setDefault(&s.SampleTokens, 48)
	const million = 1_000_000
	for _, err := range []error{
		count("rank", s.Rank, 4096), finite("alpha", s.Alpha, 0, 1e4), count("max_steps", s.MaxSteps, million), finite("epochs", s.Epochs, 0, 1000),
		count("batch_size", s.BatchSize, 4096), count("batch_tokens", s.BatchTokens, million), count("gradient_accumulation_steps", s.Accumulation, 4096),
		count("warmup_steps", s.WarmupSteps, million), finite("warmup_ratio", s.WarmupRatio, 0, 1), finite("weight_decay", s.WeightDecay, 0, 10),
		finite("max_grad_norm", *s.MaxGradNorm, 0, 1e9), finite("adam_beta1", s.AdamBeta1, 0, 0.99999), finite("adam_beta2", s.AdamBeta2, 0, 0.99999999),
		finite("adam_epsilon", s.AdamEpsilon, 1e-20, 1), finite("validation_split", s.ValidationSplit, 0, 0.99), count("eval_steps", s.EvalSteps, million),
		count("max_length", s.MaxLength, million), count("sample_steps", s.SampleSteps, million), count("sample_tokens", s.SampleTokens, 512),
	} {
		if err != nil {
			return err
		}
	}
	if !s.LearningRate.Auto {
		if err := finite("learning_rate", s.LearningRate.Value, 1e-9, 10); err != nil {
			return err
		}
	}
	if !slices.Contains([]string{ScheduleConstant, ScheduleLinear, ScheduleCosine}, s.Scheduler) {
		return fieldErrorf("lr_scheduler_type", "must be constant, linear or cosine, is %q", s.Scheduler)
	}
	if s.Publish != PublishLast && s.Publish != PublishBest {
		return fieldErrorf("publish", "must be last or best, is %q", s.Publish)
	}
	if s.MaxSteps > 0 && s.Epochs > 0 {
		return fieldErrorf("max_steps", "must not be given together with epochs")
	}
	if s.BatchSize > 0 && s.BatchTokens > 0 {
		return fieldErrorf("batch_tokens", "must not be given together with batch_size")
	}
	// A step's examples are listed before it.
	if n := max(s.BatchSize, 1) * s.Accumulation; n > maxStepExamples {
		return fieldErrorf("gradient_accumulation_steps", "an optimizer step must have at most %d examples, has %d", maxStepExamples, n)
	}
	if n := s.BatchTokens * s.Accumulation; n > maxStepTokens {
		return fieldErrorf("gradient_accumulation_steps", "an optimizer step must have at most %d tokens, has %d", maxStepTokens, n)
	}
	if s.WarmupSteps > 0 && s.WarmupRatio > 0 {
		return fieldErrorf("warmup_ratio", "must not be given together with warmup_steps")
	}
	if len(s.TargetModules) > len(projections) {
		return fieldErrorf("target_modules", "at most %d, not %d", len(projections), len(s.TargetModules))
	}
	for i, p := range s.TargetModules {
		if !slices.Contains(projections, p) {
			return fieldErrorf(fmt.Sprintf("target_modules[%d]", i), "must be one of %v, is %q", projections, p)
		}
	}
	if len(s.Examples) > 0 && s.Training != nil {
		return fieldErrorf("examples", "must not be given together with a training file")
	}
	if s.Validation != nil && s.ValidationSplit > 0 {
		return fieldErrorf("validation_split", "must not be given together with a validation file")
	}
	if s.Publish == PublishBest && !validated {
		return fieldErrorf("publish", "best needs a validation file or validation_split")
	}
	if len(s.Metadata) > 16 {
		return fieldErrorf("metadata", "at most 16 entries, not %d", len(s.Metadata))
	}
	for k, v := range s.Metadata {
		if len(k) > 64 || len(v) > 512 {
			return fieldErrorf("metadata", "keys have at most 64 bytes and values at most 512; %q does not fit", firstRunes(k, 64))
		}
	}
	if len(s.SamplePrompts) > maxSamplePrompts {
		return fieldErrorf("sample_prompts", "at most %d prompts, not %d", maxSamplePrompts, len(s.SamplePrompts))
	}
	for i, p := range s.SamplePrompts { // which are kept with the job's record
		if len(p) > maxPromptBytes {
			return fieldErrorf(fmt.Sprintf("sample_prompts[%d]", i), "must have at most %d bytes, has %d", maxPromptBytes, len(p))
		}
	}
	return nil
}

func setDefault[T comparable](at *T, v T) {
	var zero T
	if *at == zero {
		*at = v
	}
}

// specError names the field of a decoding error.
func specError(err error) error {
	switch e := err.(type) {
	case *json.UnmarshalTypeError:
		field := e.Field
		if field == "" {
			field = "body"
		}
		return fieldErrorf(field, "must be %s, is a %s", jsonKind(e.Type.Kind().String()), e.Value)
	case *FieldError:
		return e
	}
	var name string
	if n, _ := fmt.Sscanf(err.Error(), "json: unknown field %q", &name); n == 1 && name != "" {
		return fieldErrorf(name, "is not a field of a job")
	}
	return fieldErrorf("body", "%v", err)
}

func jsonKind(kind string) string {
	switch kind {
	case "int", "int64":
		return "an integer"
	case "float64":
		return "a number"
	case "string":
		return "a string"
	case "bool":
		return "true or false"
	case "slice":
		return "an array"
	default:
		return "an object"
	}
}
