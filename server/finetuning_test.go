package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bhive/finetune"
)

type tuningPage[T any] struct {
	Data    []T  `json:"data"`
	HasMore bool `json:"has_more"`
}

// tune makes a job.
func (c *client) tune(body object) (j tuningJob) {
	c.t.Helper()
	c.post("/v1/fine_tuning/jobs", body).want(200).into(&j)
	return j
}

// tuned waits until a job is in a state.
func (c *client) tuned(id string, state finetune.State) (j tuningJob) {
	c.t.Helper()
	for {
		c.get("/v1/fine_tuning/jobs/" + id).want(200).into(&j)
		switch {
		case j.Status == state:
			return j
		case j.Status.Final():
			c.t.Fatalf("the job is %s, not %s: %s", j.Status, state, mustJSON(j))
		}
		select {
		case <-c.t.Context().Done():
			c.t.Fatal("the test was ended")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestFineTuningJob(t *testing.T) {
	hive := ownHive(t, hiveConfig{})
	c := hive.serve(t, nil)
	file := c.upload("pirates.jsonl", lines(pirates()))
	held := c.upload("held.jsonl", lines(pirates()[:2]))
	j := c.tune(object{"model": "demo", "training_file": file.Id, "validation_file": held.Id, "suffix": "pirate", "seed": 7, "metadata": object{"who": "me"},
		"method": object{"type": "supervised", "supervised": object{"hyperparameters": object{"n_epochs": 20, "batch_size": 4, "learning_rate_multiplier": 1, "rank": 8}}}})
	if j.TrainingFile != file.Id || j.ValidationFile == nil || *j.ValidationFile != held.Id || j.Model != "demo" || j.Seed != 7 || j.Metadata["who"] != "me" || j.FineTunedModel != nil && j.Status != finetune.Succeeded {
		t.Errorf("the new job is %s", mustJSON(j))
	}
	c.do("DELETE", "/v1/files/"+file.Id, nil).want(200) // the job has its own
	j = c.tuned(j.ID, finetune.Succeeded)
	h := j.Method.Supervised.Hyperparameters
	if j.FineTunedModel == nil || *j.FineTunedModel != "pirate" || j.TrainedTokens == nil || *j.TrainedTokens == 0 || j.FinishedAt == nil || h != j.Hyperparameters ||
		fmt.Sprint(h.Epochs, h.BatchSize, h.Multiplier) != "20 4 1" || j.Error != nil {
		t.Errorf("the job that succeeded is %s", mustJSON(j))
	}
	if got := c.ask("pirate", "What is a fox?"); !strings.HasPrefix(got, "Arr!") {
		t.Errorf("the model says %q", got)
	}
	if s := hive.deps.Pool.Stats(); s.Misses != 0 || s.HostHits != 1 { // it was staged
		t.Errorf("the first request for what was published: %+v", s)
	}

	var events, part tuningPage[tuningEvent]
	c.get("/v1/fine_tuning/jobs/" + j.ID + "/events?limit=1000").want(200).into(&events)
	last := events.Data[len(events.Data)-1]
	c.get("/v1/fine_tuning/jobs/" + j.ID + "/events?limit=1&after=" + events.Data[1].ID).want(200).into(&part)
	if len(part.Data) != 1 || part.Data[0].ID != events.Data[2].ID || !part.HasMore || !strings.HasSuffix(last.ID, "-1") {
		t.Errorf("a page of events is %s; all are %s", mustJSON(part), mustJSON(events))
	}
	c.get("/v1/fine_tuning/jobs/" + j.ID + "/events?after=" + last.ID).want(200).into(&part)
	if len(part.Data) != 0 || part.HasMore {
		t.Errorf("behind the first event is %s", mustJSON(part))
	}
	c.get("/v1/fine_tuning/jobs/" + j.ID + "/events?after=ftevent-other-3").want(200).into(&part)
	if len(part.Data) != 0 || part.HasMore {
		t.Errorf("behind another job's event is %s", mustJSON(part))
	}
	metrics := false
	for _, e := range events.Data {
		metrics = metrics || e.Type == "metrics" && e.Data["train_loss"] != nil
	}
	if !metrics {
		t.Errorf("no metrics among %s", mustJSON(events))
	}
	var checkpoints tuningPage[tuningCheckpoint]
	c.get("/v1/fine_tuning/jobs/" + j.ID + "/checkpoints").want(200).into(&checkpoints)
	if len(checkpoints.Data) != 1 || checkpoints.Data[0].Model != "pirate@1" || checkpoints.Data[0].Metrics["valid_loss"] == nil {
		t.Fatalf("checkpoints: %s", mustJSON(checkpoints))
	}
	c.ask(checkpoints.Data[0].Model, "What is a fox?")

	// On from the model: to its next version, or to another name.
	next := c.tune(object{"model": "pirate", "training_file": held.Id, "hyperparameters": object{"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto", "max_steps": 1}})
	if next = c.tuned(next.ID, finetune.Succeeded); *next.FineTunedModel != "pirate" || next.Model != "pirate" || next.Hyperparameters.Multiplier != "auto" {
		t.Errorf("on from pirate: %s", mustJSON(next))
	}
	if a := c.adapter("pirate"); *a.LiveVersion != 2 {
		t.Errorf("live is %d", *a.LiveVersion)
	}
	other := c.tune(object{"model": "pirate@1", "training_file": held.Id, "suffix": "other", "hyperparameters": object{"max_steps": 1}})
	c.tuned(other.ID, finetune.Succeeded)
	unnamed := c.tune(object{"training_file": held.Id, "hyperparameters": object{"max_steps": 1}})
	if unnamed = c.tuned(unnamed.ID, finetune.Succeeded); !strings.HasPrefix(*unnamed.FineTunedModel, "ft-") {
		t.Errorf("a job without a suffix: %s", mustJSON(unnamed))
	}
	c.get("/v1/models/" + *unnamed.FineTunedModel).want(200)

	var jobs tuningPage[tuningJob]
	c.get("/v1/fine_tuning/jobs?limit=2&after=" + unnamed.ID).want(200).into(&jobs)
	if len(jobs.Data) != 2 || jobs.Data[0].ID != other.ID || jobs.Data[1].ID != next.ID || !jobs.HasMore {
		t.Errorf("a page of jobs: %s", mustJSON(jobs))
	}

	// The native route takes files too.
	c.post("/adapters", object{"name": "native", "training_file": held.Id, "max_steps": 1}).want(202)
	c.wait("native", "succeeded")

	// Bad lines fail the job.
	bad := c.upload("bad.jsonl", "{\"text\":\"a\"}\n{\"text\":\n")
	failed := c.tuned(c.tune(object{"training_file": bad.Id, "suffix": "bad"}).ID, finetune.Failed)
	if failed.Error == nil || failed.Error.Code != "invalid_training_file" || failed.Error.Param == nil || *failed.Error.Param != "training_file" || !strings.Contains(failed.Error.Message, "line 2") {
		t.Errorf("a job of bad lines: %s", mustJSON(failed))
	}
	c.get("/adapters/bad").wantError(404, "name", "adapter_not_found")
	c.get("/adapters/bad/jobs").want(200)
}

func TestPauseFineTuningJob(t *testing.T) {
	c := ownHive(t, hiveConfig{}).serve(t, nil)
	file := c.upload("pirates.jsonl", lines(pirates()))
	j := c.tune(object{"training_file": file.Id, "suffix": "long", "hyperparameters": object{"max_steps": 5000, "rank": 4, "batch_size": 2}})
	c.tuned(j.ID, finetune.Running)
	at := "/v1/fine_tuning/jobs/" + j.ID
	act := func(what string) response { return c.post(at+"/"+what, nil) }
	act("pause").want(200)
	c.tuned(j.ID, finetune.Paused)
	act("pause").wantError(409, "", "wrong_state")
	act("resume").want(200)
	c.tuned(j.ID, finetune.Running)
	if act("cancel").want(200).into(&j); j.Status != finetune.Cancelled || j.FineTunedModel != nil {
		t.Errorf("cancelled: %s", mustJSON(j))
	}
	act("resume").wantError(409, "", "wrong_state")
	var none tuningPage[tuningCheckpoint]
	if c.get(at + "/checkpoints").want(200).into(&none); none.Data == nil || len(none.Data) > 0 {
		t.Errorf("checkpoints of a cancelled job: %s", mustJSON(none))
	}
}

func TestBadFineTuningRequests(t *testing.T) {
	h := shared(t)
	c := h.serve(t, nil)
	h.publish(t, "tuning-taken", 8, 1)
	file := c.upload("a.jsonl", lines(pirates()[:1])).Id
	for _, x := range []struct {
		name            string
		body            object
		code            int
		param, wantCode string
	}{
		{"no file", object{"model": "demo"}, 400, "training_file", ""},
		{"unknown file", object{"training_file": "file-none"}, 404, "training_file", "file_not_found"},
		{"bad file id", object{"training_file": "../x"}, 404, "training_file", "file_not_found"},
		{"unknown validation file", object{"training_file": file, "validation_file": "file-none"}, 404, "validation_file", "file_not_found"},
		{"unknown model", object{"training_file": file, "model": "tuning-none"}, 404, "model", "model_not_found"},
		{"unknown model with a multiplier", object{"training_file": file, "model": "tuning-none", "suffix": "x", "hyperparameters": object{"learning_rate_multiplier": 2}}, 404, "model", "model_not_found"},
		{"mix", object{"training_file": file, "model": "tuning-taken+tuning-taken"}, 404, "model", "model_not_found"},
		{"mix with a suffix", object{"training_file": file, "suffix": "x", "model": "tuning-taken+tuning-taken"}, 400, "model", ""},
		{"mix with a multiplier", object{"training_file": file, "suffix": "x", "model": "tuning-taken+tuning-taken", "hyperparameters": object{"learning_rate_multiplier": 2}}, 400, "model", ""},
		{"bad suffix", object{"training_file": file, "suffix": "My Model"}, 400, "suffix", ""},
		{"taken suffix", object{"training_file": file, "suffix": "tuning-taken"}, 409, "suffix", "already_exists"},
		{"base's name", object{"training_file": file, "suffix": "demo"}, 409, "suffix", "already_exists"},
		{"method", object{"training_file": file, "method": object{"type": "dpo"}}, 400, "method.type", ""},
		{"integrations", object{"training_file": file, "integrations": []object{{"type": "wandb"}}}, 400, "integrations", ""},
		{"epochs", object{"training_file": file, "hyperparameters": object{"n_epochs": -1}}, 400, "hyperparameters.n_epochs", ""},
		{"no epochs", object{"training_file": file, "hyperparameters": object{"n_epochs": 0}}, 400, "hyperparameters.n_epochs", ""},
		{"no batch", object{"training_file": file, "hyperparameters": object{"batch_size": 0.0}}, 400, "hyperparameters.batch_size", ""},
		{"epochs' kind", object{"training_file": file, "hyperparameters": object{"n_epochs": "many"}}, 400, "hyperparameters.n_epochs", ""},
		{"batch", object{"training_file": file, "method": object{"type": "supervised", "supervised": object{"hyperparameters": object{"batch_size": -2}}}}, 400, "method.supervised.hyperparameters.batch_size", ""},
		{"multiplier", object{"training_file": file, "hyperparameters": object{"learning_rate_multiplier": 0}}, 400, "hyperparameters.learning_rate_multiplier", ""},
		{"large multiplier", object{"training_file": file, "hyperparameters": object{"learning_rate_multiplier": 1e300}}, 400, "hyperparameters.learning_rate_multiplier", ""},
		{"both rates", object{"training_file": file, "hyperparameters": object{"learning_rate_multiplier": 2, "learning_rate": 0.1}}, 400, "hyperparameters.learning_rate_multiplier", ""},
		{"rank", object{"training_file": file, "hyperparameters": object{"rank": 4096}}, 400, "hyperparameters.rank", "bad_rank"},
		{"unknown", object{"training_file": file, "hyperparameters": object{"nonsense": 1}}, 400, "hyperparameters.nonsense", ""},
		{"smuggled", object{"training_file": file, "hyperparameters": object{"parent": "x"}}, 400, "hyperparameters.parent", ""},
		{"kind", object{"training_file": 5}, 400, "training_file", ""},
		{"metadata", object{"training_file": file, "metadata": object{strings.Repeat("k", 70): "v"}}, 400, "metadata", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := *c
			c.t = t
			c.post("/v1/fine_tuning/jobs", x.body).wantError(x.code, x.param, x.wantCode)
		})
	}
	for _, route := range []string{"GET ", "POST /cancel", "POST /pause", "POST /resume", "GET /events", "GET /checkpoints"} {
		method, below, _ := strings.Cut(route, " ")
		for _, id := range []string{"ftjob-none", "NO", strings.Repeat("x", 300)} {
			c.do(method, "/v1/fine_tuning/jobs/"+id+below, nil).wantError(404, "", "job_not_found")
		}
	}
	c.get("/v1/fine_tuning/jobs?limit=x").wantError(400, "limit", "")
	c.post("/adapters", object{"name": "both", "training_file": file, "examples": pirates()}).wantError(400, "training_file", "")
	c.post("/adapters", object{"name": "none", "training_file": "file-none"}).wantError(404, "training_file", "file_not_found")
}
