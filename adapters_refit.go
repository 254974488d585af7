package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/server/api"
)

// refitFlags are those of an import that fits a LoRA's outputs anew; it runs the model on this machine.
type refitFlags struct {
	modelFlags
	Refit      string `help:"JSONL file of examples, as for bhive tune: B is fitted to the LoRA's outputs on them, where a projection would keep of its weights what it can. The base model (--model) is run here." placeholder:"FILE"`
	RefitCheck string `help:"With --refit: JSONL file of other examples to measure the losses on, in place of the same ones." placeholder:"FILE"`
}

// refitting is what a refit reads.
type refitting struct {
	peft  *adapters.PEFT
	basis *adapters.Basis  // the server's
	texts []infer.Sequence // that B is fitted on
	check []infer.Sequence // that the losses are measured on

	sample   []int       // of check, on which distributions are compared
	original [][]float32 // of the LoRA: log-probabilities at the sampled positions
}

// losses are what was measured of one adapter, in nats a trained token.
type losses struct {
	how  string
	mean float64
	kl   float64 // mean KL divergence from the LoRA's distribution, on some of the examples
}

// maxCompared bounds the positions at which distributions are compared: each keeps a distribution of the LoRA's in memory.
const maxCompared = 512

// refit fits a LoRA anew over the server's basis and publishes it.
func (c *importCmd) refit(ctx context.Context, log *slog.Logger) error {
	var r refitting
	var err error
	if r.basis, err = c.fetchBasis(ctx); err != nil {
		return err
	}
	if r.peft, err = adapters.ReadPEFT(os.DirFS(c.Dirs[0]), r.basis.Geometry); err != nil {
		return fmt.Errorf("%s: %w", c.Dirs[0], err)
	}
	var table []losses
	original, err := c.original(ctx, log, &r)
	if err != nil {
		return err
	}
	table = append(table, original...)
	l, err := c.load(ctx, log, given(r.basis), nil)
	if err != nil {
		return err
	}
	defer l.close()
	projected, projection, err := r.basis.Adopt(r.peft)
	if err != nil {
		return err
	}
	if projection.Exact {
		return fmt.Errorf("%s needs no refit: its A's are the basis' own; import it as it is", c.Dirs[0])
	}
	if c.Rank > 0 {
		if projected, projection, err = r.basis.Project(r.peft, c.Rank); err != nil {
			return err
		}
	}
	// The first tokens count too: what B makes of them all others attend to.
	log.Info("measuring the inputs of all layers", "examples", len(r.texts))
	cov, err := infer.Calibrate(ctx, l.model, plainTokens(r.texts), infer.CalibrateConfig{Skip: -1})
	if err != nil {
		return err
	}
	fitted, report, err := r.basis.Refit(ctx, r.peft, adapters.RefitConfig{Rank: c.Rank, Cov: cov})
	if err != nil {
		return err
	}
	more, err := r.score(ctx, l.model, []string{"projected", "refit"}, []*adapters.Weights{projected, fitted})
	if err != nil {
		return err
	}
	c.printRefit(projection, report, append(table, more...))
	if c.DryRun {
		return nil
	}
	x, err := r.basis.Export(fitted, l.name)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	if err := x.WriteTar(&body, time.Now()); err != nil {
		return err
	}
	answer, err := c.send(ctx, "POST", adapterPath(c.Name, "import"), "application/x-tar", &body)
	if err != nil {
		return fmt.Errorf("publishing %s: %w", c.Name, err)
	}
	defer answer.Body.Close()
	var in api.AdapterImport
	if err := json.NewDecoder(answer.Body).Decode(&in); err != nil {
		return fmt.Errorf("publishing %s: reading the answer: %w", c.Name, err)
	}
	fmt.Printf("%s@%d is live: rank %d, %s\n", in.Name, in.Version.Version, in.Version.Rank, size(in.Version.Bytes))
	return nil
}

// maxBasisFile bounds what fetchBasis reads.
const maxBasisFile = 8 << 30

