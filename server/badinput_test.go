package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// Each of these must give a clear error that names the field, and leave the server serving.
func TestBadCompletions(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "bad-mix", 8, 1)
	const chat, text = "/v1/chat/completions", "/v1/completions"
	long := strings.Repeat("fox ", 3000)
	for _, x := range []struct {
		name, path, body string
		status           int
		param, code      string
		says             string // part of the message
	}{
		{"cut off", text, `{"model":"demo","prompt":"a",`, 400, "", "invalid_json", "line 1, column 29"},
		{"no comma", text, "{\"model\":\"demo\",\n\"prompt\":\"a\" \"x\":1}", 400, "", "invalid_json", "line 2, column 14"},
		{"more behind", text, `{"model":"demo","prompt":"a"} {}`, 400, "", "invalid_json", ""},
		{"not JSON", text, `prompt=a`, 400, "", "invalid_json", ""},
		{"empty", text, ``, 400, "", "invalid_json", "empty"},
		{"array", text, `[1]`, 400, "", "", "object"},
		{"deep", text, strings.Repeat("[", 100000), 400, "", "invalid_json", ""},
		{"no prompt", text, `{"model":"demo"}`, 400, "prompt", "", ""},
		{"null", text, `null`, 400, "prompt", "", ""},
		{"empty prompt", text, `{"model":"demo","prompt":""}`, 400, "prompt", "", ""},
		{"no prompts", text, `{"model":"demo","prompt":[]}`, 400, "prompt", "", ""},
		{"prompt of another type", text, `{"model":"demo","prompt":{"a":1}}`, 400, "prompt", "", "array of strings"},
		{"lists of strings", text, `{"model":"demo","prompt":[["a"]]}`, 400, "prompt", "", ""},
		{"token out of range", text, `{"model":"demo","prompt":[4096]}`, 400, "prompt", "", "4096"},
		{"no token", text, `{"model":"demo","prompt":[1,null]}`, 400, "prompt", "", "token ids"},
		{"no token in a list", text, `{"model":"demo","prompt":[[1],[null]]}`, 400, "prompt", "", "token ids"},
		{"no tokens in a list", text, `{"model":"demo","prompt":[[1],null]}`, 400, "prompt", "", "token ids"},
		{"no text", text, `{"model":"demo","prompt":["a",null]}`, 400, "prompt", "", "strings"},
		{"negative token", text, `{"model":"demo","prompt":[-1]}`, 400, "prompt", "", "-1"},
		{"too many prompts", text, `{"model":"demo","prompt":[` + strings.Repeat(`"a",`, maxPrompts) + `"a"]}`, 400, "prompt", "", fmt.Sprint(maxPrompts)},
		{"over the context", text, `{"model":"demo","prompt":"` + long + `"}`, 400, "prompt", "context_length_exceeded", ""},
		{"chat over the context", chat, `{"model":"demo","messages":[{"role":"user","content":"` + long + `"}]}`, 400, "messages", "context_length_exceeded", ""},
		{"text over the context", text, `{"model":"demo","prompt":"a","max_tokens":1000000}`, 400, "max_tokens", "context_length_exceeded", "maximum context length"},
		{"one text of two over the context", text, `{"model":"demo","prompt":["a","` + long[:4000] + `"],"max_tokens":1500}`, 400, "max_tokens", "context_length_exceeded", ""},
		{"answer over the context", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"max_tokens":1000000}`, 400, "max_tokens", "context_length_exceeded", ""},
		{"answer over the context, newer name", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"max_completion_tokens":1000000}`, 400, "max_completion_tokens",
			"context_length_exceeded", "maximum context length"},
		{"text for a number", text, `{"model":"demo","prompt":"a","max_tokens":"x"}`, 400, "max_tokens", "", "integer"},
		{"fraction", text, `{"model":"demo","prompt":"a","max_tokens":1.5}`, 400, "max_tokens", "", "integer"},
		{"too large", text, `{"model":"demo","prompt":"a","temperature":1e40}`, 400, "temperature", "", "out of range"},
		{"far too large", text, `{"model":"demo","prompt":"a","seed":123456789012345678901234567890}`, 400, "seed", "", "out of range"},
		{"negative", text, `{"model":"demo","prompt":"a","max_tokens":-1}`, 400, "max_tokens", "", ""},
		{"nothing asked for", text, `{"model":"demo","prompt":"a","max_tokens":0}`, 400, "max_tokens", "", "echo"},
		{"temperature", text, `{"model":"demo","prompt":"a","temperature":-1}`, 400, "temperature", "", ""},
		{"top_p", text, `{"model":"demo","prompt":"a","top_p":0}`, 400, "top_p", "", ""},
		{"n", text, `{"model":"demo","prompt":"a","n":0}`, 400, "n", "", ""},
		{"too many choices", text, `{"model":"demo","prompt":"a","n":1000}`, 400, "n", "", "128"},
		{"logprobs", text, `{"model":"demo","prompt":"a","logprobs":21}`, 400, "logprobs", "", "20"},
		{"suffix", text, `{"model":"demo","prompt":"a","suffix":"x"}`, 400, "suffix", "", ""},
		{"stop", text, `{"model":"demo","prompt":"a","stop":5}`, 400, "stop", "", ""},
		{"too many stop tokens", text, `{"model":"demo","prompt":"a","stop_token_ids":[` + strings.Repeat(`5,`, 1024) + `5]}`, 400, "stop_token_ids", "", "1024"},
		{"empty stop", text, `{"model":"demo","prompt":"a","stop":""}`, 400, "stop", "", ""},
		{"bias of no token", text, `{"model":"demo","prompt":"a","logit_bias":{"x":5}}`, 400, "logit_bias", "", `"x"`},
		{"bias out of range", text, `{"model":"demo","prompt":"a","logit_bias":{"3":500}}`, 400, "logit_bias", "", "100"},
		{"bias of another type", text, `{"model":"demo","prompt":"a","logit_bias":{"3":"y"}}`, 400, "logit_bias.3", "", "number"},
		{"nested", text, `{"model":"demo","prompt":"a","stream":true,"stream_options":{"include_usage":1}}`, 400, "stream_options.include_usage", "", "boolean"},
		{"options of no stream", text, `{"model":"demo","prompt":"a","stream_options":{"include_usage":true}}`, 400, "stream_options", "", ""},
		{"model of another type", text, `{"model":5,"prompt":"a"}`, 400, "model", "", "string"},
		{"unknown model", text, `{"model":"nope","prompt":"a"}`, 404, "model", "model_not_found", "nope"},
		{"unknown version", text, `{"model":"bad-mix@9","prompt":"a"}`, 404, "model", "model_not_found", ""},
		{"traversal", text, `{"model":"../../etc/passwd","prompt":"a"}`, 404, "model", "model_not_found", ""},
		{"another tenant's", text, `{"model":"other/bad-mix","prompt":"a"}`, 404, "model", "model_not_found", ""},
		{"mix with an unknown", text, `{"model":"bad-mix:0.5+nope:0.5","prompt":"a"}`, 404, "model", "model_not_found", ""},
		{"mix without a weight", text, `{"model":"bad-mix:x+bad-mix","prompt":"a"}`, 400, "model", "", "weight"},
		{"mix of nothing", text, `{"model":"bad-mix:0.5+","prompt":"a"}`, 400, "model", "", ""},
		{"mix of too many", text, `{"model":"` + strings.Repeat("bad-mix:0.1+", 20) + `bad-mix","prompt":"a"}`, 400, "model", "", ""},
		{"no messages", chat, `{"model":"demo"}`, 400, "messages", "", ""},
		{"messages of another type", chat, `{"model":"demo","messages":"x"}`, 400, "messages", "", ""},
		{"no message", chat, `{"model":"demo","messages":[{"role":"user","content":"x"},5]}`, 400, "messages[1]", "", ""},
		{"role of another type", chat, `{"model":"demo","messages":[{"role":5,"content":"x"}]}`, 400, "messages[0]", "", "role"},
		{"content of another type", chat, `{"model":"demo","messages":[{"role":"user","content":5}]}`, 400, "messages[0]", "", "content"},
		{"an image", chat, `{"model":"demo","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`, 400, "messages[0]", "", "image_url"},
		{"no role", chat, `{"model":"demo","messages":[{"content":"x"}]}`, 400, "messages[0].role", "", ""},
		{"no tokens", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"max_completion_tokens":0}`, 400, "max_completion_tokens", "", ""},
		{"top_logprobs alone", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"top_logprobs":3}`, 400, "top_logprobs", "", "logprobs"},
		{"top_logprobs", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"logprobs":true,"top_logprobs":21}`, 400, "top_logprobs", "", ""},
		{"tools", text, `{"model":"demo","prompt":"x","tools":[{"type":"function","function":{"name":"f"}}]}`, 400, "tools", "", ""},
		{"best_of below n", text, `{"model":"demo","prompt":"x","n":3,"best_of":2}`, 400, "best_of", "", "at least"},
		{"best_of above all", text, `{"model":"demo","prompt":"x","best_of":21}`, 400, "best_of", "", "20"},
		{"best_of of a stream", text, `{"model":"demo","prompt":"x","best_of":2,"stream":true}`, 400, "best_of", "", "stream"},
		{"suffix", text, `{"model":"demo","prompt":"x","suffix":"y"}`, 400, "suffix", "", ""},
		{"functions", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"functions":[{"name":"f"}]}`, 400, "functions", "", ""},
		{"response_format", chat, `{"model":"demo","messages":[{"role":"user","content":"x"}],"response_format":{"type":"xml"}}`, 400, "response_format.type", "", ""},
		{"response_format shape", chat, `{"messages":[{"role":"user","content":"x"}],"response_format":"json"}`, 400, "response_format", "", "must be an object"},
		{"no json_schema", chat, `{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema"}}`, 400, "response_format.json_schema", "", "missing"},
		{"no schema name", chat, `{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"schema":{}}}}`, 400, "response_format.json_schema.name", "", ""},
		{"schema keyword", chat, `{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"properties":{"b":{"not":{}}}}}}}`,
			400, "response_format.json_schema.schema", "", "at /properties/b/not: is not supported"},
		{"schema without value", text, `{"prompt":"x","guided_json":{"type":"object","required":["a"],"properties":{"a":false}}}`, 400, "guided_json", "", "no value"},
		{"guided_regex", text, `{"prompt":"x","guided_regex":"a(?=b)"}`, 400, "guided_regex", "", "not supported"},
		{"guided_choice", text, `{"prompt":"x","guided_choice":[]}`, 400, "guided_choice", "", "at least one"},
		{"guided twice", text, `{"prompt":"x","guided_choice":["a"],"guided_regex":"a"}`, 400, "guided_choice", "", "cannot be combined"},
		{"guided_grammar", text, `{"prompt":"x","guided_grammar":"root ::= a"}`, 400, "guided_grammar", "", "not supported"},
		{"oversize", text, `{"model":"demo","prompt":"` + strings.Repeat("a", 9<<20) + `"}`, 413, "", "too_large", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := *c
			c.t = t
			if message := c.post(x.path, x.body).wantError(x.status, x.param, x.code); !strings.Contains(message, x.says) {
				t.Errorf("the message does not say %q: %s", x.says, message)
			}
		})
	}
	c.do("POST", text, `{"model":"demo","prompt":"a"}`, "Content-Type", "text/xml").wantError(415, "", "unsupported_media_type")
	c.complete(object{"model": "demo", "prompt": "The fox", "max_tokens": 2})
}

