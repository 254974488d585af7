package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/infer/goldentest"
	"bhive/kernels/devicetest"
	"bhive/server/api"
)

// goldenHive is a server on the base and the basis of golden runs.
type goldenHive struct {
	*client
	t        *testing.T
	geometry adapters.Geometry
	examples []goldentest.Example
}

// openGolden serves a checkpoint in the precision under test with a run's A's.
func openGolden(t *testing.T, dir string, cp *checkpoint.Checkpoint, run goldentest.Run) *goldenHive {
	t.Helper()
	be := devicetest.Open(t, false)
	works := !be.Info().CopyInPlace
	h := ownHive(t, hiveConfig{engine: infer.Config{MaxContext: 256, Graphs: works, Overlap: works}, base: &base{cp, be, devicetest.Format(),
		func(g adapters.Geometry, hash string) *adapters.Basis {
			return run.Tensors(t, dir).Import(t, g, run.Rank, hash)
		}}})
	return &goldenHive{h.serve(t, nil), t, h.deps.Basis.Geometry, goldentest.Examples(t, dir)}
}

// body is a golden run as POST /adapters has it.
func (h *goldenHive) body(name string, g goldentest.Run) object {
	scheduler, clip := "constant", 0.0
	if g.Warmup() > 0 {
		scheduler = "cosine"
	}
	if g.MaxGradNorm != nil {
		clip = *g.MaxGradNorm
	}
	return object{"name": name, "rank": g.Rank, "alpha": g.Alpha, "learning_rate": g.LR, "lr_scheduler_type": scheduler, "warmup_steps": g.Warmup(), "max_steps": g.Steps,
		"batch_size": g.Batch / g.MicroBatches, "gradient_accumulation_steps": g.MicroBatches, "weight_decay": g.WeightDecay, "max_grad_norm": clip,
		"adam_beta1": g.Betas[0], "adam_beta2": g.Betas[1], "adam_epsilon": g.Eps, "correction": g.Correction, "shuffle": false, "examples": tokens(h.examples)}
}

// tokens are examples as the API takes them.
func tokens(examples []goldentest.Example) (list []object) {
	for _, e := range examples {
		list = append(list, object{"input_ids": e.IDs, "labels": e.Labels})
	}
	return list
}

// goldenJob is what a job told and published.
type goldenJob struct {
	steps   []finetune.Progress
	version api.Version
	peft    *adapters.PEFT
}

// train runs a golden run as a job.
func (h *goldenHive) train(name string, g goldentest.Run) goldenJob {
	h.t.Helper()
	h.post("/adapters", h.body(name, g)).want(http.StatusAccepted)
	return h.ended(name)
}

// ended follows the latest job of an adapter to its end, and takes what it published.
func (h *goldenHive) ended(name string) (j goldenJob) {
	h.t.Helper()
	for _, e := range h.get("/adapters/" + name + "/events").want(200).events() {
		var v struct{ Data finetune.Event }
		if err := json.Unmarshal([]byte(e.Data), &v); err != nil {
			h.t.Fatal(err)
		}
		if v.Data.Type == finetune.EventProgress {
			j.steps = append(j.steps, *v.Data.Progress)
		}
	}
	j.version = *h.wait(name, "succeeded").Version
	p, err := adapters.ReadPEFTTar(bytes.NewReader(h.get("/adapters/"+name+"/export").want(200).Body), 1<<30, h.geometry)
	if err != nil {
		h.t.Fatal(err)
	}
	j.peft = p
	return j
}

