package server

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"bhive/finetune"
	"bhive/infer/chat"

	"github.com/google/go-cmp/cmp"
)

// messageJSON is an answer as clients read it.
type messageJSON struct {
	Role      string
	Content   string // null is empty
	ToolCalls []struct {
		Index    *int
		ID, Type string
		Function struct{ Name, Arguments string }
	} `json:"tool_calls"`
}

// called is an answer in short.
type called struct {
	Content string
	Calls   []string // name and arguments
	Finish  string
}

// converse asks, whole and as a stream, and wants the same of both.
func (c *client) converse(q object) called {
	c.t.Helper()
	var whole chatJSON
	c.post("/v1/chat/completions", q).want(200).into(&whole)
	m := whole.Choices[0].Message
	got := called{Content: m.Content, Finish: *whole.Choices[0].FinishReason}
	ids := map[string]bool{}
	for _, call := range m.ToolCalls {
		got.Calls = append(got.Calls, call.Function.Name+" "+call.Function.Arguments)
		if call.Type != "function" || call.ID == "" || ids[call.ID] {
			c.t.Errorf("an odd call: %+v", call)
		}
		ids[call.ID] = true
	}
	q["stream"] = true
	defer delete(q, "stream")
	var streamed called
	for _, e := range c.post("/v1/chat/completions", q).want(200).events() {
		if e.Data == "[DONE]" {
			continue
		}
		var chunk chatJSON
		if err := json.Unmarshal([]byte(e.Data), &chunk); err != nil {
			c.t.Fatal(err)
		}
		for _, choice := range chunk.Choices {
			streamed.Content += choice.Delta.Content
			for _, call := range choice.Delta.ToolCalls {
				switch n := len(streamed.Calls); {
				case call.Function.Name != "":
					if *call.Index != n || call.ID == "" || call.Type != "function" {
						c.t.Errorf("call %d begins with %s", n, e.Data)
					}
					streamed.Calls = append(streamed.Calls, call.Function.Name+" ")
				case *call.Index != n-1 || call.ID != "":
					c.t.Errorf("call %d goes on with %s", n-1, e.Data)
				}
				streamed.Calls[*call.Index] += call.Function.Arguments
			}
			if choice.FinishReason != nil {
				streamed.Finish = *choice.FinishReason
			}
		}
	}
	if d := cmp.Diff(got, streamed); d != "" {
		c.t.Errorf("whole and streamed differ (-whole +streamed):\n%s", d)
	}
	return got
}

func lookUp() []object {
	return []object{{"type": "function", "function": object{"name": "look_up",
		"parameters": object{"properties": object{"animal": object{}}}}}}
}

// callers are examples of a model that looks animals up before it answers.
func callers() []object {
	var out []object
	for _, animal := range []string{"fox", "cow"} {
		out = append(out, object{"tools": lookUp(), "messages": []object{{"role": "user", "content": "What is a " + animal + "?"},
			{"role": "assistant", "content": nil, "tool_calls": []object{{"id": "call_1", "type": "function",
				"function": object{"name": "look_up", "arguments": `{"animal": "` + animal + `"}`}}}},
			{"role": "tool", "tool_call_id": "call_1", "content": `{"legs": 4}`},
			{"role": "assistant", "content": "It has 4 legs, I looked it up."}}})
	}
	return out
}