// TestBadQueries: a query with a part that cannot be read is not answered as if without that part.
func TestBadQueries(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "bad-query", 8, 1)
	for _, query := range []string{"dry_run=true;rank=8", "dry_run=%zz", "dry_run=true&tenant=a%"} {
		if message := c.sendTar("/adapters/bad-query/import?"+query, "").wantError(400, "", ""); !strings.Contains(message, "query") {
			t.Errorf("%s: %s", query, message)
		}
		c.get("/adapters/bad-query/export?version=1&"+query).wantError(400, "", "")
	}
	c.get("/adapters/bad-query/export?version=1").want(200)
}

func TestBadAdapters(t *testing.T) {
	c := serve(t)
	h := shared(t)
	h.publish(t, "taken", 8, 1)
	good := string(mustJSON(pirates()))
	for _, x := range []struct {
		name, body  string
		status      int
		param, code string
		says        string
	}{
		{"cut off", `{"name":"x",`, 400, "", "invalid_json", "line 1"},
		{"no name", `{"examples":` + good + `}`, 400, "name", "", ""},
		{"traversal", `{"name":"../x","examples":` + good + `}`, 400, "name", "", ""},
		{"a path", `{"name":"a/b","examples":` + good + `}`, 400, "name", "", ""},
		{"dots", `{"name":"a..b","examples":` + good + `}`, 400, "name", "", ""},
		{"capitals", `{"name":"Fox","examples":` + good + `}`, 400, "name", "", ""},
		{"the base's name", `{"name":"demo","examples":` + good + `}`, 409, "name", "already_exists", ""},
		{"duplicate", `{"name":"taken","examples":` + good + `}`, 409, "name", "already_exists", "taken"},
		{"rank over R", `{"name":"x","rank":65,"examples":` + good + `}`, 400, "rank", "bad_rank", "64"},
		{"negative rank", `{"name":"x","rank":-1,"examples":` + good + `}`, 400, "rank", "", ""},
		{"rank of another type", `{"name":"x","rank":"8","examples":` + good + `}`, 400, "rank", "", "integer"},
		{"learning rate", `{"name":"x","learning_rate":"fast","examples":` + good + `}`, 400, "learning_rate", "", "auto"},
		{"unknown field", `{"name":"x","lerning_rate":1,"examples":` + good + `}`, 400, "lerning_rate", "", ""},
		{"no examples", `{"name":"x"}`, 400, "examples", "", ""},
		{"empty examples", `{"name":"x","examples":[]}`, 400, "examples", "", ""},
		{"examples of another type", `{"name":"x","examples":"y"}`, 400, "examples", "", ""},
		{"unknown parent", `{"name":"x","parent":"nobody","examples":` + good + `}`, 404, "parent", "not_found", ""},
		{"nothing to learn", `{"name":"x","examples":[{"prompt":"a","completion":"b"},{"messages":[{"role":"user","content":"x"}]},{"foo":1},` +
			`{"messages":[{"role":"assistant","content":"x","weight":0}]}]}`, 400, "examples", "invalid_training_file", "line 2: "},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := *c
			c.t = t
			if message := c.post("/adapters", x.body).wantError(x.status, x.param, x.code); !strings.Contains(message, x.says) {
				t.Errorf("the message does not say %q: %s", x.says, message)
			}
		})
	}
	jsonl := func(path, body string) response {
		return c.do("POST", path, body, "Content-Type", "application/x-ndjson")
	}
	message := jsonl("/adapters?name=x&rank=4", "{\"text\":\"a\"}\n{\"text\":\n\n[1]\n{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n").wantError(400, "training_file", "invalid_training_file")
	for _, says := range []string{"line 2", "line 4", "line 5"} {
		if !strings.Contains(message, says) {
			t.Errorf("the message does not name %s: %s", says, message)
		}
	}
	jsonl("/adapters", "{\"text\":\"a\"}\n").wantError(400, "name", "")
	jsonl("/adapters?name=x&rank=a", "{\"text\":\"a\"}\n").wantError(400, "rank", "")
	jsonl("/adapters?name=x&nonsense=1", "{\"text\":\"a\"}\n").wantError(400, "nonsense", "")
	jsonl("/adapters?name=x", "").wantError(400, "training_file", "invalid_training_file")
	jsonl("/adapters/nobody/examples", "{\"text\":\"a\"}\n").wantError(404, "name", "adapter_not_found")
	jsonl("/adapters/taken/examples?rank=16", "{\"text\":\"a\"}\n").wantError(400, "rank", "")
	c.post("/adapters/taken/examples", object{"name": "other", "examples": pirates()}).wantError(400, "name", "")

	small := h.serve(t, func(c *Config, _ *Deps) { c.MaxTrainingBytes = 1000 })
	small.post("/adapters", object{"name": "x", "examples": []object{{"text": strings.Repeat("a", 1000)}}}).wantError(413, "", "too_large")
	small.do("POST", "/adapters?name=x", strings.Repeat("{\"text\":\"a\"}\n", 200), "Content-Type", "application/x-ndjson").wantError(413, "", "too_large")

	for _, path := range []string{"/adapters/..%2f..%2fetc", "/adapters/%2e%2e", "/adapters/a%00b", "/adapters/nobody", "/adapters/nobody/versions", "/adapters/nobody/jobs"} {
		c.get(path).wantError(404, "name", "adapter_not_found")
	}
	c.get("/adapters/taken/events?after=x").wantError(400, "after", "")
	c.do("GET", "/adapters/taken/events", nil, "Last-Event-ID", "-1").wantError(400, "Last-Event-ID", "")
	c.get("/nowhere").wantError(404, "", "unknown_url")
	c.do("DELETE", "/v1/completions", nil).wantError(405, "", "method_not_allowed")
	c.get("/adapters/x").wantError(404, "name", "adapter_not_found") // nothing of all that was written
	c.complete(object{"model": "taken", "prompt": "The fox", "max_tokens": 2})
}

