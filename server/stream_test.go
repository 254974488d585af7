package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"bhive/infer"
)

type chatJSON struct {
	Choices []struct {
		Index        int
		Message      messageJSON
		Delta        messageJSON
		FinishReason *string `json:"finish_reason"`
		Logprobs     *struct{ Content []topToken }
	}
	Usage *usageJSON
}

// gathered is a streamed answer put together.
type gathered struct {
	text   map[int]string
	finish map[int]string
	tokens map[int][]topToken
	usage  *usageJSON
	usages int
}

func gather(t *testing.T, events []event) gathered {
	t.Helper()
	g := gathered{text: map[int]string{}, finish: map[int]string{}, tokens: map[int][]topToken{}}
	if events[len(events)-1].Data != "[DONE]" {
		t.Fatalf("the last event is %q", events[len(events)-1].Data)
	}
	roles := map[int]bool{}
	for _, e := range events[:len(events)-1] {
		var chunk chatJSON
		if err := json.Unmarshal([]byte(e.Data), &chunk); err != nil {
			t.Fatal(err)
		}
		if chunk.Usage != nil {
			g.usage = chunk.Usage
			if g.usages++; len(chunk.Choices) > 0 {
				t.Errorf("usage beside choices: %s", e.Data)
			}
		}
		for _, c := range chunk.Choices {
			if !roles[c.Index] && (c.Delta.Role != "assistant" || c.Delta.Content != "") {
				t.Errorf("choice %d begins with %s", c.Index, e.Data)
			}
			roles[c.Index] = true
			if g.finish[c.Index] != "" {
				t.Errorf("choice %d goes on after its end: %s", c.Index, e.Data)
			}
			g.text[c.Index] += c.Delta.Content
			if c.FinishReason != nil {
				g.finish[c.Index] = *c.FinishReason
			}
			if c.Logprobs != nil {
				g.tokens[c.Index] = append(g.tokens[c.Index], c.Logprobs.Content...)
			}
		}
	}
	return g
}

func TestChatStream(t *testing.T) {
	c := serve(t)
	q := object{"model": "demo", "n": 3, "seed": 11, "temperature": 0.9, "max_tokens": 12, "logprobs": true, "top_logprobs": 2,
		"messages": []object{{"role": "user", "content": []object{{"type": "text", "text": "Tell me a "}, {"type": "text", "text": "story."}}}}}
	var whole chatJSON
	c.post("/v1/chat/completions", q).want(200).into(&whole)
	q["stream"], q["stream_options"] = true, object{"include_usage": true}
	g := gather(t, c.post("/v1/chat/completions", q).want(200).events())
	if len(whole.Choices) != 3 || len(g.text) != 3 || g.usages != 1 {
		t.Fatalf("%d and %d choices, %d usages", len(whole.Choices), len(g.text), g.usages)
	}
	total := 0
	for _, w := range whole.Choices {
		if g.text[w.Index] != w.Message.Content || g.finish[w.Index] != *w.FinishReason {
			t.Errorf("choice %d streams %q (%s), whole it is %q (%s)", w.Index, g.text[w.Index], g.finish[w.Index], w.Message.Content, *w.FinishReason)
		}
		if len(g.tokens[w.Index]) != len(w.Logprobs.Content) {
			t.Errorf("choice %d streams %d logprobs, whole it has %d", w.Index, len(g.tokens[w.Index]), len(w.Logprobs.Content))
		}
		text := ""
		for i, token := range w.Logprobs.Content {
			total++
			text += token.Token
			if len(token.Top) != 2 || token.Logprob > 0 || token.Top[0].Logprob < token.Top[1].Logprob {
				t.Errorf("choice %d, token %d: %+v", w.Index, i, token)
			}
		}
		if !strings.HasPrefix(text, w.Message.Content) {
			t.Errorf("the tokens of choice %d say %q, its text %q", w.Index, text, w.Message.Content)
		}
	}
	if g.usage.CompletionTokens != whole.Usage.CompletionTokens || total != whole.Usage.CompletionTokens || g.usage.PromptTokens != whole.Usage.PromptTokens {
		t.Errorf("usage %+v streamed, %+v whole, %d logprobs", g.usage, whole.Usage, total)
	}
	if whole.Choices[0].Message.Content == whole.Choices[1].Message.Content && whole.Choices[1].Message.Content == whole.Choices[2].Message.Content {
		t.Error("all choices are alike")
	}
}

