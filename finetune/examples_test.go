package finetune

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"bhive/infer/chat"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// split shows what of an example is trained.
func split(t *testing.T, enc Encoder, e Example) (all, trained string) {
	t.Helper()
	var ids, labels []int
	for i, id := range e.IDs {
		ids = append(ids, int(id))
		if e.Labels[i] >= 0 {
			labels = append(labels, int(e.Labels[i]))
		}
	}
	b := enc.(*baseEncoder)
	return b.tok.Decode(ids, false), b.tok.Decode(labels, false)
}

func TestReadExamples(t *testing.T) {
	enc := demoEncoder(t)
	for _, c := range []struct {
		line         string
		raw          bool
		all, trained string
	}{
		{line: `{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]}`,
			all: "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n", trained: "Hello.<|im_end|>"},
		{line: `{"messages":[{"role":"user","content":[{"type":"text","text":"A"},{"type":"text","text":"B"}]},{"role":"assistant","content":"no","weight":0},{"role":"user","content":"C"},{"role":"assistant","content":"yes","weight":1}]}`,
			all:     "<|im_start|>user\nAB<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n",
			trained: "yes<|im_end|>"},
		{line: `{"prompt":"2+2?","completion":"Four."}`, all: "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n", trained: "Four.<|im_end|>"},
		{line: `{"prompt":"2+2=","completion":" four","source":"ignored"}`, raw: true, all: "2+2= four<|im_end|>", trained: " four<|im_end|>"},
		{line: `{"tools":[{"type":"function","function":{"name":"f"}}],"messages":[{"role":"system","content":"S"},{"role":"user","content":"Hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"b\":1,\"a\":2}"}}]},{"role":"tool","tool_call_id":"c","content":"3"},{"role":"assistant","content":"It is 3."}]}`,
			all: "<|im_start|>system\nS\n\nYou may call these functions:\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools>\nWrite a call as:\n<tool_call>\n{\"name\": NAME, \"arguments\": OBJECT}\n</tool_call><|im_end|>\n" +
				"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": 2}}\n</tool_call><|im_end|>\n" +
				"<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\nIt is 3.<|im_end|>\n",
			trained: "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": 2}}\n</tool_call><|im_end|>It is 3.<|im_end|>"},
		{line: `{"text":"Once upon a time."}`, all: "Once upon a time.<|im_end|>", trained: " upon a time.<|im_end|>"},
	} {
		ex, err := ReadExamples(t.Context(), strings.NewReader("\ufeff"+c.line+"\r\n\n"), enc, ReadOptions{MaxLength: 400, Raw: c.raw})
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		all, trained := split(t, enc, ex.Examples[0])
		if c.all != all || c.trained != trained {
			t.Errorf("%s: %q, trained %q", c.line, all, trained)
		}
	}
}

// TestGoldenRendering: our rendering and masks are those of the golden training examples.
func TestGoldenRendering(t *testing.T) {
	enc := demoEncoder(t)
	for i, want := range goldenExamples(t, "testdata/demo") {
		text, _ := split(t, enc, want)
		user, answer, _ := strings.Cut(strings.TrimPrefix(text, "<|im_start|>user\n"), "<|im_end|>\n<|im_start|>assistant\n")
		ids, trained, err := enc.Chat([]Message{{Role: "user", Content: user}, {Role: "assistant", Content: strings.TrimSuffix(answer, "<|im_end|>\n"), Train: true}}, nil, len(want.IDs))
		if err != nil {
			t.Fatal(err)
		}
		got := newExample(ids, trained)
		// The golden files train the line break behind the end of a turn too, which nobody generates.
		want.Labels[len(want.Labels)-2] = -1
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("example %d, %q (-want +got):\n%s", i, text, d)
		}
	}
}

