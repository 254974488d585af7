package server

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemas that the demo model must follow, whatever it would rather say. Lengths are bounded so that texts end.
var formatSchemas = map[string]string{
	"person": `{"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":16},"age":{"type":"integer","minimum":0,"maximum":150},
		"mood":{"enum":["glad","sad",null]},"born":{"type":"string","format":"date"}},"required":["name","age","mood","born"],"additionalProperties":false}`,
	"list": `{"type":"array","items":{"anyOf":[{"type":"number","exclusiveMinimum":0,"maximum":9.5},{"type":"boolean"},{"type":"string","pattern":"^[A-Z][a-z]{1,6}$"}]},"minItems":2,"maxItems":5}`,
	"tree": `{"$defs":{"node":{"type":"object","properties":{"v":{"type":"integer","minimum":1,"maximum":9},"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},
		"required":["v","next"],"additionalProperties":false}},"$ref":"#/$defs/node"}`,
}

func satisfies(t *testing.T, schema, text string) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("s.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("s.json")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Errorf("%q: %v", text, err)
	} else if err := s.Validate(v); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

// TestResponseFormat: the base, an adapter and a mix, streamed and whole, hot and greedy: always the schema.
func TestResponseFormat(t *testing.T) {
	h := shared(t)
	c := serve(t)
	h.publish(t, "format-a", 8, 5)
	h.publish(t, "format-b", 4, 6)
	for name, schema := range formatSchemas {
		for i, model := range []string{"demo", "format-a", "format-a:0.5+format-b:0.7"} {
			q := object{"model": model, "n": 2, "seed": 3 + i, "temperature": 1.5, "top_p": 1, "max_tokens": 400, "logprobs": true,
				"messages":        []object{{"role": "user", "content": "Tell me of a fox."}},
				"response_format": object{"type": "json_schema", "json_schema": object{"name": name, "strict": true, "schema": json.RawMessage(schema)}}}
			var whole chatJSON
			c.post("/v1/chat/completions", q).want(200).into(&whole)
			q["stream"] = true
			g := gather(t, c.post("/v1/chat/completions", q).want(200).events())
			for _, choice := range whole.Choices {
				text := choice.Message.Content
				if *choice.FinishReason == "length" {
					continue // the tree may be endless
				}
				satisfies(t, schema, text)
				if g.text[choice.Index] != text || g.finish[choice.Index] != "stop" {
					t.Errorf("streamed it is %q (%s), whole %q", g.text[choice.Index], g.finish[choice.Index], text)
				}
				if len(choice.Logprobs.Content) == 0 {
					t.Error("no logprobs")
				}
			}
		}
		q := object{"prompt": []string{"A fox", "A hen"}, "temperature": 0, "max_tokens": 400, "guided_json": json.RawMessage(schema)}
		var got struct{ Choices []completionChoice }
		c.post("/v1/completions", q).want(200).into(&got)
		for _, choice := range got.Choices {
			if *choice.FinishReason == "stop" {
				satisfies(t, schema, choice.Text)
			} else if name != "tree" {
				t.Errorf("%q ends by %s", choice.Text, *choice.FinishReason)
			}
		}
	}
}

func TestOtherFormats(t *testing.T) {
	c := serve(t)
	complete := func(q object) completionChoice {
		t.Helper()
		q["prompt"] = "The fox is"
		if q["max_tokens"] == nil {
			q["max_tokens"] = 60
		}
		var got struct{ Choices []completionChoice }
		c.post("/v1/completions", q).want(200).into(&got)
		return got.Choices[0]
	}
	for seed := range 3 {
		for _, q := range []object{{"guided_regex": `[A-F]{2}-\d{3}`}, {"structured_outputs": object{"regex": `[A-F]{2}-\d{3}`}}} {
			q["seed"], q["temperature"] = seed, 1.2
			if got := complete(q); !regexp.MustCompile(`^[A-F]{2}-\d{3}$`).MatchString(got.Text) || *got.FinishReason != "stop" {
				t.Errorf("%v: %q (%s)", q, got.Text, *got.FinishReason)
			}
		}
		choices := []string{" red", " reddish", " blue green"}
		for _, q := range []object{{"guided_choice": choices}, {"structured_outputs": object{"choice": choices}}} {
			q["seed"] = seed
			if got := complete(q); !slices.Contains(choices, got.Text) || *got.FinishReason != "stop" {
				t.Errorf("%v: %q (%s)", q, got.Text, *got.FinishReason)
			}
		}
	}
	for _, q := range []object{{"response_format": object{"type": "json_object"}}, {"structured_outputs": object{"json_object": true}},
		{"response_format": object{"type": "json_schema", "json_schema": object{"name": "any"}}}} {
		q["max_tokens"] = 12
		if got := complete(q); !strings.HasPrefix(got.Text, "{") || *got.FinishReason == "length" && json.Valid([]byte(got.Text)) {
			t.Errorf("%v: %q (%s)", q, got.Text, *got.FinishReason)
		}
	}
	for _, q := range []object{{"response_format": object{"type": "text"}}, {"response_format": nil}, {"guided_json": nil}} {
		if got := complete(q); strings.HasPrefix(got.Text, "{") {
			t.Errorf("%v: %q", q, got.Text)
		}
	}
	if got := complete(object{"guided_json": `{"const":[1,"a"]}`, "temperature": 0}); strings.ReplaceAll(strings.ReplaceAll(got.Text, " ", ""), "\n", "") != `[1,"a"]` {
		t.Errorf("a schema as a text: %q", got.Text)
	}
}
