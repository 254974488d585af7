package finetune

import "time"

// State of a job.
type State string

const (
	Queued          State = "queued"
	ValidatingFiles State = "validating_files"
	Running         State = "running"
	Paused          State = "paused"
	Succeeded       State = "succeeded"
	Failed          State = "failed"
	Cancelled       State = "cancelled"
)

// Final reports whether a job in this state never changes again.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Job is a job as it stands. Its Spec has the defaults filled in and no examples.
type Job struct {
	ID       string     `json:"id"` // ftjob-…
	Tenant   string     `json:"tenant"`
	Spec     JobSpec    `json:"spec"`
	State    State      `json:"status"`
	Created  time.Time  `json:"created_at"`
	Started  *time.Time `json:"started_at,omitempty"`
	Finished *time.Time `json:"finished_at,omitempty"`
	Progress Progress   `json:"progress"`
	// MemoryPlan is what its passes recompute in their backward, as TrainerConfig has it; "" before it runs.
	MemoryPlan string    `json:"memory_plan,omitempty"`
	Result     *Result   `json:"result,omitempty"` // where succeeded
	Error      *JobError `json:"error,omitempty"`  // where failed
}

// Progress of a job. Losses are means over trained tokens, in nats.
type Progress struct {
	Examples       int      `json:"examples"`           // trained on
	HeldOut        int      `json:"held_out,omitempty"` // validated on
	ExampleTokens  int64    `json:"example_tokens"`     // tokens of one epoch
	Step           int      `json:"step"`               // optimizer steps done
	Steps          int      `json:"steps"`              // of so many
	Epoch          float64  `json:"epoch"`              // epochs done
	Loss           float64  `json:"loss"`               // of the last step
	LearningRate   float64  `json:"learning_rate"`      // of the last step
	GradNorm       float64  `json:"grad_norm"`          // of the last step, before clipping
	ValidationLoss *float64 `json:"validation_loss,omitempty"`
	BestLoss       *float64 `json:"best_validation_loss,omitempty"`
	BestStep       int      `json:"best_step,omitempty"`
	Skipped        int      `json:"skipped_steps,omitempty"` // for a gradient that was not finite
	Tokens         int64    `json:"tokens"`                  // gone through, by this job
	TrainedTokens  int64    `json:"trained_tokens"`          // of these, with a label
	TokensPerSec   float64  `json:"tokens_per_second"`       // lately
	SecondsLeft    float64  `json:"seconds_left"`
}

// Result is what a job published.
type Result struct {
	Adapter string `json:"adapter"` // name
	Version int    `json:"version"`
	Step    int    `json:"step"` // the optimizer step whose B it is
	// Loss is the validation loss at that step, or the mean of the last steps' training losses.
	Loss float64 `json:"loss"`
}

// JobError says why a job failed.
type JobError struct {
	Code    string      `json:"code"`            // invalid_training_file, diverged, already_exists, internal
	Param   string      `json:"param,omitempty"` // training_file, validation_file, a field of the spec
	Message string      `json:"message"`
	Lines   []LineError `json:"lines,omitempty"`
}

// EventType is the kind of an event.
type EventType string

const (
	EventState      EventType = "state"      // the job's state changed
	EventProgress   EventType = "progress"   // an optimizer step (some are left out where steps are fast)
	EventValidation EventType = "validation" // a validation loss
	EventSample     EventType = "sample"     // texts by the base and the candidate
	EventCheckpoint EventType = "checkpoint" // durable
	EventWarning    EventType = "warning"    // a skipped step, truncated examples
	EventPublished  EventType = "published"  // a version, now live
	EventError      EventType = "error"      // why the job failed
)

// Event is one entry of a job's log.
type Event struct {
	Seq      int64     `json:"seq"` // from 1, without gaps, also over restarts
	Time     time.Time `json:"created_at,omitzero"`
	Type     EventType `json:"type"`
	Level    string    `json:"level"` // info, warn, error
	Message  string    `json:"message"`
	State    State     `json:"status,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
	Sample   *Sample   `json:"sample,omitempty"`
	Result   *Result   `json:"result,omitempty"`
	Error    *JobError `json:"error,omitempty"`
}

// Sample is a prompt's greedy continuation by the base and by the candidate at a step.
type Sample struct {
	Step      int    `json:"step"`
	Index     int    `json:"index"` // of the prompt
	Prompt    string `json:"prompt"`
	Base      string `json:"base"`
	Candidate string `json:"candidate"`
}
