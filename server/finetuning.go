package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"bhive/adapters"
	"bhive/finetune"

	"github.com/go-chi/chi/v5"
)

// fineTuningRequest is the body of POST /v1/fine_tuning/jobs.
type fineTuningRequest struct {
	Model           string                     `json:"model"`
	TrainingFile    string                     `json:"training_file"`
	ValidationFile  string                     `json:"validation_file"`
	Suffix          string                     `json:"suffix"`
	Seed            *int64                     `json:"seed"`
	Hyperparameters map[string]json.RawMessage `json:"hyperparameters"`
	Method          *struct {
		Type       string `json:"type"`
		Supervised struct {
			Hyperparameters map[string]json.RawMessage `json:"hyperparameters"`
		} `json:"supervised"`
	} `json:"method"`
	Integrations json.RawMessage   `json:"integrations"`
	Metadata     map[string]string `json:"metadata"`
}

// hyperparameters are OpenAI's three, and all of the native fields.
func (q *fineTuningRequest) hyperparameters() (fields map[string]json.RawMessage, path string) {
	fields, path = map[string]json.RawMessage{}, "hyperparameters."
	for k, v := range q.Hyperparameters {
		fields[k] = v
	}
	if q.Method != nil && len(q.Method.Supervised.Hyperparameters) > 0 {
		path = "method.supervised.hyperparameters."
		for k, v := range q.Method.Supervised.Hyperparameters {
			fields[k] = v
		}
	}
	return fields, path
}

// spec is the job that a request means.
func (s *Server) fineTuningSpec(ctx context.Context, q *fineTuningRequest) (finetune.JobSpec, error) {
	if q.TrainingFile == "" {
		return finetune.JobSpec{}, badField("training_file", "training_file: is missing")
	}
	if q.Method != nil && q.Method.Type != "supervised" {
		return finetune.JobSpec{}, badField("method.type", "method.type: only supervised is supported, not %q", q.Method.Type)
	}
	if asks(q.Integrations) {
		return finetune.JobSpec{}, badField("integrations", "integrations: not supported by this server")
	}
	fields, path := q.hyperparameters()
	var multiplier float64
	for name, raw := range fields {
		auto := string(raw) == `"auto"` || string(raw) == "null"
		var number float64
		if (name == "n_epochs" || name == "batch_size") && !auto && json.Unmarshal(raw, &number) == nil && number <= 0 { // 0 would be the default
			return finetune.JobSpec{}, badField(path+name, "%s%s: must be above 0, or auto", path, name)
		}
		switch name {
		case "name", "parent", "examples", "training_file", "validation_file", "metadata", "epochs":
			return finetune.JobSpec{}, badField(path+name, "%s%s: is not a hyperparameter", path, name)
		case "n_epochs":
			delete(fields, name)
			if !auto {
				fields["epochs"] = raw
			}
		case "batch_size":
			if auto {
				delete(fields, name)
			}
		case "learning_rate_multiplier":
			delete(fields, name)
			if !auto && (json.Unmarshal(raw, &multiplier) != nil || multiplier <= 0) {
				return finetune.JobSpec{}, badField(path+name, "%s%s: must be a number above 0, or auto", path, name)
			}
		}
	}
	spec, err := finetune.ParseSpec(bytes.NewReader(mustJSON(fields)))
	if err != nil {
		return spec, q.rename(err)
	}
	spec.Name, spec.Metadata, spec.Deferred = q.Suffix, q.Metadata, true
	spec.TrainingFile, spec.ValidationFile = q.TrainingFile, q.ValidationFile
	if q.Seed != nil {
		spec.Seed = *q.Seed
	}
	if q.Model != "" && q.Model != s.d.Model.Name {
		spec.Parent = q.Model
		if spec.Name == "" { // the next version of the model itself
			ref, err := adapters.ParseRef(q.Model)
			if err != nil || len(ref.Parts) > 1 {
				return spec, modelNotFound(q.Model)
			}
			spec.Name = ref.Parts[0].Name
		}
	}
	if spec.Name == "" {
		b := make([]byte, 6)
		if _, err := rand.Read(b); err != nil {
			return spec, fmt.Errorf("naming a model: %w", err)
		}
		spec.Name = "ft-" + hex.EncodeToString(b)
	}
	if multiplier > 0 {
		if !spec.LearningRate.Auto {
			return spec, badField(path+"learning_rate_multiplier", "%slearning_rate_multiplier: must not be given together with learning_rate", path)
		}
		rate, err := s.autoRate(ctx, spec)
		if err != nil {
			return spec, err
		}
		spec.LearningRate = finetune.LearningRate{Value: multiplier * rate}
	}
	return spec, nil
}

