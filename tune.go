package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bhive/finetune"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// tuneCmd trains an adapter on a server and follows the job.
type tuneCmd struct {
	remote
	File            string   `arg:"" help:"JSONL file of examples ({\"messages\": …}, {\"prompt\", \"completion\"}, {\"text\"} or {\"input_ids\", \"labels\"} a line); - is the standard input."`
	Name            string   `required:"" short:"n" help:"Name of the adapter."`
	Continue        bool     `help:"Go on training from the adapter's live version and publish the next."`
	Rank            int      `help:"Rank of B; default: 16." least:"0"`
	Alpha           float64  `help:"Scaling is alpha/rank; default: twice the rank." least:"0"`
	LearningRate    string   `help:"A number or auto." default:"auto"`
	Epochs          float64  `help:"Passes over the examples; default: 3, or up to 10 where the examples are few." least:"0"`
	MaxSteps        int      `help:"Optimizer steps, instead of --epochs." least:"0"`
	BatchSize       int      `help:"Examples of an optimizer step; default: 16, or fewer where examples are few." least:"0"`
	ValidationSplit float64  `help:"Share of the examples held out; the best version on them is published." least:"0"`
	Seed            int64    `help:"Order of the examples and of the split."`
	Watch           bool     `short:"w" help:"Show texts of held-out prompts, by the base and by the candidate side by side, as the loss falls."`
	Prompt          []string `short:"p" help:"Prompt to watch; default: some of the examples' own. Implies --watch."`
}