// compare returns what differs from the golden run; stored is its final B of a module, where there is one.
func (j goldenJob) compare(t *testing.T, g goldentest.Run, stored func(layer int, p adapters.Proj) []float32) (wrong []string) {
	t.Helper()
	if len(j.steps) != g.Steps || len(j.peft.Modules) != len(g.FinalBNorms) {
		return []string{fmt.Sprintf("%d steps and %d modules, want %d and %d", len(j.steps), len(j.peft.Modules), g.Steps, len(g.FinalBNorms))}
	}
	worst := map[string]float64{}
	near := func(kind, at string, off, most float64) {
		worst[kind] = max(worst[kind], off)
		if !(off <= most) {
			wrong = append(wrong, fmt.Sprintf("the %s of %s is %.2g off, more than %g", kind, at, off, most))
		}
	}
	relative := func(got, want float64) float64 { return math.Abs(got-want) / math.Abs(want) }
	loss, norm, b := goldentest.Tolerances(devicetest.Rounds())
	for i, s := range j.steps {
		at := fmt.Sprintf("step %d", i+1)
		if s.Step != i+1 || s.Steps != g.Steps {
			wrong = append(wrong, fmt.Sprintf("%s is told as %d of %d", at, s.Step, s.Steps))
		}
		near("loss", at, relative(s.Loss, g.Losses[i]), loss)
		near("gradient norm", at, relative(s.GradNorm, g.GradNorms[i]), norm)
		near("learning rate", at, relative(s.LearningRate, g.LRs[i]), 1e-12)
	}
	for _, m := range j.peft.Modules {
		name := goldentest.BName(m.Layer, m.Proj)
		want := g.FinalBNorms[name]
		near("norm", name, relative(goldentest.Distance(m.B, nil), want), b)
		if s := stored(m.Layer, m.Proj); s != nil && !devicetest.Rounds() {
			near("distance", name, goldentest.Distance(m.B, s)/want, b)
		}
	}
	t.Logf("at most off: %v", worst)
	return wrong
}

// losses are a job's, step by step.
func (j goldenJob) losses() (list []float64) {
	for _, s := range j.steps {
		list = append(list, s.Loss)
	}
	return list
}

// same fails unless two jobs went and ended alike, bit for bit.
func (j goldenJob) same(t *testing.T, what string, other goldenJob) {
	t.Helper()
	if !slices.Equal(j.losses(), other.losses()) {
		t.Errorf("%s: losses %v, want %v", what, j.losses(), other.losses())
	}
	if j.version.Sha256 != other.version.Sha256 {
		t.Errorf("%s: the B's differ", what)
	}
}

// served is the loss of examples by a model as /v1/completions gives their log probabilities.
func (h *goldenHive) served(model string, examples []goldentest.Example) float64 {
	h.t.Helper()
	sum, n := 0.0, 0
	for _, e := range examples {
		got := h.complete(object{"model": model, "prompt": e.IDs, "max_tokens": 0, "echo": true, "logprobs": 0})
		for i, p := range got.Choices[0].Logprobs.TokenLogprobs {
			if i > 0 && e.Labels[i] >= 0 {
				sum -= *p
				n++
			}
		}
	}
	return sum / float64(n)
}

// testGoldenJobs sends a folder's golden runs through POST /adapters.
func testGoldenJobs(t *testing.T, dir string, cp *checkpoint.Checkpoint) {
	runs := goldentest.Runs(t, dir)
	t.Run("kaiming", func(t *testing.T) {
		h := openGolden(t, dir, cp, runs["kaiming_corrected"])
		b := runs["kaiming_corrected"].Tensors(t, dir)
		none := func(int, adapters.Proj) []float32 { return nil }
		for _, name := range []string{"kaiming_corrected", "kaiming_plain", "accumulated"} {
			stored := none
			if name == "kaiming_corrected" {
				stored = func(layer int, p adapters.Proj) []float32 { return b.B(t, layer, p) }
			}
			j := h.train(name, runs[name])
			for _, w := range j.compare(t, runs[name], stored) {
				t.Errorf("%s: %s", name, w)
			}
			switch name {
			case "kaiming_plain": // the comparison can fail: a run without the correction is not one with it
				if wrong := j.compare(t, runs["kaiming_corrected"], none); len(wrong) < 10 && !devicetest.Rounds() {
					t.Errorf("kaiming_plain passes as kaiming_corrected but for %q", wrong)
				}
			case "accumulated":
				h.train("again", runs[name]).same(t, "a second run", j)
				h.interrupted("interrupted", runs[name]).same(t, "a run that was interrupted", j)
				h.online(name, runs)
			}
		}
	})
	t.Run("orthonormal", func(t *testing.T) {
		const name = "orthonormal_schedule"
		b := runs[name].Tensors(t, dir)
		for _, w := range openGolden(t, dir, cp, runs[name]).train(name, runs[name]).compare(t, runs[name], func(layer int, p adapters.Proj) []float32 { return b.B(t, layer, p) }) {
			t.Error(w)
		}
	})
}