// A body that ends early is the client's error, and no half of it is used.
func TestBodyEndsEarly(t *testing.T) {
	c := serve(t)
	for path, body := range map[string]string{"/adapters?name=half": lines(pirates()), "/v1/completions": `{"prompt": "a"`} {
		r := httptest.NewRequest("POST", "http://localhost"+path, io.MultiReader(strings.NewReader(body), iotest.ErrReader(io.ErrUnexpectedEOF)))
		if strings.HasPrefix(path, "/adapters") {
			r.Header.Set("Content-Type", "application/x-ndjson")
		}
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `"unreadable_body"`) {
			t.Errorf("%s: status %d, %s", path, w.Code, w.Body)
		}
	}
	c.get("/adapters/half").wantError(404, "name", "adapter_not_found")
}

// late is a body that stays away for too long.
type late struct{}

func (late) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }
func (late) Close() error             { return nil }

// A body that takes too long is told from one that ends early.
func TestBodyTakesTooLong(t *testing.T) {
	c := serve(t)
	for path, kind := range map[string]string{"/v1/completions": "application/json", "/adapters": "application/json", "/adapters?name=late": "application/x-ndjson",
		"/adapters/late/import": "application/x-tar", "/v1/files": "multipart/form-data; boundary=b"} {
		r := httptest.NewRequest("POST", "http://localhost"+path, late{})
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusRequestTimeout || !strings.Contains(w.Body.String(), `"body_timeout"`) {
			t.Errorf("%s as %s: status %d, %s", path, kind, w.Code, w.Body)
		}
	}
}

func FuzzCompletionRequest(f *testing.F) {
	for _, seed := range []string{`{"model":"demo","prompt":"a"}`, `{"prompt":[1,2],"stop":["a"],"logit_bias":{"3":1}}`, `{"prompt":[[1]],"n":null}`, `{`, `[]`, `{"prompt":{}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q completionRequest
		if err := unmarshal(b, &q); err != nil {
			if e := asAPIError(err); e.Status != http.StatusBadRequest {
				t.Errorf("%q: status %d: %v", b, e.Status, err)
			}
		}
	})
}

func FuzzChatRequest(f *testing.F) {
	for _, seed := range []string{`{"messages":[{"role":"user","content":"x"}]}`, `{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"stop":"a"}`, `{"messages":[5]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q chatRequest
		if err := unmarshal(b, &q); err != nil {
			if e := asAPIError(err); e.Status != http.StatusBadRequest {
				t.Errorf("%q: status %d: %v", b, e.Status, err)
			}
		}
	})
}