// fetchBasis takes the server's basis.
func (c *importCmd) fetchBasis(ctx context.Context) (*adapters.Basis, error) {
	answer, err := c.send(ctx, "GET", "/basis/file", "", nil)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxBasisFile))
	if err != nil {
		return nil, fmt.Errorf("reading the server's basis: %w", err)
	}
	b, err := adapters.LoadBasis(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return nil, fmt.Errorf("the server's basis: %w", err)
	}
	return b, nil
}

// given is a basis that is there already; the base must be its own.
func given(b *adapters.Basis) basisOf {
	return func(_ context.Context, hash string, _ adapters.Geometry, _ func() (*infer.Model, error)) (*adapters.Basis, error) {
		if hash != b.BaseHash {
			return nil, fmt.Errorf("%w: the server's is %.12s…, this one is %.12s…; name the server's with --model", adapters.ErrBaseMismatch, b.BaseHash, hash)
		}
		return b, nil
	}
}

// original reads the texts and measures the base and the LoRA as it is: over rows that are made for it alone.
func (c *importCmd) original(ctx context.Context, log *slog.Logger, r *refitting) ([]losses, error) {
	sum := 0
	for site := adapters.AttnIn; site < adapters.NumSites; site++ {
		sum = max(sum, r.peft.Rank*len(site.Projs()))
	}
	rows := min(sum, r.basis.Geometry.Hidden, r.basis.Geometry.QDim, r.basis.Geometry.FeedForward)
	best, err := adapters.BestBasis(ctx, []*adapters.PEFT{r.peft}, rows, r.basis.BaseHash)
	if err != nil {
		return nil, err
	}
	w, whole, err := best.Project(r.peft, rows)
	if err != nil {
		return nil, err
	}
	how := "the LoRA"
	if whole.Kept < 0.999 {
		how = fmt.Sprintf("the LoRA, %.1f %% of it", 100*whole.Kept)
	}
	l, err := c.load(ctx, log, func(ctx context.Context, hash string, g adapters.Geometry, plain func() (*infer.Model, error)) (*adapters.Basis, error) {
		if _, err := given(r.basis)(ctx, hash, g, plain); err != nil {
			return nil, err
		}
		return best, nil
	}, nil)
	if err != nil {
		return nil, err
	}
	defer l.close()
	encoder := finetune.NewEncoder(l.tokenizer, l.template, l.generation.EOS)
	if r.texts, err = readTexts(ctx, c.Refit, encoder, l.model.Positions); err != nil {
		return nil, err
	}
	if r.check = r.texts; c.RefitCheck != "" {
		if r.check, err = readTexts(ctx, c.RefitCheck, encoder, l.model.Positions); err != nil {
			return nil, err
		}
	}
	return r.score(ctx, l.model, []string{how, "the base"}, []*adapters.Weights{w, nil}) // the LoRA first: the others are compared with it
}

// readTexts renders a file of examples.
func readTexts(ctx context.Context, name string, encoder finetune.Encoder, longest int) ([]infer.Sequence, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading examples: %w", err)
	}
	defer f.Close()
	read, err := finetune.ReadExamples(ctx, f, encoder, finetune.ReadOptions{Param: name, MaxLength: longest})
	if err != nil {
		return nil, err
	}
	var texts []infer.Sequence
	for _, e := range read.Examples {
		texts = append(texts, infer.Sequence{Tokens: e.IDs, Labels: e.Labels})
	}
	return texts, nil
}

// score measures adapters on the check; nil is the base. The very first one is what the others are compared with.
func (r *refitting) score(ctx context.Context, m *infer.Model, how []string, ws []*adapters.Weights) ([]losses, error) {
	longest := 0
	for _, q := range r.check {
		longest = max(longest, len(q.Tokens))
	}
	s, err := infer.NewScorer(m, infer.ScorerConfig{KVTokens: max(2048, longest+16), Slots: 1})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var out []losses
	for i, w := range ws {
		slot := 0
		if w == nil {
			slot = adapters.BaseSlot
		} else if err := s.SetAdapter(0, w); err != nil {
			return nil, err
		}
		for j := range r.check {
			r.check[j].Adapter = slot
		}
		all, err := s.NLL(ctx, r.check)
		if err != nil {
			return nil, err
		}
		var total infer.Loss
		for _, l := range all {
			total.Sum, total.Tokens = total.Sum+l.Sum, total.Tokens+l.Tokens
		}
		line := losses{how: how[i], mean: total.Mean()}
		if line.kl, err = r.compare(ctx, s); err != nil {
			return nil, err
		}
		out = append(out, line)
	}
	return out, nil
}