// interrupted is train with a pause in the midst of the run. Samples, which touch nothing of it, keep it from ending before it is asked to pause; where it has ended
// all the same, another is tried.
func (h *goldenHive) interrupted(name string, g goldentest.Run) goldenJob {
	h.t.Helper()
	for try := range 6 {
		q := h.body(fmt.Sprintf("%s-%d", name, try), g)
		q["sample_prompts"], q["sample_steps"], q["sample_tokens"] = []string{"Once upon a time", "What is a fox?"}, 1, 8<<try
		name := q["name"].(string)
		h.post("/adapters", q).want(http.StatusAccepted)
		for h.adapter(name).Job.State != "succeeded" && *h.adapter(name).Job.Step < 3 {
			select {
			case <-h.t.Context().Done():
				h.t.Fatal("the test was ended")
			case <-time.After(10 * time.Millisecond):
			}
		}
		if r := h.post("/adapters/"+name+"/pause", nil); r.Status == http.StatusConflict {
			continue
		} else {
			r.want(200)
		}
		at := *h.wait(name, "paused").Job.Step
		if at < 3 || at >= g.Steps {
			h.t.Fatalf("paused at step %d of %d", at, g.Steps)
		}
		h.t.Logf("paused at step %d", at)
		h.post("/adapters/"+name+"/resume", nil).want(200)
		return h.ended(name)
	}
	h.t.Fatal("no job could be paused before it ended")
	return goldenJob{}
}

// online goes on from the live version after a run of ten steps with the examples that the golden run of twenty takes then: its loss is the golden run's, and
// what the live version itself says of them.
func (h *goldenHive) online(name string, runs map[string]goldentest.Run) {
	h.t.Helper()
	g := runs["kaiming_corrected"]
	done := runs[name].Steps
	from := done * g.Batch % len(h.examples)
	rest := slices.Concat(h.examples[from:], h.examples[:from])
	batch := rest[:g.Batch]
	before := h.served(name, batch)
	q := h.body(name, g)
	q["max_steps"], q["examples"] = g.Steps-done, tokens(rest)
	for _, k := range []string{"name", "rank", "alpha"} {
		delete(q, k)
	}
	h.post("/adapters/"+name+"/examples", q).want(http.StatusAccepted)
	j := h.ended(name)
	loss, _, _ := goldentest.Tolerances(devicetest.Rounds())
	first := j.steps[0].Loss
	off := func(got, want float64) float64 { return math.Abs(got-want) / want }
	h.t.Logf("going on, the first loss is %.2g off the golden run's and %.2g off what is served", off(first, g.Losses[done]), off(first, before))
	if !(off(first, before) <= loss) {
		h.t.Errorf("going on, the first loss is %g, the live version's %g", first, before)
	}
	if !(off(first, g.Losses[done]) <= loss) { // though the version's B is rounded to bfloat16
		h.t.Errorf("going on, the first loss is %g, the golden run's %g", first, g.Losses[done])
	}
	a := h.adapter(name)
	if *a.LiveVersion != 2 || j.version.Version != 2 || j.version.Parent == nil || *j.version.Parent != 1 {
		h.t.Errorf("after going on: %s", mustJSON(a))
	}
	after := h.served(name, batch)
	if next := h.served(name+"@2", batch); after != next || !(after < before/2) {
		h.t.Errorf("the live version's loss is %g, version 2's %g, version 1's was %g", after, next, before)
	}
}

func TestGoldenJobs(t *testing.T) {
	if testing.Short() {
		t.Skip("a hundred optimizer steps")
	}
	cp, err := checkpoint.OpenFS(demo.FS())
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	testGoldenJobs(t, "../finetune/testdata/demo", cp)
}

func TestSmolLM2GoldenJobs(t *testing.T) {
	dir, cp := goldentest.SmolLM2(t)
	testGoldenJobs(t, dir, cp)
}
