package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/server/api"
)

// pirates are examples of a style that nobody mistakes for the base's.
func pirates() []object {
	var out []object
	for _, animal := range []string{"fox", "whale", "frog", "cow", "owl", "mouse", "bear", "duck"} {
		out = append(out, object{"messages": []object{{"role": "user", "content": "What is a " + animal + "?"},
			{"role": "assistant", "content": "Arr! The " + animal + " be a scurvy beast, matey!"}}})
	}
	return out
}

// lines are examples as JSONL.
func lines(examples []object) string {
	var b strings.Builder
	for _, e := range examples {
		raw, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		b.Write(append(raw, '\n'))
	}
	return b.String()
}

// ask is a greedy answer to a question.
func (c *client) ask(model, question string) string {
	c.t.Helper()
	var out struct {
		Choices []struct{ Message messageJSON }
	}
	c.post("/v1/chat/completions", object{"model": model, "temperature": 0, "max_tokens": 24, "messages": []object{{"role": "user", "content": question}}}).want(200).into(&out)
	return out.Choices[0].Message.Content
}

func (c *client) adapter(name string) (a api.Adapter) {
	c.t.Helper()
	c.get("/adapters/" + name).want(200).into(&a)
	return a
}

// wait waits until the adapter's latest job is in the state.
func (c *client) wait(name string, state api.JobState) api.Adapter {
	c.t.Helper()
	for {
		a := c.adapter(name)
		switch {
		case a.Job != nil && a.Job.State == state:
			return a
		case a.Job != nil && slices.Contains([]api.JobState{"failed", "succeeded", "cancelled"}, a.Job.State):
			c.t.Fatalf("the job is %s, not %s: %v", a.Job.State, state, string(mustJSON(a.Job)))
		}
		select {
		case <-c.t.Context().Done():
			c.t.Fatal("the test was ended")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Streams of the base and of version 1 run while version 2 is trained and swapped in.
func TestLifeOfAnAdapter(t *testing.T) {
	c := serve(t)
	const question = "What is a fox?"
	base := c.ask("demo", question)

	// Trained, announced, live.
	first := c.post("/adapters", object{"name": "life", "rank": 8, "max_steps": 24, "batch_size": 8, "seed": 1, "examples": pirates(), "sample_prompts": []string{question}}).want(202)
	if got := first.Header.Get("Location"); got != "/adapters/life" {
		t.Errorf("Location %q", got)
	}
	events := c.get("/adapters/life/events").want(200).events()
	kinds := map[string]int{}
	for i, e := range events {
		if e.ID != fmt.Sprint(i+1) {
			t.Errorf("event %d has the id %q", i+1, e.ID)
		}
		kinds[e.Kind]++
	}
	for _, kind := range []string{"state", "progress", "sample", "published"} {
		if kinds[kind] == 0 {
			t.Errorf("no event of type %s among %v", kind, kinds)
		}
	}
	again := c.do("GET", "/adapters/life/events", nil, "Last-Event-ID", fmt.Sprint(len(events)-1)).want(200).events()
	if len(again) != 1 || again[0] != events[len(events)-1] {
		t.Errorf("after the last but one: %v", again)
	}
	a := c.wait("life", "succeeded")
	if a.LiveVersion == nil || *a.LiveVersion != 1 || a.Version == nil || a.Version.Rank != 8 || a.Job.Version == nil || *a.Job.Version != 1 {
		t.Fatalf("after training: %s", mustJSON(a))
	}
	trained := c.ask("life", question)
	if trained == base || !strings.HasPrefix(trained, "Arr!") {
		t.Errorf("the adapter says %q, the base %q", trained, base)
	}
	if got := c.ask("life@1", question); got != trained {
		t.Errorf("version 1 says %q, the live one %q", got, trained)
	}
	if got := c.ask("demo", question); got != base {
		t.Errorf("the base says %q after training, %q before", got, base)
	}
	if got := c.ask("life:0.5+life@1:0.5", question); got != trained {
		t.Errorf("half and half says %q, the whole %q", got, trained)
	}
	c.post("/adapters", object{"name": "life", "examples": pirates()}).wantError(409, "name", "already_exists")

	// Online: on from the live version, while streams of the base and of version 1 run.
	long := object{"temperature": 1, "seed": 5, "max_tokens": 700, "ignore_eos": true, "messages": []object{{"role": "user", "content": "Tell me a story."}}}
	with := func(model string, stream bool) object {
		q := object{"model": model, "stream": stream}
		for k, v := range long {
			q[k] = v
		}
		return q
	}
	want := map[string]string{}
	for _, model := range []string{"demo", "life"} {
		var out struct {
			Choices []struct{ Message messageJSON }
		}
		c.post("/v1/chat/completions", with(model, false)).want(200).into(&out)
		want[model] = out.Choices[0].Message.Content
	}
	done := make(chan struct{})
	began := make(chan struct{}, 2)
	var streams sync.WaitGroup
	swapped := map[string]bool{} // did the swap come while a stream of the model ran
	var late []string            // of streams that say other than version 1
	var mu sync.Mutex
	for _, model := range []string{"demo", "life"} {
		streams.Go(func() {
			for first := true; ; first = false {
				before := *c.adapter("life").LiveVersion
				if before != 1 && model == "life" {
					return // its next stream would be of version 2
				}
				text := c.streamText(with(model, true))
				after := *c.adapter("life").LiveVersion
				if first {
					began <- struct{}{}
				}
				if model == "life" && text != want[model] && after == 2 { // it began after the swap, which came since before was read
					mu.Lock()
					late = append(late, text)
					mu.Unlock()
				} else if text != want[model] {
					t.Errorf("a stream of %s across a swap (%d to %d) says %q, want %q", model, before, after, text, want[model])
				}
				if before == 1 && after == 2 {
					mu.Lock()
					swapped[model] = true
					mu.Unlock()
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	<-began
	<-began
	c.do("POST", "/adapters/life/examples?max_steps=6&batch_size=4&learning_rate=auto&seed=3", strings.ReplaceAll(lines(pirates()), "Arr!", "Ahoy!"), "Content-Type", "application/x-ndjson").want(202)
	a = c.wait("life", "succeeded")
	close(done)
	streams.Wait()
	if *a.LiveVersion != 2 || a.Version.Parent == nil || *a.Version.Parent != 1 {
		t.Fatalf("after more examples: %s", mustJSON(a))
	}
	t.Logf("the swap came in the midst of streams of %v", swapped)
	if len(late) > 0 {
		var out struct {
			Choices []struct{ Message messageJSON }
		}
		c.post("/v1/chat/completions", with("life@2", false)).want(200).into(&out)
		for _, text := range late { // the whole of it
			if text != out.Choices[0].Message.Content {
				t.Errorf("a stream of life beside a swap says %q, neither version 1 nor version 2 does", text)
			}
		}
	}

	// Versions and rollback.
	var versions api.VersionList
	c.get("/adapters/life/versions").want(200).into(&versions)
	if len(versions.Data) != 2 || versions.Data[0].Version != 2 || !versions.Data[0].Live || versions.Data[1].Live || versions.Data[0].Sha256 == versions.Data[1].Sha256 {
		t.Errorf("versions: %s", mustJSON(versions))
	}
	c.get("/adapters/life/versions/3").wantError(404, "name", "adapter_not_found")
	c.get("/adapters/life/versions/x").wantError(400, "version", "")
	c.do("DELETE", "/adapters/life/versions/2", nil).wantError(409, "", "conflict")
	if c.post("/adapters/life/rollback", nil).want(200); *c.adapter("life").LiveVersion != 1 {
		t.Error("rolled back, version 1 is not live")
	}
	if got := c.ask("life", question); got != trained {
		t.Errorf("rolled back, the adapter says %q, before it %q", got, trained)
	}
	c.post("/adapters/life/rollback", nil).wantError(409, "version", "no_earlier_version")
	c.post("/adapters/life/rollback", object{"version": 2}).want(200)
	c.post("/adapters/life/rollback", object{"version": 9}).wantError(404, "name", "adapter_not_found")
	c.post("/adapters/life/rollback", object{"version": "x"}).wantError(400, "version", "")
	c.do("DELETE", "/adapters/life/versions/1", nil).want(200)
	c.get("/adapters/life/versions/1").wantError(404, "name", "adapter_not_found")
	var jobs api.JobList
	c.get("/adapters/life/jobs").want(200).into(&jobs)
	if len(jobs.Data) != 2 || *jobs.Data[0].Version != 2 || *jobs.Data[1].Version != 1 {
		t.Errorf("jobs: %s", mustJSON(jobs))
	}

	var models api.ModelList
	c.get("/v1/models").want(200).into(&models)
	i := slices.IndexFunc(models.Data, func(m api.Model) bool { return m.Id == "life" })
	if models.Data[0].Id != "demo" || i < 0 || *models.Data[i].Root != "life@2" || *models.Data[i].Parent != "demo" {
		t.Errorf("models: %s", mustJSON(models))
	}
	c.do("DELETE", "/adapters/life", nil).want(200)
	c.get("/v1/models/life").wantError(404, "model", "model_not_found")
	c.post("/v1/completions", object{"model": "life", "prompt": "x"}).wantError(404, "model", "model_not_found")
	c.get("/adapters/life").wantError(404, "name", "adapter_not_found")
	c.do("DELETE", "/adapters/life", nil).wantError(404, "name", "adapter_not_found")
}

// streamText is the text of a streamed chat answer.
func (c *client) streamText(q object) string {
	text, err := c.stream(q, nil)
	if err != nil {
		c.t.Error(err)
	}
	return text
}

// stream reads a streamed chat answer and calls each with every piece of text.
func (c *client) stream(q object, each func(string)) (string, error) {
	raw, err := json.Marshal(q)
	if err != nil {
		return "", err
	}
	r, err := http.NewRequestWithContext(c.t.Context(), "POST", c.url+"/v1/chat/completions", strings.NewReader(string(raw)))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	a, err := c.http.Do(r)
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	var text strings.Builder
	scan := bufio.NewScanner(a.Body)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		data, ok := strings.CutPrefix(scan.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return text.String(), nil
		}
		var chunk struct {
			Error   *struct{ Message string }
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return text.String(), err
		}
		if chunk.Error != nil {
			return text.String(), fmt.Errorf("error event: %s", chunk.Error.Message)
		}
		for _, choice := range chunk.Choices {
			text.WriteString(choice.Delta.Content)
			if each != nil {
				each(choice.Delta.Content)
			}
		}
	}
	if err := scan.Err(); err != nil {
		return text.String(), err
	}
	return text.String(), fmt.Errorf("the stream ended without [DONE], status %d", a.StatusCode)
}

func TestPauseResumeCancel(t *testing.T) {
	c := serve(t)
	c.post("/adapters", object{"name": "paused", "rank": 4, "max_steps": 5000, "batch_size": 2, "examples": pirates()}).want(202)
	c.wait("paused", "running")
	if a := c.adapter("paused"); a.LiveVersion != nil || a.Version != nil {
		t.Errorf("not trained yet: %s", mustJSON(a))
	}
	var all api.AdapterList
	c.get("/adapters").want(200).into(&all)
	if !slices.ContainsFunc(all.Data, func(a api.Adapter) bool { return a.Name == "paused" }) {
		t.Errorf("an adapter in training is not in the list: %s", mustJSON(all))
	}
	c.get("/v1/models/paused").wantError(404, "model", "model_not_found")
	var a api.Adapter
	c.post("/adapters/paused/pause", nil).want(200).into(&a)
	if a.Job.State != "paused" {
		t.Errorf("paused, the job is %s", a.Job.State)
	}
	c.post("/adapters/paused/pause", nil).wantError(409, "", "wrong_state")
	c.post("/adapters/paused/resume", nil).want(200)
	c.wait("paused", "running")
	c.post("/adapters/paused/cancel", nil).want(200).into(&a)
	if a.Job.State != "cancelled" {
		t.Errorf("cancelled, the job is %s", a.Job.State)
	}
	// There never was a version: no adapter is left, but the job.
	if text := c.get("/adapters/paused").wantError(404, "name", "adapter_not_found"); !strings.Contains(text, a.Job.Id+", has been cancelled") {
		t.Errorf("of a cancelled training it is said: %s", text)
	}
	var jobs api.JobList
	c.get("/adapters/paused/jobs").want(200).into(&jobs)
	if len(jobs.Data) != 1 || jobs.Data[0].State != "cancelled" {
		t.Errorf("the jobs of a cancelled training: %s", mustJSON(jobs))
	}
	c.post("/adapters/paused/cancel", nil).wantError(409, "", "wrong_state")
	c.post("/adapters/nobody/cancel", nil).wantError(404, "name", "job_not_found")
	c.get("/adapters/nobody/events").wantError(404, "name", "job_not_found")
}

// A path that escapes more than it must is the same path.
func TestEscapedNames(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "an-escaped", 4, 1)
	for _, path := range []string{"/v1/models/an%2Descaped", "/adapters/an%2Descaped", "/adapters/%61n-escaped/versions", "/adapters/an%2Descaped/export", "/adapters/default%2Fan%2Descaped"} {
		c.get(path).want(200)
	}
	c.post("/adapters/an%2Descaped/rollback", object{"version": 1}).want(200)
}

// TestDeleteBesideAnothersJob: an adapter is not deleted while a job that cannot be cancelled here would publish it again.
func TestDeleteBesideAnothersJob(t *testing.T) {
	hive := ownHive(t, hiveConfig{})
	c := hive.serve(t, nil)
	hive.publish(t, "theirs", 4, 1)
	record := adapters.Job{ID: "ftjob-0", Kind: "finetune", State: string(finetune.Paused), Worker: "another", Heartbeat: time.Now(),
		Data: mustJSON(object{"job": object{"id": "ftjob-0", "tenant": adapters.DefaultTenant, "spec": object{"name": "theirs"}, "status": "paused"}})}
	record, err := hive.deps.Store.CreateJob(t.Context(), adapters.DefaultTenant, record)
	if err != nil {
		t.Fatal(err)
	}
	c.do("DELETE", "/adapters/theirs", nil).wantError(409, "", "wrong_state")
	c.get("/adapters/theirs").want(200)
	record.State = string(finetune.Cancelled)
	if _, err := hive.deps.Store.UpdateJob(t.Context(), adapters.DefaultTenant, record); err != nil {
		t.Fatal(err)
	}
	c.do("DELETE", "/adapters/theirs", nil).want(200)
}