// TestTokenExamples: examples that are tokens already are taken as they are, their labels shifted.
func TestTokenExamples(t *testing.T) {
	for _, c := range []struct {
		line        string
		ids, labels []int32
	}{
		{`{"input_ids":[5,6,7],"labels":[-100,6,7],"attention_mask":[1,1,1],"token_type_ids":[0,0,0]}`, []int32{5, 6, 7}, []int32{6, 7, -1}},
		{`{"input_ids":[5,6,7],"labels":[5,-100,9]}`, []int32{5, 6, 7}, []int32{-1, 9, -1}},
		{`{"input_ids":[5,6],"labels":null,"text":null}`, []int32{5, 6}, []int32{6, -1}},
	} {
		ex, err := ReadExamples(t.Context(), strings.NewReader(c.line), wordEncoder{}, ReadOptions{MaxLength: 9, Vocab: 10})
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		if d := cmp.Diff([]Example{{IDs: c.ids, Labels: c.labels}}, ex.Examples); d != "" || ex.Prompts[0] != "" {
			t.Errorf("%s: prompt %q (-want +got):\n%s", c.line, ex.Prompts[0], d)
		}
	}
}

func TestBadExamples(t *testing.T) {
	enc := demoEncoder(t)
	good := `{"prompt":"a","completion":"b"}`
	for _, c := range []struct{ name, text, want string }{
		{"malformed", good + "\n{\"text\": \n" + good + "\nnot JSON\n", "line 2: not a JSON object: unexpected end of JSON input; line 4: not a JSON object: invalid character 'o' in literal null (expecting 'u')"},
		{"not an object", "[1]\n5\nnull\n", "line 1: not a JSON object"},
		{"no form", `{"a":1}`, "line 1: want messages, or prompt and completion, or text"},
		{"two forms", `{"text":"a","prompt":"b","completion":"c"}`, "line 1: want only one of"},
		{"role", `{"messages":[{"role":"user","content":"x"},{"role":"robot","content":"x"}]}`, `line 1: messages[1].role: must be system, user, assistant or tool, is "robot"`},
		{"role type", `{"messages":[{"role":3,"content":"x"}]}`, "line 1: messages[0].role: must be a string, is a number"},
		{"content type", `{"messages":[{"role":"user","content":{}}]}`, "line 1: messages[0].content: must be a string or an array of text parts, is an object"},
		{"part", `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, `line 1: messages[0].content[0].type: must be text, is "image_url"`},
		{"weight", `{"messages":[{"role":"assistant","content":"x","weight":0.5}]}`, "line 1: messages[0].weight: must be 0 or 1, is 0.5"},
		{"weight of a user", `{"messages":[{"role":"user","content":"x","weight":1}]}`, "line 1: messages[0].weight: may be 1 only for the assistant"},
		{"nothing trained", `{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"x","weight":0}]}`, "line 1: messages: nothing to learn"},
		{"all masked", `{"text":""}`, "line 1: nothing to learn: no token of the example is trained"},
		{"tools", `{"messages":[{"role":"assistant","content":"x"}],"tools":7}`, "line 1: tools: must be an array, is a number"},
		{"tool", `{"messages":[{"role":"assistant","content":"x"}],"tools":[{}]}`, "line 1: tools[0].function: is missing"},
		{"tool's name", `{"messages":[{"role":"assistant","content":"x"}],"tools":[{"function":{}}]}`, "line 1: tools[0].function.name: is missing"},
		{"functions", `{"messages":[{"role":"assistant","content":"x"}],"functions":[{}]}`, "line 1: functions: is not supported"},
		{"a user's call", `{"messages":[{"role":"user","content":"x","tool_calls":[{}]}]}`, "line 1: messages[0].tool_calls: may be made only by the assistant"},
		{"call", `{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}]}`, "line 1: messages[0].tool_calls[0].function.arguments: is missing"},
		{"arguments", `{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}]}`, "line 1: messages[0].tool_calls[0].function.arguments: must be a string of JSON"},
		{"completion", `{"prompt":"x"}`, "line 1: completion: is missing"},
		{"prompt type", `{"prompt":["x"],"completion":"y"}`, "line 1: prompt: must be a string, is an array"},
		{"too long", `{"text":"` + strings.Repeat("word ", 300) + `"}`, "more than the 100 that are possible"},
		{"long line", good + "\n" + `{"text":"` + strings.Repeat("x", 5000) + `"}` + "\n" + good, "line 2: the line is longer than 4000 bytes"},
		{"token forms", `{"input_ids":[1],"text":"x"}`, "line 1: want only one of messages, prompt and completion, text, and input_ids"},
		{"tokens", good + "\n" + `{"input_ids":"x"}`, "line 2: input_ids: must be an array of whole numbers, is a string"},
		{"tokens of text", `{"input_ids":["x"]}`, "line 1: input_ids: must be an array of whole numbers, is an array with something else in it"},
		{"no token", `{"input_ids":[1,null,2]}`, "line 1: input_ids: must be an array of whole numbers, is an array with something else in it"},
		{"token id", `{"input_ids":[1,2,400]}`, "line 1: input_ids[2]: must be a token id in [0, 400), is 400"},
		{"negative id", `{"input_ids":[-1]}`, "line 1: input_ids[0]: must be a token id in [0, 400), is -1"},
		{"label", `{"input_ids":[1,2],"labels":[-100,-1]}`, "line 1: labels[1]: must be -100 or a token id in [0, 400), is -1"},
		{"labels", `{"input_ids":[1,2],"labels":[1,2,3]}`, "line 1: labels: must be as many as input_ids, 2, are 3"},
		{"padding", `{"input_ids":[1,2,0],"attention_mask":[1,1,0]}`, "line 1: attention_mask[2]: must be 1, is 0: leave padding out"},
		{"mask", `{"input_ids":[1,2],"attention_mask":[1]}`, "line 1: attention_mask: must be as long as input_ids, 2, is 1 long"},
		{"no tokens", `{"input_ids":[]}`, "line 1: nothing to learn"},
		{"all tokens masked", `{"input_ids":[1,2],"labels":[2,-100]}`, "line 1: nothing to learn"},
		{"too many tokens", `{"input_ids":[1` + strings.Repeat(",1", 100) + `]}`, "line 1: the example has 101 tokens, more than the 100 that are possible"},
		{"UTF-8", "{\"text\":\"\xff\"}", "line 1: not valid UTF-8"},
		{"empty", "\n\n", "line 2: there are no examples"},
	} {
		_, err := ReadExamples(t.Context(), strings.NewReader(c.text), enc, ReadOptions{MaxLength: 100, Vocab: 400, Limits: Limits{LineBytes: 4000}})
		var e *ExamplesError
		if !errors.As(err, &e) || !errors.Is(err, ErrExamples) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		_, checked := ReadExamples(t.Context(), strings.NewReader(c.text), enc, ReadOptions{MaxLength: 100, Vocab: 400, Limits: Limits{LineBytes: 4000}, Check: true})
		if fmt.Sprint(checked) != fmt.Sprint(err) {
			t.Errorf("%s: where it is only checked: %v", c.name, checked)
		}
	}
	many := strings.Repeat("{}\n", 500)
	_, err := ReadExamples(t.Context(), strings.NewReader(many), enc, ReadOptions{MaxLength: 100})
	if e, ok := errors.AsType[*ExamplesError](err); !ok || e.Total != 500 || len(e.Lines) != 50 || !strings.HasSuffix(err.Error(), "and 450 more") {
		t.Errorf("many bad lines: %v", err)
	}
	ex, err := ReadExamples(t.Context(), strings.NewReader(`{"text":"`+strings.Repeat("word ", 300)+`"}`), enc, ReadOptions{MaxLength: 100, Truncate: true})
	if err != nil || ex.Truncated != 1 || len(ex.Examples[0].IDs) != 100 || ex.Examples[0].Labels[99] != -1 {
		t.Errorf("truncating: %+v, %v", ex, err)
	}
	for _, check := range []bool{false, true} {
		hundred := strings.Repeat(good+"\n", 100)
		if _, err := ReadExamples(t.Context(), strings.NewReader(hundred), enc, ReadOptions{MaxLength: 100, Limits: Limits{Examples: 10}, Check: check}); err == nil {
			t.Error("more examples than allowed pass")
		}
		if ex, err := ReadExamples(t.Context(), strings.NewReader(hundred), enc, ReadOptions{MaxLength: 100, Check: check}); err != nil || ex.Number != 100 ||
			check != (len(ex.Examples)+len(ex.Prompts) == 0) {
			t.Errorf("only checked %v: %d examples, of which %d are kept, %v", check, ex.Number, len(ex.Examples), err)
		}
	}
}

// wordEncoder is an Encoder that needs no tokenizer.
type wordEncoder struct{}

func (wordEncoder) ids(s string) (out []int) {
	for _, b := range []byte(s) {
		out = append(out, int(b))
	}
	return out
}
func (e wordEncoder) Chat(turns []Message, _ []json.RawMessage, _ int) (ids []int, trained []bool, err error) {
	for _, t := range turns {
		for _, id := range e.ids(t.Role + t.Content) {
			ids, trained = append(ids, id), append(trained, t.Train)
		}
	}
	return ids, trained, nil
}
func (e wordEncoder) HasChat() bool                  { return true }
func (e wordEncoder) Text(s string) []int            { return e.ids(s) }
func (e wordEncoder) Continue(s string) []int        { return e.ids(s) }
func (e wordEncoder) Prompt(s string) ([]int, error) { return e.ids(s), nil }
func (e wordEncoder) End() int                       { return 256 }
func (e wordEncoder) Stops(id int) bool              { return id == 256 }
func (e wordEncoder) Decode([]int) string            { return "" }

func FuzzReadExamples(f *testing.F) {
	for _, s := range []string{`{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello.","weight":1}]}`, `{"prompt":"a","completion":"b"}`,
		`{"text":"x"}`, `{"input_ids":[1,2,3],"labels":[-100,2,3],"attention_mask":[1,1,1]}`, "{}\n[]\nnull", "{\"text\":\"\xff\"}", `{"messages":[{"content":[{"type":"text"}]}]}`, "\ufeff\r\n", `{"text":1}{`} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, truncate bool) {
		ex, err := ReadExamples(context.Background(), bytes.NewReader(data), wordEncoder{}, ReadOptions{MaxLength: 64, Truncate: truncate, Vocab: 256, Limits: Limits{LineBytes: 512, Examples: 20}})
		if err != nil {
			var e *ExamplesError
			if !errors.As(err, &e) || len(e.Lines) == 0 || e.Lines[0].Line < 1 {
				t.Fatalf("error %v", err)
			}
			return
		}
		for _, e := range ex.Examples {
			if len(e.IDs) == 0 || len(e.IDs) > 64 || len(e.Labels) != len(e.IDs) || e.Trained() == 0 {
				t.Fatalf("example %+v", e)
			}
		}
	})
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{`{"name":"a","examples":[{"text":"x"}],"learning_rate":"auto"}`, `{"learning_rate":1e-3,"epochs":2.5}`, `{"nme":1}`, `{"rank":"8"}`, `{"learning_rate":[]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSpec(bytes.NewReader(data))
		if err == nil {
			err = s.Validate()
		}
		var e *FieldError
		if err != nil && (!errors.As(err, &e) || e.Field == "") {
			t.Fatalf("error without a field: %v", err)
		}
		if err == nil {
			if _, err := json.Marshal(s); err != nil && len(s.Examples) == 0 {
				t.Fatal(err)
			}
		}
	})
}

func FuzzDecodeCheckpoint(f *testing.F) {
	var b bytes.Buffer
	c := &Checkpoint{position: position{Step: 3}, B: []float32{1, 2}, M: []float32{3, 4}, V: []float32{5, 6}, Best: []float32{7, 8}}
	if err := c.Encode(&b, "job"); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:40])
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeCheckpoint(bytes.NewReader(data), "job", 2)
		if err != nil {
			if !errors.Is(err, ErrCheckpoint) {
				t.Fatal(err)
			}
			return
		}
		var again bytes.Buffer
		if err := got.Encode(&again, "job"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSpecErrors(t *testing.T) {
	for text, field := range map[string]string{`{"rank":"8"}`: "rank", `{"epochs":[]}`: "epochs", `{"nme":"x"}`: "nme", `{"learning_rate":"fast"}`: "learning_rate", `{`: "body", `[]`: "body",
		`{"name":"a"} {"rank":8}`: "body", `{"name":"a"}}`: "body"} {
		_, err := ParseSpec(strings.NewReader(text))
		if e, ok := errors.AsType[*FieldError](err); !ok || e.Field != field {
			t.Errorf("%s: %v", text, err)
		}
	}
	s, err := ParseSpec(strings.NewReader(`{"name":"a"}` + "\n"))
	if err != nil || s.Validate() != nil || !s.LearningRate.Auto || s.Scheduler != ScheduleCosine || s.Publish != PublishLast || *s.MaxGradNorm != 1 || !*s.Shuffle {
		t.Errorf("defaults: %+v, %v", s, err)
	}
	if b, err := json.Marshal(s); err != nil || !bytes.Contains(b, []byte(`"learning_rate":"auto"`)) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestSchedule(t *testing.T) {
	at := func(kind string, warmup, steps int) (out []float64) {
		for s := range steps {
			out = append(out, math.Round(1e6*Schedule{kind, 2, warmup, steps}.At(s))/1e6)
		}
		return out
	}
	for _, c := range []struct{ got, want []float64 }{
		{at(ScheduleConstant, 2, 4), []float64{1, 2, 2, 2}},
		{at(ScheduleLinear, 0, 4), []float64{2, 1.5, 1, 0.5}},
		{at(ScheduleCosine, 1, 5), []float64{2, 2, 1.707107, 1, 0.292893}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%v, want %v", c.got, c.want)
		}
	}
}

// TestBatches: each epoch has every example once, chunks keep within their bounds, and a cursor fixes all that follows.
func TestBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "n")
		capacity := rapid.IntRange(20, 60).Draw(t, "capacity")
		seqs := rapid.IntRange(1, 8).Draw(t, "seqs")
		set := make([]Example, n)
		for i := range set {
			k := rapid.IntRange(1, 20).Draw(t, fmt.Sprint("length ", i))
			set[i] = Example{IDs: make([]int32, k), Labels: make([]int32, k)}
		}
		b := Batching{Batches: rapid.IntRange(1, 3).Draw(t, "batches")}
		if rapid.Bool().Draw(t, "by tokens") {
			b.Tokens = rapid.IntRange(1, 100).Draw(t, "tokens")
		} else {
			b.Examples = rapid.IntRange(1, 10).Draw(t, "examples")
		}
		seed := rapid.Int64().Draw(t, "seed")
		o := NewOrder(n, seed)
		var cursor int64
		var seen []int
		for range 20 {
			chunks, trained, next := b.batch(set, o, cursor, capacity, seqs)
			again, _, _ := b.batch(set, NewOrder(n, seed), cursor, capacity, seqs)
			if d := cmp.Diff(chunks, again); d != "" {
				t.Fatal(d)
			}
			labels := 0
			for i, c := range chunks {
				tokens := 0
				for _, e := range c.Examples {
					tokens += len(set[e].IDs)
					labels += set[e].Trained()
				}
				if tokens != c.Tokens || tokens > capacity || len(c.Examples) == 0 || len(c.Examples) > seqs || c.Last != (i == len(chunks)-1) {
					t.Fatalf("chunk %+v of %d tokens", c, tokens)
				}
				seen = append(seen, c.Examples...)
			}
			if labels != trained || int(next) != len(seen) {
				t.Fatalf("%d labels, said %d; cursor %d after %d", labels, trained, next, len(seen))
			}
			cursor = next
		}
		for at := 0; at+n <= len(seen); at += n {
			epoch := slices.Sorted(slices.Values(seen[at : at+n]))
			if epoch[0] != 0 || epoch[n-1] != n-1 || len(slices.Compact(epoch)) != n {
				t.Fatalf("epoch %v", seen[at:at+n])
			}
		}
	})
}

// TestLongConversations: what is cut off, or refused, of a conversation is not looked through for trained turns.
func TestLongConversations(t *testing.T) {
	var turns []string
	for range 500 {
		turns = append(turns, `{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}`)
	}
	line := `{"messages":[` + strings.Join(turns, ",") + `]}`
	tok := demoEncoder(t).(*baseEncoder).tok
	// Only beginnings of up to 40 messages can be rendered, and the whole.
	tmpl, err := chat.Parse(`{% if messages | length > 40 and messages | length < 1000 %}{{ raise_exception('too long') }}{% endif %}{% for m in messages %}`+
		`<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}`, chat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	enc := NewEncoder(tok, tmpl, []int{1})
	ex, err := ReadExamples(t.Context(), strings.NewReader(line), enc, ReadOptions{MaxLength: 50, Truncate: true, Vocab: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if all, trained := split(t, enc, ex.Examples[0]); strings.Count(all, "Hello.<|im_end|>") != strings.Count(trained, "Hello.<|im_end|>") || trained == "" {
		t.Errorf("%q, trained %q", all, trained)
	}
	var bad *ExamplesError
	if _, err := ReadExamples(t.Context(), strings.NewReader(line), enc, ReadOptions{MaxLength: 50, Vocab: 1 << 20}); !errors.As(err, &bad) || !strings.Contains(bad.Lines[0].Message, "more than the 50") {
		t.Errorf("without truncate: %v", err)
	}
}