func TestStop(t *testing.T) {
	c := serve(t)
	q := object{"model": "demo", "temperature": 0, "max_tokens": 40, "messages": []object{{"role": "user", "content": "What is a fox?"}}}
	var whole chatJSON
	c.post("/v1/chat/completions", q).want(200).into(&whole)
	text := whole.Choices[0].Message.Content
	stop := text[len(text)/2 : len(text)/2+3]
	want := text[:strings.Index(text, stop)]
	for _, form := range []any{stop, []string{"no such text", stop}} {
		q["stop"] = form
		q["stream"] = true
		g := gather(t, c.post("/v1/chat/completions", q).want(200).events())
		if g.text[0] != want || g.finish[0] != "stop" {
			t.Errorf("stop %q: %q (%s), want %q", form, g.text[0], g.finish[0], want)
		}
	}
}

func TestEchoAndLogprobs(t *testing.T) {
	c := serve(t)
	const prompt = "The fox is"
	ids := shared(t).deps.Tokenizer.Encode(prompt, true)
	score := c.complete(object{"model": "demo", "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 1})
	l := score.Choices[0].Logprobs
	if score.Choices[0].Text != prompt || len(l.Tokens) != len(ids) || l.TokenLogprobs[0] != nil || l.TopLogprobs[0] != nil || score.Usage.CompletionTokens != 0 {
		t.Fatalf("%+v %+v", score, l)
	}
	for i := 1; i < len(ids); i++ {
		if l.TokenLogprobs[i] == nil || *l.TokenLogprobs[i] >= 0 || l.TextOffset[i] != l.TextOffset[i-1]+len(l.Tokens[i-1]) {
			t.Errorf("token %d: %+v", i, l)
		}
	}
	// What the model continues with greedily is what scoring the whole finds most probable.
	both := c.complete(object{"model": "demo", "prompt": prompt, "max_tokens": 4, "temperature": 0, "echo": true, "logprobs": 0})
	lb := both.Choices[0].Logprobs
	if !strings.HasPrefix(both.Choices[0].Text, prompt) || len(lb.Tokens) != len(ids)+both.Usage.CompletionTokens || strings.Join(lb.Tokens, "") != both.Choices[0].Text {
		t.Errorf("%+v %+v", both, lb)
	}
	biased := c.complete(object{"model": "demo", "prompt": prompt, "max_tokens": 3, "temperature": 0, "logit_bias": object{"300": 100}})
	if want := strings.Repeat(shared(t).deps.Tokenizer.Decode([]int{300}, true), 3); biased.Choices[0].Text != want {
		t.Errorf("with a bias of 100: %q, want %q", biased.Choices[0].Text, want)
	}
	several := c.complete(object{"model": "demo", "prompt": []string{prompt, "A cow"}, "n": 2, "max_tokens": 3, "seed": 1})
	if len(several.Choices) != 4 || several.Usage.PromptTokens != len(ids)+len(shared(t).deps.Tokenizer.Encode("A cow", true)) {
		t.Errorf("%+v", several)
	}
	for i, choice := range several.Choices {
		if choice.Index != i || choice.FinishReason == nil {
			t.Errorf("choice %d: %+v", i, choice)
		}
	}
}

// endless is a request whose stream goes on to the end of the context.
func endless(model string) object {
	return object{"model": model, "stream": true, "ignore_eos": true, "max_tokens": 1000, "temperature": 1, "seed": 2, "messages": []object{{"role": "user", "content": "Tell me a story."}}}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: the test was ended", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestClientGoesAway(t *testing.T) {
	c := serve(t)
	engine := shared(t).deps.Engine
	cancelled := func() int64 { return engine.Stats().Requests[infer.FinishCancelled] }
	for _, stream := range []bool{true, false} {
		q := endless("demo")
		q["stream"], q["n"] = stream, 8 // long enough to be met running
		raw, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		before := cancelled()
		for try := 0; cancelled() == before; try++ { // one that ends before it is met running, or left, tells nothing
			if try == 20 {
				t.Fatalf("stream %v: no choice ended as cancelled: %v", stream, engine.Stats().Requests)
			}
			ctx, cancel := context.WithCancel(t.Context())
			r, err := http.NewRequestWithContext(ctx, "POST", c.url+"/v1/chat/completions", strings.NewReader(string(raw)))
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				a, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, a.Body)
				a.Body.Close()
			}()
			until(t, "running", func() bool {
				select {
				case <-ended:
					return true
				default:
					return engine.Stats().Running > 0
				}
			})
			cancel()
			<-ended
			until(t, "over", func() bool { s := engine.Stats(); return s.Running == 0 && s.KVUsed == 0 })
		}
	}
}