// The whole loop: a model learns to call a tool, calls it, and answers with its result.
func TestToolsLearnt(t *testing.T) {
	c := ownHive(t, hiveConfig{}).serve(t, nil)
	file := c.upload("callers.jsonl", lines(callers()))
	c.tuned(c.tune(object{"training_file": file.Id, "suffix": "caller", "hyperparameters": object{"n_epochs": 60, "batch_size": 2, "learning_rate_multiplier": 0.5}}).ID, finetune.Succeeded)
	ask := object{"model": "caller", "temperature": 0, "max_tokens": 60, "tools": lookUp(), "messages": []object{{"role": "user", "content": "What is a cow?"}}}
	want := called{"", []string{`look_up {"animal": "cow"}`}, "tool_calls"}
	if d := cmp.Diff(want, c.converse(ask)); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	ask["n"] = 2
	var many chatJSON
	c.post("/v1/chat/completions", ask).want(200).into(&many)
	if len(many.Choices) != 2 || len(many.Choices[1].Message.ToolCalls) != 1 || many.Choices[0].Message.ToolCalls[0].ID == many.Choices[1].Message.ToolCalls[0].ID {
		t.Errorf("two choices: %+v", many)
	}
	delete(ask, "n")
	// Logprobs tell of each token once, though text is held back.
	ask["logprobs"] = true
	var tokens chatJSON
	c.post("/v1/chat/completions", ask).want(200).into(&tokens)
	ask["stream"] = true
	text := ""
	for _, e := range c.post("/v1/chat/completions", ask).want(200).events() {
		var chunk chatJSON
		if json.Unmarshal([]byte(e.Data), &chunk) == nil && chunk.Choices[0].Logprobs != nil {
			for _, token := range chunk.Choices[0].Logprobs.Content {
				text += token.Token
			}
		}
	}
	whole := ""
	for _, token := range tokens.Choices[0].Logprobs.Content {
		whole += token.Token
	}
	if text != whole || !strings.HasPrefix(text, "<tool_call>") {
		t.Errorf("streamed tokens %q, whole %q", text, whole)
	}
	delete(ask, "stream")
	delete(ask, "logprobs")

	ask["messages"] = append(ask["messages"].([]object), object{"role": "assistant", "content": nil, "tool_calls": []object{{"id": "call_1", "type": "function",
		"function": object{"name": "look_up", "arguments": `{"animal": "cow"}`}}}}, object{"role": "tool", "tool_call_id": "call_1", "content": `{"legs": 4}`})
	if d := cmp.Diff(called{"It has 4 legs, I looked it up.", nil, "stop"}, c.converse(ask)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// Without tools, with none of them allowed, or with another of them, the text is the answer's.
	ask["messages"] = ask["messages"].([]object)[:1]
	for _, without := range []object{{"tools": nil}, {"tool_choice": "none"}} {
		q := object{"tools": lookUp()}
		for _, from := range []object{ask, without} {
			for k, v := range from {
				q[k] = v
			}
		}
		if got := c.converse(q); len(got.Calls) != 0 || got.Finish == "tool_calls" {
			t.Errorf("with %v it answers %+v", without, got)
		}
	}
}

// A call that is forced has the form of its tool's parameters, whatever the model would say.
func TestToolsForced(t *testing.T) {
	c := serve(t)
	q := object{"model": "demo", "temperature": 0, "max_tokens": 40, "tools": []object{{"type": "function", "function": object{"name": "f", "parameters": object{"properties": object{"n": object{"enum": []int{7}}}, "required": []string{"n"}}}}},
		"tool_choice": "required", "messages": []object{{"role": "user", "content": "Now!"}}}
	if got := c.converse(q); len(got.Calls) != 1 || strings.ReplaceAll(strings.ReplaceAll(got.Calls[0], "\n", ""), " ", "") != `f{"n":7}` || got.Finish != "tool_calls" {
		t.Errorf("an open schema: %+v", got)
	}
	tools := append(lookUp(), object{"type": "function", "function": object{"name": "travel", "parameters": object{"$defs": object{"place": object{"type": "string", "enum": []string{"sea", "hill"}}},
		"type": "object", "properties": object{"to": object{"$ref": "#/$defs/place"}, "days": object{"type": "integer", "minimum": 2, "maximum": 9}}, "required": []string{"to", "days"}, "additionalProperties": false}}})
	q = object{"model": "demo", "temperature": 1.5, "seed": 4, "max_tokens": 100, "tools": tools, "messages": []object{{"role": "user", "content": "Let us go!"}}}
	arguments := func(text string, v any) {
		t.Helper()
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(v); err != nil {
			t.Errorf("the arguments %s: %v", text, err)
		}
	}
	for name, choice := range map[string]any{"named": object{"type": "function", "function": object{"name": "travel"}}, "required": "required",
		"allowed": object{"type": "allowed_tools", "allowed_tools": object{"mode": "required", "tools": []object{{"type": "function", "function": object{"name": "travel"}}}}}} {
		q["tool_choice"] = choice
		got := c.converse(q)
		if got.Content != "" || len(got.Calls) != 1 || got.Finish != "tool_calls" && (name != "required" || got.Finish != "length") {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		tool, text, _ := strings.Cut(got.Calls[0], " ")
		var travel struct {
			To   string
			Days int
		}
		switch {
		case tool == "travel":
			if arguments(text, &travel); travel.Days < 2 || travel.Days > 9 || travel.To != "sea" && travel.To != "hill" {
				t.Errorf("%s: %s", name, text)
			}
		case tool != "look_up" || name != "required":
			t.Errorf("%s: %+v", name, got)
		}
	}
	q["tool_choice"], q["n"] = object{"type": "function", "function": object{"name": "travel"}}, 3
	var many chatJSON
	c.post("/v1/chat/completions", q).want(200).into(&many)
	for _, choice := range many.Choices {
		if len(choice.Message.ToolCalls) != 1 || choice.Message.ToolCalls[0].Function.Name != "travel" {
			t.Errorf("one of three: %+v", choice)
		}
	}
	// Parameters that cannot be compiled: an object will do, unless they are to be kept strictly.
	odd := object{"name": "f", "parameters": object{"type": "object", "not": object{}, "unevaluatedProperties": false}}
	q = object{"model": "demo", "max_tokens": 30, "tools": []object{{"type": "function", "function": odd}}, "tool_choice": "required", "messages": q["messages"]}
	c.post("/v1/chat/completions", q).want(200)
	odd["strict"] = true
	c.post("/v1/chat/completions", q).wantError(400, "tools[0].function.parameters", "")
}

func TestBadTools(t *testing.T) {
	c := serve(t)
	const say = `"model":"demo","max_tokens":4,"messages":[{"role":"user","content":"x"}]`
	const f = `"tools":[{"type":"function","function":{"name":"f"}}]`
	for _, x := range []struct{ name, fields, param, says string }{
		{"not an array", `"tools":{"a":1}`, "tools", "array"},
		{"not objects", `"tools":[7]`, "tools[0]", ""},
		{"another type", `"tools":[{"type":"custom","custom":{"name":"f"}}]`, "tools[0].type", "custom"},
		{"no name", `"tools":[{"type":"function","function":{}}]`, "tools[0].function.name", ""},
		{"a bad name", `"tools":[{"type":"function","function":{"name":"f g"}}]`, "tools[0].function.name", "f g"},
		{"a name twice", `"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]`, "tools[1].function.name", "another"},
		{"bad parameters", `"tools":[{"type":"function","function":{"name":"f","parameters":[1]}}]`, "tools[0].function.parameters", "object"},
		{"a choice without tools", `"tool_choice":"required"`, "tool_choice", "needs tools"},
		{"an unknown choice", f + `,"tool_choice":"any"`, "tool_choice", "required"},
		{"a choice of another type", f + `,"tool_choice":7`, "tool_choice", ""},
		{"another tool", f + `,"tool_choice":{"type":"function","function":{"name":"g"}}`, "tool_choice", `"g"`},
		{"another tool allowed", f + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"g"}}]}}`, "tool_choice", `"g"`},
		{"with a format", f + `,"response_format":{"type":"json_object"}`, "tools", "response_format"},
		{"functions", `"functions":[{"name":"f"}]`, "functions", "tools"},
	} {
		if message := c.post("/v1/chat/completions", `{`+say+`,`+x.fields+`}`).wantError(400, x.param, ""); !strings.Contains(message, x.says) {
			t.Errorf("%s: the message does not say %q: %s", x.name, x.says, message)
		}
	}
	for _, calls := range []string{`[7]`, `[{}]`, `[{"function":{"name":"f"}}]`, `[{"function":{"name":"f","arguments":7}}]`} {
		c.post("/v1/chat/completions", `{"model":"demo","messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":`+calls+`}]}`).
			wantError(400, "messages[1].tool_calls[0]", "")
	}
	for _, fine := range []string{`"tools":null,"tool_choice":null`, `"tools":[]`, f + `,"tool_choice":"none"`, f + `,"parallel_tool_calls":null`,
		`"tools":[{"type":"function","function":{"name":"f","parameters":null,"strict":null,"description":null}}]`,
		f + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}`} {
		c.post("/v1/chat/completions", `{`+say+`,`+fine+`}`).want(200)
	}
}

