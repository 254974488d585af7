package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"bhive/finetune"
	"bhive/server/api"
)

// unfinished are the states of jobs that have not ended.
var unfinished = []string{string(finetune.Queued), string(finetune.ValidatingFiles), string(finetune.Running), string(finetune.Paused)}

// shownJob is a job as the API gives it.
func shownJob(ctx context.Context, j finetune.Job) api.Job {
	seconds := func(t *time.Time) *int {
		if t == nil {
			return nil
		}
		n := int(t.Unix())
		return &n
	}
	number := func(v float64) *float32 { f := float32(v); return &f }
	p := j.Progress
	out := api.Job{Id: shownID(ctx, j.Tenant, j.ID), State: api.JobState(j.State), Created: int(j.Created.Unix()), Started: seconds(j.Started), Finished: seconds(j.Finished),
		Step: &p.Step, Steps: &p.Steps, Epoch: number(p.Epoch)}
	if p.Step > 0 {
		out.Loss, out.LearningRate, out.TokensPerSecond, out.SecondsLeft = number(p.Loss), number(p.LearningRate), number(p.TokensPerSec), number(p.SecondsLeft)
	}
	if p.ValidationLoss != nil {
		out.ValidationLoss = number(*p.ValidationLoss)
	}
	if j.Result != nil {
		out.Version = &j.Result.Version
	}
	if j.MemoryPlan != "" {
		plan := api.MemoryPlan(j.MemoryPlan)
		out.MemoryPlan = &plan
	}
	if j.Error != nil {
		out.Error = &j.Error.Message
	}
	spec := j.Spec
	spec.Examples = nil
	var config map[string]any
	if json.Unmarshal(mustJSON(spec), &config) == nil {
		out.Config = &config
	}
	return out
}

// inMemory reports whether a body of that type with examples is read as a whole.
func inMemory(mediaType string) bool {
	return mediaType == "application/json" || mediaType == "application/x-www-form-urlencoded"
}

// jobSpec reads a job from a JSON body, or from query parameters and a JSONL body.
func (s *Server) jobSpec(w http.ResponseWriter, r *http.Request) (finetune.JobSpec, error) {
	switch t := mediaType(r); {
	case inMemory(t):
		b, err := readBody(w, r, s.config.MaxTrainingBytes)
		if err != nil {
			return finetune.JobSpec{}, err
		}
		var object map[string]json.RawMessage // places syntax errors by line
		if err := unmarshal(b, &object); err != nil {
			return finetune.JobSpec{}, err
		}
		return finetune.ParseSpec(bytes.NewReader(b))
	case slices.Contains([]string{"application/x-ndjson", "application/jsonl", "application/ndjson", "text/plain", "application/octet-stream"}, t):
		fields := map[string]json.RawMessage{}
		for name, values := range r.URL.Query() {
			if name == tenantParam {
				continue
			}
			raw := json.RawMessage(values[0])
			if name == "name" || !json.Valid(raw) {
				raw = quote(values[0])
			}
			fields[name] = raw
		}
		spec, err := finetune.ParseSpec(bytes.NewReader(mustJSON(fields)))
		spec.Training, _ = limitBody(w, r, s.config.MaxTrainingBytes) // whose time limit ends with the request
		return spec, err
	default:
		return finetune.JobSpec{}, &apiError{Status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "unsupported_media_type",
			Message: fmt.Sprintf("the body must be application/json or application/x-ndjson, not %s", t)}
	}
}

func (s *Server) submitJob(w http.ResponseWriter, r *http.Request, spec finetune.JobSpec) error {
	if _, err := s.submitSpec(r.Context(), spec); err != nil {
		return err
	}
	a, err := s.known(r.Context(), spec.Name)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/adapters/"+url.PathEscape(a.Name))
	writeJSON(w, http.StatusAccepted, a)
	return nil
}

func (s *Server) createAdapter(w http.ResponseWriter, r *http.Request) error {
	spec, err := s.jobSpec(w, r)
	if err != nil {
		return err
	}
	return s.submitJob(w, r, spec)
}