// An error after the first event comes as an event.
func TestErrorInTheMidstOfAStream(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, nil)
	pieces := 0
	_, err := c.stream(endless("demo"), func(string) {
		if pieces++; pieces == 2 {
			h.stopEngine()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "error event: ") || !strings.Contains(err.Error(), infer.ErrClosed.Error()) {
		t.Errorf("after %d pieces: %v", pieces, err)
	}
	c.post("/v1/completions", object{"model": "demo", "prompt": "a"}).wantError(503, "", "shutting_down")
	if got := c.post("/v1/completions", object{"model": "demo", "prompt": "a"}).Header.Get("Retry-After"); got == "" {
		t.Error("503 without Retry-After")
	}
}

func TestQueueFull(t *testing.T) {
	h := ownHive(t, hiveConfig{engine: infer.Config{MaxSeqs: 1, QueueLimit: 1}})
	c := h.serve(t, nil)
	raw := string(mustJSON(object{"model": "demo", "prompt": "a", "ignore_eos": true, "max_tokens": 900, "n": 1}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 8)
	refused := 0
	for range 8 {
		r, err := http.NewRequestWithContext(ctx, "POST", c.url+"/v1/completions", strings.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		go func() {
			a, err := c.http.Do(r)
			if err != nil {
				ended <- nil
				return
			}
			defer a.Body.Close()
			if a.StatusCode == http.StatusTooManyRequests && a.Header.Get("Retry-After") != "" {
				ended <- errRefused
				return
			}
			ended <- nil
		}()
	}
	for range 8 {
		if err := <-ended; errors.Is(err, errRefused) {
			if refused++; refused == 1 {
				cancel() // the rest need not end
			}
		}
	}
	if refused == 0 {
		t.Error("no request was refused")
	}
	until(t, "served again", func() bool { s := h.deps.Engine.Stats(); return s.Waiting == 0 && s.Running == 0 })
	until(t, "served", func() bool {
		return c.post("/v1/completions", object{"model": "demo", "prompt": "a", "max_tokens": 1}).Status == 200
	})
}

var errRefused = errors.New("refused")

// unread is a response whose client stops taking it.
type unread struct {
	*httptest.ResponseRecorder
	left int // writes that it takes
}

func (u *unread) Write(p []byte) (int, error) {
	if u.left--; u.left < 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return u.ResponseRecorder.Write(p)
}

// A client that stops reading a stream is no error of the server's.
func TestStreamUnread(t *testing.T) {
	var log bytes.Buffer
	c := shared(t).serve(t, func(_ *Config, d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, path := range []string{"/v1/chat/completions", "/v1/completions"} {
		q := endless("demo")
		if q["stream"] = true; path == "/v1/completions" {
			q["prompt"] = "Once"
		}
		w := &unread{httptest.NewRecorder(), 1}
		c.server.Handler().ServeHTTP(w, httptest.NewRequest("POST", "http://localhost"+path, bytes.NewReader(mustJSON(q))))
		if w.left != -1 {
			t.Errorf("%s: after the first write that failed there were %d more", path, -w.left-1)
		}
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("the log has\n%s", log.String())
	}
	until(t, "cancelled", func() bool { return shared(t).deps.Engine.Stats().Running == 0 })
}
