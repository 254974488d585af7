package finetune

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string
	Content string
	Train   bool // learn to write this turn

	ToolCalls  []json.RawMessage // of an assistant's turn
	ToolCallID string            // of a tool's
}

// Encoder turns texts into tokens as the base model expects them; [NewEncoder] makes the usual one.
type Encoder interface {
	// Chat renders turns, and the tools that the model may call in them, by the base's chat template. trained[i] says that token i belongs to a trained turn or ends it;
	// of tokens behind the first most it need not say so. It fails where the base has no template or the template refuses the turns.
	Chat(turns []Message, tools []json.RawMessage, most int) (ids []int, trained []bool, err error)
	// Prompt is a user's turn and the beginning of the assistant's.
	Prompt(user string) ([]int, error)
	// HasChat says whether there is a template.
	HasChat() bool
	// Text is a text's tokens, begun as the tokenizer begins one.
	Text(text string) []int
	// Continue is the tokens of a text that goes on from another.
	Continue(text string) []int
	// End is the token that ends a text, or −1.
	End() int
	// Stops says whether the model stops after a token.
	Stops(id int) bool
	// Decode is the text of tokens, special ones left out.
	Decode(ids []int) string
}

// Example is a sequence of tokens to learn from. Labels[i] is the token to be predicted after IDs[:i+1], or −1 where nothing is
// trained; the two have the same length.
type Example struct {
	IDs, Labels []int32
}

// Trained is the number of labels.
func (e Example) Trained() (n int) {
	for _, l := range e.Labels {
		if l >= 0 {
			n++
		}
	}
	return n
}

// Limits bound what a job's examples may be.
type Limits struct {
	FileBytes int64 // default: 256 MiB
	LineBytes int   // of one example; default: 1 MiB
	Examples  int   // default: 200,000
	Tokens    int64 // of all examples; default: 50 million
	Errors    int   // bad lines reported; default: 50
}

func (l *Limits) setDefaults() {
	setDefault(&l.FileBytes, 256<<20)
	setDefault(&l.LineBytes, 1<<20)
	setDefault(&l.Examples, 200_000)
	setDefault(&l.Tokens, 50_000_000)
	setDefault(&l.Errors, 50)
}

// ReadOptions say how examples are rendered.
type ReadOptions struct {
	Param     string // how errors call the source: training_file, validation_file, examples
	MaxLength int    // tokens of an example
	Truncate  bool   // cut longer ones
	Raw       bool   // prompt and completion as they stand
	Vocab     int    // token ids that examples given as tokens may use: [0, Vocab)
	Check     bool   // only look for errors: what is read is counted, and not kept
	Limits    Limits
}

// Examples is what a file holds.
type Examples struct {
	Examples  []Example
	Prompts   []string // the user's first turn, or prompt, or beginning of text, of the first few examples; "" of one that is tokens
	Number    int      // of examples
	Tokens    int64
	Truncated int // examples that were cut
}

// promptsKept is how many examples' prompts Examples remembers.
const promptsKept = 4096

// ReadExamples reads JSONL, an example a line, blank lines left out. All bad lines are reported in one *ExamplesError.
func ReadExamples(ctx context.Context, r io.Reader, enc Encoder, o ReadOptions) (*Examples, error) {
	o.Limits.setDefaults()
	out := &Examples{}
	bad := &ExamplesError{Param: o.Param}
	fail := func(line int, err error) {
		e := LineError{Line: line, Message: err.Error()}
		if f, ok := errors.AsType[*FieldError](err); ok {
			e.Field, e.Message = f.Field, f.Message
		}
		if bad.Total++; len(bad.Lines) < o.Limits.Errors {
			bad.Lines = append(bad.Lines, e)
		}
	}
	lines := lineReader{r: bufio.NewReaderSize(r, 64<<10), most: o.Limits.LineBytes}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		text, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, errLongLine) {
			return nil, fmt.Errorf("reading %s: %w", o.Param, err)
		}
		if lines.bytes > o.Limits.FileBytes {
			fail(lines.line, fmt.Errorf("the file is larger than %d bytes", o.Limits.FileBytes))
			return nil, bad
		}
		if err != nil {
			fail(lines.line, fmt.Errorf("the line is longer than %d bytes", o.Limits.LineBytes))
			continue
		}
		if lines.line == 1 {
			text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		if out.Number >= o.Limits.Examples {
			fail(lines.line, fmt.Errorf("more than %d examples", o.Limits.Examples))
			return nil, bad
		}
		e, prompt, err := parseExample(text, enc, o)
		if err != nil {
			fail(lines.line, err)
			continue
		}
		if len(e.IDs) > o.MaxLength {
			if !o.Truncate {
				fail(lines.line, fmt.Errorf("the example has %d tokens, more than the %d that are possible (truncate would cut it)", len(e.IDs), o.MaxLength))
				continue
			}
			e.IDs, e.Labels = e.IDs[:o.MaxLength:o.MaxLength], e.Labels[:o.MaxLength:o.MaxLength]
			e.Labels[o.MaxLength-1] = -1
			out.Truncated++
		}
		if e.Trained() == 0 {
			fail(lines.line, errors.New("nothing to learn: no token of the example is trained"))
			continue
		}
		if out.Tokens += int64(len(e.IDs)); out.Tokens > o.Limits.Tokens {
			fail(lines.line, fmt.Errorf("more than %d tokens", o.Limits.Tokens))
			return nil, bad
		}
		if out.Number++; o.Check {
			continue
		}
		out.Examples = append(out.Examples, e)
		if len(out.Prompts) < promptsKept {
			out.Prompts = append(out.Prompts, prompt)
		}
	}
	if bad.Total > 0 {
		return nil, bad
	}
	if out.Number == 0 {
		bad.Total, bad.Lines = 1, []LineError{{Line: max(lines.line, 1), Message: "there are no examples"}}
		return nil, bad
	}
	return out, nil
}