// A template that does not define tools.
func TestNoTools(t *testing.T) {
	template, err := chat.Parse(`{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}`, chat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := shared(t).serve(t, func(_ *Config, d *Deps) { d.Template = template })
	q := object{"model": "demo", "max_tokens": 2, "messages": []object{{"role": "user", "content": "x"}}, "tools": lookUp()}
	if message := c.post("/v1/chat/completions", q).wantError(400, "tools", ""); !strings.Contains(message, "does not define tools") {
		t.Error(message)
	}
	q["tool_choice"] = "none"
	c.post("/v1/chat/completions", q).want(200)
	delete(q, "tools")
	delete(q, "tool_choice")
	for _, m := range []object{{"role": "tool", "tool_call_id": "a", "content": "x"},
		{"role": "assistant", "content": "", "tool_calls": []object{{"id": "a", "type": "function", "function": object{"name": "f", "arguments": "{}"}}}}} {
		q["messages"] = []object{{"role": "user", "content": "x"}, m}
		c.post("/v1/chat/completions", q).wantError(400, "messages[1]", "")
	}
}

// The demo's template: with tools as Hermes writes them, without them as it always was.
func TestDemoTemplate(t *testing.T) {
	raw, err := os.ReadFile("../infer/demo/tokenizer_config.json")
	if err != nil {
		t.Fatal(err)
	}
	template, err := chat.FromHF(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	var in chat.Input
	if err := json.Unmarshal([]byte(`[{"role":"user","content":"Now?"},{"role":"assistant","content":"Let me see.","tool_calls":[{"id":"a","type":"function","function":{"name":"now","arguments":"{}"}},
		{"id":"b","type":"function","function":{"name":"now","arguments":"{\"zone\":\"é\"}"}}]},{"role":"tool","tool_call_id":"a","content":"3"}]`), &in.Messages); err != nil {
		t.Fatal(err)
	}
	in.Tools, in.AddGenerationPrompt = []json.RawMessage{json.RawMessage(`{"z":1,"a":"<b>"}`)}, true
	text, err := template.Render(in)
	want := "<|im_start|>system\nYou may call these functions:\n<tools>\n{\"z\": 1, \"a\": \"<b>\"}\n</tools>\nWrite a call as:\n<tool_call>\n{\"name\": NAME, \"arguments\": OBJECT}\n</tool_call><|im_end|>\n" +
		"<|im_start|>user\nNow?<|im_end|>\n<|im_start|>assistant\nLet me see.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\": \"é\"}}\n</tool_call><|im_end|>\n" +
		"<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
	if d := cmp.Diff(want, text); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func FuzzTools(f *testing.F) {
	f.Add(`[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`, `{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}`)
	f.Add(`[{"type":"function"}]`, `"required"`)
	f.Add(`null`, `{"type":"function","function":{"name":"f"}}`)
	f.Fuzz(func(t *testing.T, tools, choice string) {
		var p toolPlan
		if p.read(json.RawMessage(tools)) == nil && len(p.tools) != len(p.offered) {
			t.Errorf("%d tools of %d", len(p.tools), len(p.offered))
		}
		var c toolChoice
		if json.Unmarshal([]byte(choice), &c) == nil && c.mode != "none" && c.mode != "auto" && c.mode != "required" {
			t.Errorf("%s is the mode %q", choice, c.mode)
		}
	})
}