// addExamples goes on from the live version.
func (s *Server) addExamples(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	if _, err := s.d.Store.Get(r.Context(), tenant(r.Context()), name, 0); err != nil {
		return versionError(err, name)
	}
	spec, err := s.jobSpec(w, r)
	if err != nil {
		return err
	}
	if spec.Name != "" && spec.Name != name {
		return badField("name", "name: the path says %q", name)
	}
	if spec.Parent != "" && spec.Parent != name {
		return badField("parent", "parent: the job goes on from the live version of %q", name)
	}
	spec.Name, spec.Parent = name, name
	return s.submitJob(w, r, spec)
}

func (s *Server) listJobs(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	jobs, _, err := s.d.Jobs.List(r.Context(), tenant(r.Context()), finetune.ListOptions{Adapter: name, Limit: 100})
	if err != nil {
		return err
	}
	if len(jobs) == 0 {
		if _, err := s.d.Store.Get(r.Context(), tenant(r.Context()), name, 0); err != nil {
			return versionError(err, name)
		}
	}
	list := api.JobList{Object: api.JobListObjectList, Data: []api.Job{}}
	for _, j := range jobs {
		list.Data = append(list.Data, shownJob(r.Context(), j))
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

// latestJob is the adapter's newest job.
func (s *Server) latestJob(r *http.Request) (finetune.Job, error) {
	name, err := adapterName(r)
	if err != nil {
		return finetune.Job{}, err
	}
	jobs, _, err := s.d.Jobs.List(r.Context(), tenant(r.Context()), finetune.ListOptions{Adapter: name, Limit: 1})
	if err != nil {
		return finetune.Job{}, err
	}
	if len(jobs) == 0 {
		return finetune.Job{}, &apiError{Status: http.StatusNotFound, Type: "not_found_error", Param: "name", Code: "job_not_found", Message: fmt.Sprintf("there is no job for an adapter %q", name)}
	}
	return jobs[0], nil
}

// jobAction applies pause, resume or cancel to the adapter's latest job.
func (s *Server) jobAction(act func(context.Context, string, string) (finetune.Job, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		job, err := s.latestJob(r)
		if err != nil {
			return err
		}
		if _, err := act(r.Context(), tenant(r.Context()), job.ID); err != nil {
			return err
		}
		a, err := s.known(r.Context(), job.Spec.Name)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, a)
		return nil
	}
}

// heartbeat is how often an idle event stream says that it lives.
const heartbeat = 15 * time.Second

// streamEvents sends the latest job's events until it has ended, or the server drains: a job can be longer than that may take, and who follows it
// asks again for what comes after.
func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request) error {
	after := int64(0)
	for _, from := range []struct{ name, value string }{{"after", r.URL.Query().Get("after")}, {"Last-Event-ID", r.Header.Get("Last-Event-ID")}} {
		if from.value == "" {
			continue
		}
		n, err := strconv.ParseInt(from.value, 10, 64)
		if err != nil || n < 0 {
			return badField(from.name, "%s: must be an event's number, is %q", from.name, from.value)
		}
		after = n
	}
	if s.draining.Load() {
		return errDraining
	}
	job, err := s.latestJob(r)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	type item struct {
		event finetune.Event
		err   error
	}
	items := make(chan item)
	go func() {
		defer close(items)
		for ev, err := range s.d.Jobs.Events(ctx, tenant(ctx), job.ID, after) {
			select {
			case items <- item{ev, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	e := newEventStream(w)
	defer e.close()
	e.comment("events of " + job.ID)
	if err := e.flush(); err != nil {
		return nil // the client is gone
	}
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case it, open := <-items:
			if !open {
				return nil
			}
			if it.err != nil {
				s.failStream(e, r, it.err)
				return nil
			}
			e.event(it.event.Seq, string(it.event.Type), mustJSON(map[string]any{"id": it.event.Seq, "type": it.event.Type, "created": it.event.Time.Unix(), "data": it.event}))
		case <-tick.C:
			e.comment("")
		case <-s.drained:
			return nil
		}
		if err := e.flush(); err != nil {
			return nil // the client is gone
		}
	}
}
