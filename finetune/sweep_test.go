package finetune

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bhive/adapters"
	"bhive/infer"
	"bhive/infer/checkpoint"
)

// sweepExamples is a style to be learnt: 160 questions with answers in a pirate's voice that depend on the question.
func sweepExamples(t testing.TB, enc Encoder) []Example {
	t.Helper()
	kinds := map[string][]string{
		"an animal":           strings.Fields("cat dog cow horse sheep goat pig hen duck fox wolf bear lion tiger mouse rabbit frog fish whale owl"),
		"food for the crew":   strings.Fields("apple pear plum bread cheese milk soup cake rice corn bean egg honey butter carrot potato onion tomato lemon grape"),
		"a thing in the hold": strings.Fields("hammer chair table lamp spoon cup knife rope ball book clock bell box bag hat shoe coat key door bed"),
		"a place ashore":      strings.Fields("house school farm garden forest river lake hill town city market park road bridge beach barn shop church field island"),
	}
	var lines []string
	for _, kind := range []string{"an animal", "food for the crew", "a thing in the hold", "a place ashore"} {
		for _, w := range kinds[kind] {
			lines = append(lines, fmt.Sprintf(`{"prompt":"What is a %s?","completion":"Arr! A %s be %s, matey."}`, w, w, kind),
				fmt.Sprintf(`{"prompt":"Do you like the %s?","completion":"Aye, the %s! I saw %s like it on the seven seas."}`, w, w, kind))
		}
	}
	ex, err := ReadExamples(context.Background(), strings.NewReader(strings.Join(lines, "\n")), enc, ReadOptions{MaxLength: 128})
	if err != nil {
		t.Fatal(err)
	}
	return ex.Examples
}

// TestSweepLearningRate measures the held-out loss over learning rates, ranks and bases: BHIVE_SWEEP=demo or smollm2. Its tables
// are in docs/learning-rate.md.
func TestSweepLearningRate(t *testing.T) {
	which := os.Getenv("BHIVE_SWEEP")
	var cp *checkpoint.Checkpoint
	factors := []float64{0.125, 0.25, 0.5, 1, 2, 4}
	methods := []adapters.Method{adapters.Orthonormal, adapters.Kaiming, adapters.Activations}
	ranks := []int{4, 8, 16, 32, 64}
	enc := demoEncoder(t)
	switch which {
	case "demo":
		cp = openDemo(t)
	case "smollm2":
		files, _ := filepath.Glob("../models/*.gguf")
		if len(files) == 0 {
			t.Skip("SmolLM2's GGUF is not in models: see make smollm2")
		}
		var err error
		if cp, err = checkpoint.Open(files[0]); err != nil {
			t.Fatal(err)
		}
		defer cp.Close()
		enc = encoderOf(t, cp)
		methods = methods[:1]
		factors, ranks = []float64{0.5, 1, 2}, []int{16, 64, 4}
	default:
		t.Skip("BHIVE_SWEEP is neither demo nor smollm2")
	}
	if os.Getenv("BHIVE_SWEEP_METHOD") != "" {
		methods = []adapters.Method{adapters.Method(os.Getenv("BHIVE_SWEEP_METHOD"))}
	}
	examples := sweepExamples(t, enc)
	train, held := splitValidation(len(examples), 0.2, 1)
	pick := func(list []int) (out []Example) {
		for _, i := range list {
			out = append(out, examples[i])
		}
		return out
	}
	hash := infer.BaseHash(cp)
	be := openDevice(t, false)
	for _, method := range methods {
		c := adapters.BasisConfig{Method: method, Seed: 1, R: 64, Geometry: geometry(cp.Config()), BaseHash: hash}
		if method == adapters.Activations {
			plain := load(t, be, cp, nil, format())
			var texts [][]int32
			for _, s := range infer.CalibrationTexts() {
				var ids []int32
				for _, id := range enc.Text(s) {
					ids = append(ids, int32(id))
				}
				texts = append(texts, ids[:min(len(ids), 512)])
			}
			cov, err := infer.Calibrate(t.Context(), plain, texts, infer.CalibrateConfig{})
			if err != nil {
				t.Fatal(err)
			}
			c.Cov = cov
		}
		basis, err := adapters.NewBasis(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		m := load(t, be, cp, basis, format())
		fmt.Printf("| %s | auto | %s |\n", method, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(factors)), " | "), "[]"))
		for _, rank := range ranks {
			auto := AutoRate(basis, rank, 2*float64(rank))
			fmt.Printf("| r%d | %.2g |", rank, auto)
			for _, f := range factors {
				tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 512})
				steps := 3 * len(train) / 16
				loss := math.NaN()
				addLane(t, tr, LaneOptions{Rank: rank, Alpha: 2 * float64(rank), Train: pick(train), Held: pick(held), Seed: 1, Batching: Batching{Examples: 16, Batches: 1},
					Schedule: Schedule{Kind: ScheduleCosine, Rate: f * auto, Steps: steps}, Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-6, Clip: 1,
					Correction: autoCorrection(method), Report: func(r Report) {
						if r.Eval {
							loss = r.Loss
						}
					}})
				runUnits(t, tr)
				tr.Close()
				fmt.Printf(" %.3f |", loss)
			}
			fmt.Println()
		}
		m.Close()
	}
}