// autoRate is the rate that a multiplier multiplies.
func (s *Server) autoRate(ctx context.Context, spec finetune.JobSpec) (float64, error) {
	rank, alpha := spec.Rank, spec.Alpha
	if spec.Parent != "" {
		target, err := s.resolve(ctx, spec.Parent)
		if err != nil {
			return 0, err
		}
		rank, alpha = target.Parts[0].Version.Rank, target.Parts[0].Version.Alpha
	}
	if rank <= 0 || rank > s.d.Basis.R {
		rank = min(16, s.d.Basis.R)
	}
	if alpha <= 0 {
		alpha = 2 * float64(rank)
	}
	return finetune.AutoRate(s.d.Basis, rank, alpha), nil
}

// rename gives an error's field the name that it has in the request.
func (q *fineTuningRequest) rename(err error) error {
	var field *finetune.FieldError
	if !errors.As(err, &field) {
		return err
	}
	fields, path := q.hyperparameters()
	name := ""
	switch field.Field {
	case "name":
		name = "suffix"
	case "parent":
		name = "model"
	case "training_file", "validation_file", "metadata":
		name = field.Field
	case "epochs":
		name = path + "n_epochs"
	case "learning_rate":
		name = path + "learning_rate"
		if _, multiplied := fields["learning_rate_multiplier"]; multiplied {
			name += "_multiplier"
			field = &finetune.FieldError{Field: field.Field, Message: "the learning rate that it gives " + field.Message}
		}
	default:
		name = path + field.Field
	}
	e := *asAPIError(err)
	e.Param, e.Message = name, name+": "+field.Message
	if field.Field == "parent" && errors.Is(err, adapters.ErrNotFound) {
		return modelNotFound(q.Model)
	}
	return &e
}

// openFiles opens the uploaded files that a spec names.
func (s *Server) openFiles(ctx context.Context, spec *finetune.JobSpec) (done func(), err error) {
	var opened []io.Closer
	done = func() {
		for _, c := range opened {
			_ = c.Close() // was read only
		}
	}
	for _, f := range []struct {
		param, id string
		to        *io.Reader
	}{{"training_file", spec.TrainingFile, &spec.Training}, {"validation_file", spec.ValidationFile, &spec.Validation}} {
		if f.id == "" {
			continue
		}
		if *f.to != nil || f.param == "training_file" && len(spec.Examples) > 0 {
			done()
			return nil, badField(f.param, "%s: must not be given together with examples", f.param)
		}
		file, err := s.file(ctx, f.param, f.id)
		if err != nil {
			done()
			return nil, err
		}
		blob, err := s.d.Store.OpenBlob(ctx, tenant(ctx), file.SHA256)
		if err != nil {
			done()
			return nil, err
		}
		opened = append(opened, blob)
		*f.to = io.NewSectionReader(blob, 0, blob.Size())
	}
	return done, nil
}

// submit hands a spec to the manager, its files opened.
func (s *Server) submitSpec(ctx context.Context, spec finetune.JobSpec) (finetune.Job, error) {
	if s.draining.Load() {
		return finetune.Job{}, errDraining
	}
	if spec.Name == s.d.Model.Name {
		return finetune.Job{}, fmt.Errorf("%w: %w", &finetune.FieldError{Field: "name", Message: fmt.Sprintf("%q is the base model", spec.Name)}, adapters.ErrExists)
	}
	spec.Tenant = tenant(ctx)
	if err := s.mayTrain(ctx); err != nil {
		return finetune.Job{}, err
	}
	kept, err := s.mayKeep(ctx, spec.Name, 0)
	if err != nil {
		return finetune.Job{}, err
	}
	defer kept()
	done, err := s.openFiles(ctx, &spec)
	if err != nil {
		return finetune.Job{}, err
	}
	defer done()
	return s.d.Jobs.Submit(ctx, spec)
}