// compare is the mean of KL(LoRA ‖ adapter) at the sampled positions of the check, whose sequences name the adapter; the first call remembers the LoRA.
func (r *refitting) compare(ctx context.Context, s *infer.Scorer) (float64, error) {
	first := r.original == nil
	if first {
		trained := 0
		for i := 0; i < len(r.check) && trained < maxCompared; i++ {
			r.sample = append(r.sample, i)
			for _, label := range r.check[i].Labels {
				if label >= 0 {
					trained++
				}
			}
		}
		r.original = make([][]float32, 0, maxCompared)
	}
	var seqs []infer.Sequence
	places := make([][]int, len(r.sample)) // position → index into original
	n := 0
	for i, at := range r.sample {
		seqs = append(seqs, r.check[at])
		places[i] = make([]int, len(r.check[at].Labels))
		for t, label := range r.check[at].Labels {
			if places[i][t] = -1; label >= 0 && n < maxCompared {
				places[i][t] = n
				n++
			}
		}
	}
	if first {
		r.original = make([][]float32, n)
	}
	sum := 0.0
	err := s.Logits(ctx, seqs, func(seq, position int, logits []float32) {
		at := places[seq][position]
		if at < 0 {
			return
		}
		most, total := float64(logits[0]), 0.0
		for _, v := range logits {
			most = max(most, float64(v))
		}
		for _, v := range logits {
			total += math.Exp(float64(v) - most)
		}
		log := most + math.Log(total)
		if first {
			r.original[at] = make([]float32, len(logits))
			for i, v := range logits {
				r.original[at][i] = float32(float64(v) - log)
			}
			return
		}
		for i, v := range logits {
			was := float64(r.original[at][i])
			sum += math.Exp(was) * (was - (float64(v) - log))
		}
	})
	return sum / float64(max(n, 1)), err
}

func plainTokens(texts []infer.Sequence) (out [][]int32) {
	for _, t := range texts {
		out = append(out, t.Tokens)
	}
	return out
}

func (c *importCmd) printRefit(projection, fit adapters.Projection, lines []losses) {
	w := table()
	fmt.Fprintf(w, "MODULE\tKEPT OF THE WEIGHTS, PROJECTED\tKEPT OF THE OUTPUTS, REFIT\n")
	for p := adapters.Q; p < adapters.NumProjs; p++ {
		of := func(all []adapters.ModuleKept) (out []adapters.ModuleKept) {
			for _, m := range all {
				if m.Proj == p {
					out = append(out, m)
				}
			}
			return out
		}
		if ms := of(fit.Modules); len(ms) > 0 {
			fmt.Fprintf(w, "%v\t%.2f %%\t%.2f %%\n", p, 100*kept(of(projection.Modules)), 100*kept(ms))
		}
	}
	fmt.Fprintf(w, "all\t%.2f %%\t%.2f %%\n", 100*projection.Kept, 100*fit.Kept)
	on := c.Refit
	if c.RefitCheck != "" {
		on = c.RefitCheck
	}
	fmt.Fprintf(w, "\nON %s\tLOSS\tKL FROM THE LORA", on)
	for _, l := range lines {
		fmt.Fprintf(w, "\n%s\t%.4f\t%.4f", l.how, l.mean, l.kl)
	}
	fmt.Fprintln(w)
	_ = w.Flush() // to the standard output
}

var errRefitOne = errors.New("--refit fits one adapter: give one directory, and --name or --dry-run")