// InlineReader gives inline examples as JSONL.
func InlineReader(examples []json.RawMessage) io.Reader {
	var b bytes.Buffer
	for _, e := range examples {
		if json.Compact(&b, e) != nil {
			b.Write(bytes.ReplaceAll(e, []byte("\n"), []byte(" "))) // the error is reported with its line
		}
		b.WriteByte('\n')
	}
	return &b
}

// parseExample reads one example. Its errors are *FieldErrors where they concern a field.
func parseExample(text []byte, enc Encoder, o ReadOptions) (Example, string, error) {
	if !utf8.Valid(text) {
		return Example{}, "", errors.New("not valid UTF-8")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return Example{}, "", fmt.Errorf("not a JSON object: %w", err)
	}
	if fields == nil {
		return Example{}, "", errors.New("not a JSON object: null")
	}
	if v, ok := fields["functions"]; ok && !isEmpty(v) {
		return Example{}, "", fieldErrorf("functions", "is not supported in training examples, tools are")
	}
	has := func(f string) bool { v, ok := fields[f]; return ok && !bytes.Equal(v, []byte("null")) }
	forms := 0
	for _, f := range [][]string{{"messages"}, {"prompt", "completion"}, {"text"}, {"input_ids"}} {
		if slices.ContainsFunc(f, has) {
			forms++
		}
	}
	switch {
	case forms == 0:
		return Example{}, "", errors.New("want messages, or prompt and completion, or text, or input_ids")
	case forms > 1:
		return Example{}, "", errors.New("want only one of messages, prompt and completion, text, and input_ids")
	case has("messages"):
		turns, err := parseMessages(fields["messages"])
		if err != nil {
			return Example{}, "", err
		}
		tools, err := parseTools(fields["tools"])
		if err != nil {
			return Example{}, "", err
		}
		e, err := chatExample(turns, tools, enc, o.MaxLength, "messages")
		return e, firstUser(turns), err
	case has("input_ids"):
		e, err := tokenExample(fields, o.Vocab)
		return e, "", err
	case has("text"):
		var s string
		if err := stringField(fields, "text", &s); err != nil {
			return Example{}, "", err
		}
		return textExample("", s, enc), firstRunes(s, 40), nil
	default:
		var p, c string
		if err := stringField(fields, "prompt", &p); err != nil {
			return Example{}, "", err
		}
		if err := stringField(fields, "completion", &c); err != nil {
			return Example{}, "", err
		}
		if c == "" {
			return Example{}, "", fieldErrorf("completion", "must not be empty")
		}
		if o.Raw || !enc.HasChat() {
			return textExample(p, c, enc), p, nil
		}
		e, err := chatExample([]Message{{Role: "user", Content: p}, {Role: "assistant", Content: c, Train: true}}, nil, enc, o.MaxLength, "prompt")
		return e, p, err
	}
}

func chatExample(turns []Message, tools []json.RawMessage, enc Encoder, most int, field string) (Example, error) {
	ids, trained, err := enc.Chat(turns, tools, most)
	if err != nil {
		return Example{}, fieldErrorf(field, "%v", err)
	}
	return newExample(ids, trained), nil
}

// textExample trains text and the end after it; prompt comes before and is not trained.
func textExample(prompt, text string, enc Encoder) Example {
	var ids []int
	if prompt != "" {
		ids = append(enc.Text(prompt), enc.Continue(text)...)
	} else {
		ids = enc.Text(text)
	}
	from := 0
	if prompt != "" {
		from = len(enc.Text(prompt))
	}
	if end := enc.End(); end >= 0 && (len(ids) == 0 || ids[len(ids)-1] != end) {
		ids = append(ids, end)
	}
	trained := make([]bool, len(ids))
	for i := from; i < len(ids); i++ {
		trained[i] = true
	}
	return newExample(ids, trained)
}

// newExample shifts labels: the token at i predicts the one at i+1.
func newExample(ids []int, trained []bool) Example {
	e := Example{IDs: make([]int32, len(ids)), Labels: make([]int32, len(ids))}
	for i, id := range ids {
		e.IDs[i] = int32(id)
		e.Labels[i] = -1
		if i+1 < len(ids) && trained[i+1] {
			e.Labels[i] = int32(ids[i+1])
		}
	}
	return e
}

func firstUser(turns []Message) string {
	for _, t := range turns {
		if t.Role == "user" {
			return t.Content
		}
	}
	return ""
}

func firstRunes(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}
