package finetune

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"bhive/adapters"
)

// progress takes note of an optimizer step or an evaluation.
func (m *Manager) progress(ctx context.Context, j *job, r Report, at position, now time.Time) {
	if j.public.State.Final() {
		return
	}
	m.update(j, func(q *Job) {
		p := &q.Progress
		p.Skipped = at.Skipped
		if at.HasBest {
			p.BestLoss, p.BestStep = ptr(at.BestLoss), at.BestStep
		}
		if r.Eval {
			p.ValidationLoss = ptr(finiteOr(r.Loss, math.MaxFloat32))
			return
		}
		p.Step, p.Loss, p.GradNorm, p.LearningRate = r.Step, finiteOr(r.Loss, p.Loss), finiteOr(r.GradNorm, p.GradNorm), r.Rate
		p.Epoch = float64(at.Cursor) / float64(max(1, len(j.options.Train)))
		p.Tokens += r.Tokens
		p.TrainedTokens += r.Trained
		took := max(now.Sub(j.stepped).Seconds(), 1e-6)
		if rate := float64(r.Tokens) / took; p.TokensPerSec == 0 {
			p.TokensPerSec = rate
		} else {
			p.TokensPerSec += 0.2 * (rate - p.TokensPerSec)
		}
		p.SecondsLeft = float64(p.Steps-p.Step) * float64(p.Tokens) / float64(max(1, p.Step)) / p.TokensPerSec
		j.stepped, j.moved = now, true
	})
	j.ending = r.Completed && len(j.spec.SamplePrompts) == 0
	p := j.public.Progress
	switch {
	case r.Err != nil:
		j.lane = nil
		m.fail(ctx, j, r.Err)
	case r.Skipped:
		m.append(j, Event{Type: EventWarning, Level: "warn", Progress: &p, Message: fmt.Sprintf("step %d was skipped: its gradient was not finite", r.Step)})
	case r.Eval:
		j.stepped = now
		m.append(j, Event{Type: EventValidation, Progress: &p, Message: fmt.Sprintf("step %d: validation loss %.4f", r.Step, r.Loss)})
	case now.Sub(j.reported) >= m.progressEvery(j, now) || r.Step == p.Steps:
		j.reported = now
		m.append(j, Event{Type: EventProgress, Time: now.UTC(), Progress: &p, Message: fmt.Sprintf("step %d of %d: loss %.4f", r.Step, p.Steps, p.Loss)})
	}
}

// progressEvery is the least time between two progress events: longer ones the longer the job runs, so that its log has an end.
func (m *Manager) progressEvery(j *job, now time.Time) time.Duration {
	if j.public.Started == nil {
		return m.c.ProgressEvery
	}
	return max(m.c.ProgressEvery, now.Sub(*j.public.Started)/10_000)
}

func ptr[T any](v T) *T { return &v }

// complete publishes what a job ends with, while that comes from the device. The version, the job's state and its last events become durable in one.
func (m *Manager) complete(ctx context.Context, j *job, c completion) {
	if j.public.State.Final() || j.stop != nil { // a job that is being paused publishes when it is resumed
		return
	}
	j.lane, j.finishing = nil, true
	p := j.public.Progress
	loss := p.Loss
	if c.loss != nil {
		loss = *c.loss
	}
	training, err := json.Marshal(summary{Job: j.public.ID, Spec: j.spec, Parent: j.data.Parent, Progress: p, Step: c.step, Loss: loss,
		Correction: j.options.Correction, Rate: j.options.Schedule.Rate})
	if err != nil {
		m.fail(ctx, j, fmt.Errorf("summing up the training: %w", err))
		return
	}
	basis := m.d.Model.Basis
	v := adapters.Version{Name: j.spec.Name, BasisDigest: basis.RowsDigest(j.spec.Rank), BaseHash: basis.BaseHash, Parent: j.data.ParentNo, Training: training}
	now := time.Now().UTC()
	public := j.public // nobody sees the end before it is durable
	public.State, public.Finished, public.Progress.SecondsLeft = Succeeded, &now, 0
	public.Result = &Result{Adapter: v.Name, Step: c.step, Loss: loss}
	rec := j.record(public, m.c.Worker)
	_, err = m.d.Registry.SaveEncoding(ctx, j.public.Tenant, v, c.b, adapters.PublishOptions{CheckLive: !j.continues(), Job: &rec, Events: append(j.pending,
		j.event(Event{Type: EventPublished, Result: public.Result, Message: v.Name + " is published and live"}),
		j.event(Event{Type: EventState, State: Succeeded, Result: public.Result, Message: "succeeded"}))})
	if err != nil {
		if errors.Is(err, errStopped) {
			m.log.Error("the engine did not stop training in time; the job will go on from an older checkpoint", "job", j.public.ID)
			return
		}
		if errors.Is(err, adapters.ErrStoreUnavailable) {
			m.retry(ctx, j, "publishing", err, func() { m.complete(ctx, j, c) })
			return
		}
		if j.continues() || !errors.Is(err, adapters.ErrExists) && !errors.Is(err, adapters.ErrConflict) {
			err = fmt.Errorf("publishing %s: %w", j.spec.Name, err)
		}
		m.fail(ctx, j, err)
		return
	}
	m.retire(j, public)
}