// query are the settings that were given, as query parameters.
func (c *tuneCmd) query() url.Values {
	q := url.Values{"learning_rate": {c.LearningRate}}
	number := func(name string, v float64) {
		if v != 0 {
			q.Set(name, strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	whole := func(name string, v int64) { // a float's form would have an exponent from a million on
		if v != 0 {
			q.Set(name, strconv.FormatInt(v, 10))
		}
	}
	whole("rank", int64(c.Rank))
	number("alpha", c.Alpha)
	number("epochs", c.Epochs)
	whole("max_steps", int64(c.MaxSteps))
	whole("batch_size", int64(c.BatchSize))
	number("validation_split", c.ValidationSplit)
	whole("seed", c.Seed)
	if !c.Continue {
		q.Set("name", c.Name)
	}
	prompts := c.Prompt
	if c.Watch && len(prompts) == 0 {
		prompts = []string{"auto"}
	}
	if len(prompts) > 0 {
		b, err := json.Marshal(prompts)
		if err != nil {
			panic(err) // strings marshal
		}
		q.Set("sample_prompts", string(b))
	}
	return q
}

// Run submits the examples, follows the job to its end and says how to call the new adapter.
func (c *tuneCmd) Run(ctx context.Context) error {
	file := os.Stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		file = f
	}
	path := "/adapters"
	if c.Continue {
		path = adapterPath(c.Name, "examples")
	}
	answer, err := c.send(ctx, http.MethodPost, path+"?"+c.query().Encode(), "application/x-ndjson", file)
	if err != nil {
		return err
	}
	answer.Body.Close()
	view := newTuneView(os.Stdout)
	last, err := c.follow(ctx, view)
	view.close()
	if err != nil {
		return err
	}
	switch {
	case last.Result != nil:
		c.done(*last.Result)
		return nil
	case last.Error != nil:
		return fmt.Errorf("training failed: %s", last.Error.Message)
	}
	return fmt.Errorf("the job ended as %s", last.State)
}

// follow reads the job's events to their end, across broken connections, and returns what it ended with.
func (c *tuneCmd) follow(ctx context.Context, view *tuneView) (end finetune.Event, err error) {
	seen := int64(0)
	for attempt := 0; ; attempt++ {
		answer, err := c.send(ctx, http.MethodGet, adapterPath(c.Name, "events")+"?after="+strconv.FormatInt(seen, 10), "", nil)
		if err == nil {
			err = events(answer.Body, func(data []byte) error {
				var e struct {
					Error *struct{ Message string } // in place of an event
					Data  finetune.Event
				}
				if err := json.Unmarshal(data, &e); err != nil {
					return fmt.Errorf("reading an event: %w", err)
				}
				if e.Error != nil {
					return errors.New(e.Error.Message)
				}
				attempt, seen = 0, e.Data.Seq
				view.show(e.Data)
				if e.Data.Result != nil {
					end.Result = e.Data.Result
				}
				if e.Data.Error != nil {
					end.Error = e.Data.Error
				}
				if e.Data.State != "" {
					end.State = e.Data.State
				}
				return nil
			})
			answer.Body.Close()
		}
		if end.State.Final() {
			return end, nil
		}
		if ctx.Err() != nil {
			return end, fmt.Errorf("%w; the job goes on: bhive adapters show %s", ctx.Err(), c.Name)
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if attempt == 5 {
			return end, fmt.Errorf("following the job: %w", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// done says that the adapter is live and how to call it.
func (c *tuneCmd) done(r finetune.Result) {
	prompt := "Hello!"
	if len(c.Prompt) > 0 && c.Prompt[0] != "auto" {
		prompt = c.Prompt[0]
	}
	fmt.Printf("%s@%d is live (loss %.3f at step %d). Try it:\n%s", r.Adapter, r.Version, r.Loss, r.Step, c.hint(r.Adapter, prompt))
}

// hint is how to call an adapter of the server that was asked, with a key where that one wants it.
func (c *tuneCmd) hint(adapter, prompt string) string {
	body, err := json.Marshal(map[string]any{"model": adapter, "messages": []turn{{"user", prompt}}})
	if err != nil {
		panic(err) // strings marshal
	}
	at, server, key := strings.TrimSuffix(c.Server, "/"), "", ""
	if at != "http://127.0.0.1:8080" { // where the verbs look for one
		server = " --server " + at
	}
	if c.APIKey != "" {
		key = ` -H "Authorization: Bearer $BHIVE_API_KEY"`
	}
	return fmt.Sprintf("\n  bin/bhive chat%s -m %s\n\n  curl %s/v1/chat/completions -H 'Content-Type: application/json'%s -d '%s'\n",
		server, adapter, at, key, strings.ReplaceAll(string(body), "'", `'\''`))
}

// tuneView shows a job's progress: a bar on a terminal, lines elsewhere.
type tuneView struct {
	bars     *mpb.Progress // nil where the output is no terminal
	bar      *mpb.Bar
	progress atomic.Pointer[finetune.Progress]
	printed  time.Time
	out      io.Writer
	width    int
}

func newTuneView(out *os.File) *tuneView {
	v := &tuneView{out: out, width: 100}
	if !term.IsTerminal(int(out.Fd())) {
		return v
	}
	if w, _, err := term.GetSize(int(out.Fd())); err == nil && w > 40 {
		v.width = w
	}
	v.bars = mpb.New(mpb.WithOutput(out))
	v.out = v.bars
	return v
}

func (v *tuneView) start(steps int) {
	stat := func(f func(p *finetune.Progress) string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string {
			if p := v.progress.Load(); p != nil {
				return f(p)
			}
			return ""
		})
	}
	v.bar = v.bars.AddBar(int64(steps), mpb.PrependDecorators(decor.CountersNoUnit("step %d/%d ")),
		mpb.AppendDecorators(stat(func(p *finetune.Progress) string {
			return fmt.Sprintf(" loss %.3f  %.0f tok/s  %s left", p.Loss, p.TokensPerSec, seconds(p.SecondsLeft))
		})))
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Second)
}

func (v *tuneView) show(e finetune.Event) {
	switch {
	case e.Sample != nil:
		fmt.Fprint(v.out, sideBySide(*e.Sample, v.width))
	case e.Type == finetune.EventProgress && e.Progress != nil:
		v.step(e.Progress)
	case e.Type == finetune.EventCheckpoint:
	case e.Message != "":
		fmt.Fprintln(v.out, e.Message)
	}
}

func (v *tuneView) step(p *finetune.Progress) {
	v.progress.Store(p)
	if v.bars != nil {
		if v.bar == nil {
			v.start(p.Steps)
		}
		v.bar.SetCurrent(int64(p.Step))
		return
	}
	if time.Since(v.printed) > 2*time.Second || p.Step == p.Steps {
		v.printed = time.Now()
		fmt.Fprintf(v.out, "step %d/%d  loss %.3f  %.0f tok/s  %s left\n", p.Step, p.Steps, p.Loss, p.TokensPerSec, seconds(p.SecondsLeft))
	}
}

func (v *tuneView) close() {
	if v.bars == nil {
		return
	}
	if v.bar != nil && !v.bar.Completed() {
		v.bar.Abort(false)
	}
	v.bars.Wait()
}

// sideBySide sets a sample's two texts in columns under its prompt.
func sideBySide(s finetune.Sample, width int) string {
	column := max((width-3)/2, 16)
	left, right := wrap("base: "+s.Base, column), wrap("candidate: "+s.Candidate, column)
	var b strings.Builder
	fmt.Fprintf(&b, "\nstep %d · %s\n", s.Step, strings.Join(strings.Fields(s.Prompt), " "))
	for i := range max(len(left), len(right)) {
		var l, r string
		if i < len(left) {
			l = left[i]
		}
		if i < len(right) {
			r = right[i]
		}
		fmt.Fprintf(&b, "%s%s │ %s\n", l, strings.Repeat(" ", max(column-len([]rune(l)), 0)), r)
	}
	return b.String()
}

// wrap breaks a text into lines of at most width characters, at spaces where it can.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		for len([]rune(word)) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			lines, word = append(lines, string([]rune(word)[:width])), string([]rune(word)[width:])
		}
		switch {
		case line == "":
			line = word
		case len([]rune(line))+1+len([]rune(word)) > width:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