func (s *Server) createFineTuningJob(w http.ResponseWriter, r *http.Request) error {
	var q fineTuningRequest
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	spec, err := s.fineTuningSpec(r.Context(), &q)
	if err != nil {
		return err
	}
	job, err := s.submitSpec(r.Context(), spec)
	if err != nil {
		return q.rename(err)
	}
	writeJSON(w, http.StatusOK, s.shownTuning(r.Context(), job))
	return nil
}

func (s *Server) listFineTuningJobs(w http.ResponseWriter, r *http.Request) error {
	limit, err := pageLimit(r, 20, 100)
	if err != nil {
		return err
	}
	jobs, more, err := s.d.Jobs.List(r.Context(), tenant(r.Context()), finetune.ListOptions{After: bareID(r.URL.Query().Get("after")), Limit: limit})
	if err != nil {
		return err
	}
	list := []tuningJob{}
	for _, j := range jobs {
		list = append(list, s.shownTuning(r.Context(), j))
	}
	writeJSON(w, http.StatusOK, tuningList{"list", list, more})
	return nil
}

func (s *Server) retrieveFineTuningJob(w http.ResponseWriter, r *http.Request) error {
	job, err := s.d.Jobs.Get(r.Context(), tenant(r.Context()), chi.URLParam(r, "job"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, s.shownTuning(r.Context(), job))
	return nil
}

// tuningAction applies cancel, pause or resume to a job.
func (s *Server) tuningAction(act func(context.Context, string, string) (finetune.Job, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		job, err := act(r.Context(), tenant(r.Context()), chi.URLParam(r, "job"))
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, s.shownTuning(r.Context(), job))
		return nil
	}
}

func (s *Server) listTuningEvents(w http.ResponseWriter, r *http.Request) error {
	limit, err := pageLimit(r, 20, 1000)
	if err != nil {
		return err
	}
	id := chi.URLParam(r, "job")
	before := int64(0)
	if after := r.URL.Query().Get("after"); after != "" {
		if before = eventSeq(id, after); before == 0 {
			before = 1 // as of what is no event, there is nothing behind it
		}
	}
	log, more, err := s.d.Jobs.Log(r.Context(), tenant(r.Context()), id, before, limit)
	if err != nil {
		return err
	}
	list := []tuningEvent{}
	for _, e := range log {
		list = append(list, shownTuningEvent(id, e))
	}
	writeJSON(w, http.StatusOK, tuningList{"list", list, more})
	return nil
}

// listTuningCheckpoints lists what of a job can be asked as a model: the version that it published.
func (s *Server) listTuningCheckpoints(w http.ResponseWriter, r *http.Request) error {
	limit, err := pageLimit(r, 10, 100)
	if err != nil {
		return err
	}
	job, err := s.d.Jobs.Get(r.Context(), tenant(r.Context()), chi.URLParam(r, "job"))
	if err != nil {
		return err
	}
	all := []tuningCheckpoint{}
	if job.Result != nil {
		all = append(all, shownCheckpoint(r.Context(), job))
	}
	part, more := page(all, func(c tuningCheckpoint) string { return c.ID }, r.URL.Query().Get("after"), limit)
	writeJSON(w, http.StatusOK, tuningList{"list", append([]tuningCheckpoint{}, part...), more})
	return nil
}

// eventID names an event of a job.
func eventID(job string, seq int64) string {
	return fmt.Sprintf("ftevent-%s-%d", strings.TrimPrefix(job, "ftjob-"), seq)
}

// eventSeq is the number of the job's event that has the id, 0 where it is none's.
func eventSeq(job, id string) int64 {
	seq, err := strconv.ParseInt(id[strings.LastIndexByte(id, '-')+1:], 10, 64)
	if err != nil || seq < 1 || eventID(job, seq) != id {
		return 0
	}
	return seq
}
