package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"bhive/finetune"
)

// tuningList is a page.
type tuningList struct {
	Object  string `json:"object"`
	Data    any    `json:"data"`
	HasMore bool   `json:"has_more"`
}

// tuningJob is OpenAI's fine_tuning.job.
type tuningJob struct {
	ID              string            `json:"id"`
	Object          string            `json:"object"`
	CreatedAt       int64             `json:"created_at"`
	FinishedAt      *int64            `json:"finished_at"`
	EstimatedFinish *int64            `json:"estimated_finish"`
	Error           *tuningError      `json:"error"`
	FineTunedModel  *string           `json:"fine_tuned_model"`
	Hyperparameters hyperparameters   `json:"hyperparameters"`
	Method          tuningMethod      `json:"method"`
	Model           string            `json:"model"`
	OrganizationID  string            `json:"organization_id"`
	ResultFiles     []string          `json:"result_files"`
	Seed            int64             `json:"seed"`
	Status          finetune.State    `json:"status"`
	Suffix          string            `json:"suffix"`
	TrainedTokens   *int64            `json:"trained_tokens"`
	TrainingFile    string            `json:"training_file"`
	ValidationFile  *string           `json:"validation_file"`
	Integrations    []string          `json:"integrations"`
	Metadata        map[string]string `json:"metadata"`
	MemoryPlan      string            `json:"memory_plan,omitempty"`
}

type tuningError struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"`
}

// hyperparameters are a number each, or "auto".
type hyperparameters struct {
	Epochs     any `json:"n_epochs"`
	BatchSize  any `json:"batch_size"`
	Multiplier any `json:"learning_rate_multiplier"`
}

type tuningMethod struct {
	Type       string `json:"type"`
	Supervised struct {
		Hyperparameters hyperparameters `json:"hyperparameters"`
	} `json:"supervised"`
}

func unix(t time.Time) *int64 { n := t.Unix(); return &n }

func (s *Server) shownTuning(ctx context.Context, j finetune.Job) tuningJob {
	spec := j.Spec
	for _, id := range []*string{&spec.Parent, &spec.TrainingFile, &spec.ValidationFile} {
		if *id != "" && !strings.Contains(*id, "/") {
			*id = shownID(ctx, j.Tenant, *id)
		}
	}
	out := tuningJob{ID: shownID(ctx, j.Tenant, j.ID), Object: "fine_tuning.job", CreatedAt: j.Created.Unix(), Model: spec.Parent, OrganizationID: j.Tenant, ResultFiles: []string{}, Seed: spec.Seed,
		Status: j.State, Suffix: spec.Name, TrainingFile: spec.TrainingFile, Integrations: []string{}, Metadata: spec.Metadata,
		MemoryPlan: j.MemoryPlan}
	if out.Model == "" {
		out.Model = s.d.Model.Name
	}
	if out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	if spec.ValidationFile != "" {
		out.ValidationFile = &spec.ValidationFile
	}
	if j.Finished != nil {
		out.FinishedAt = unix(*j.Finished)
	}
	if p := j.Progress; j.State == finetune.Running && p.SecondsLeft > 0 {
		out.EstimatedFinish = unix(time.Now().Add(time.Duration(p.SecondsLeft * float64(time.Second))))
	}
	if j.State.Final() {
		out.TrainedTokens = &j.Progress.TrainedTokens
	}
	if j.Result != nil {
		model := shownID(ctx, j.Tenant, j.Result.Adapter)
		out.FineTunedModel = &model
	}
	if e := j.Error; e != nil {
		out.Error = &tuningError{Code: e.Code, Message: e.Message}
		if e.Param != "" {
			out.Error.Param = &e.Param
		}
	}
	h := hyperparameters{"auto", "auto", "auto"}
	if spec.Epochs > 0 {
		h.Epochs = spec.Epochs
	}
	if spec.BatchSize > 0 {
		h.BatchSize = spec.BatchSize
	}
	if auto := finetune.AutoRate(s.d.Basis, spec.Rank, spec.Alpha); !spec.LearningRate.Auto && auto > 0 {
		h.Multiplier = spec.LearningRate.Value / auto
	}
	out.Hyperparameters, out.Method.Type = h, "supervised"
	out.Method.Supervised.Hyperparameters = h
	return out
}

// tuningEvent is OpenAI's fine_tuning.job.event.
type tuningEvent struct {
	ID        string         `json:"id"`
	Object    string         `json:"object"`
	CreatedAt int64          `json:"created_at"`
	Level     string         `json:"level"`
	Message   string         `json:"message"`
	Type      string         `json:"type"`
	Data      map[string]any `json:"data"`
}

func shownTuningEvent(job string, e finetune.Event) tuningEvent {
	out := tuningEvent{ID: eventID(job, e.Seq), Object: "fine_tuning.job.event", CreatedAt: e.Time.Unix(), Level: e.Level, Message: e.Message, Type: "message", Data: map[string]any{}}
	if p := e.Progress; p != nil {
		out.Type = "metrics"
		out.Data = map[string]any{"step": p.Step, "total_steps": p.Steps, "train_loss": p.Loss, "learning_rate": p.LearningRate, "tokens_per_second": p.TokensPerSec}
		if p.ValidationLoss != nil {
			out.Data["valid_loss"] = *p.ValidationLoss
		}
	}
	if v := e.Sample; v != nil {
		out.Data = map[string]any{"step": v.Step, "prompt": v.Prompt, "base": v.Base, "candidate": v.Candidate}
	}
	if v := e.Result; v != nil {
		out.Data = map[string]any{"fine_tuned_model": v.Adapter, "version": v.Version}
	}
	return out
}

// tuningCheckpoint is OpenAI's fine_tuning.job.checkpoint.
type tuningCheckpoint struct {
	ID        string         `json:"id"`
	Object    string         `json:"object"`
	CreatedAt int64          `json:"created_at"`
	Model     string         `json:"fine_tuned_model_checkpoint"`
	Job       string         `json:"fine_tuning_job_id"`
	Metrics   map[string]any `json:"metrics"`
	Step      int            `json:"step_number"`
}

func shownCheckpoint(ctx context.Context, j finetune.Job) tuningCheckpoint {
	v := j.Result
	out := tuningCheckpoint{ID: "ftckpt-" + strings.TrimPrefix(j.ID, "ftjob-"), Object: "fine_tuning.job.checkpoint", Model: fmt.Sprintf("%s@%d", shownID(ctx, j.Tenant, v.Adapter), v.Version),
		Job: shownID(ctx, j.Tenant, j.ID), Step: v.Step, Metrics: map[string]any{"step": v.Step}}
	if j.Finished != nil {
		out.CreatedAt = j.Finished.Unix()
	}
	if j.Progress.BestLoss != nil || j.Progress.ValidationLoss != nil {
		out.Metrics["valid_loss"] = v.Loss
	} else {
		out.Metrics["train_loss"] = v.Loss
	}
	return out
}
