package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"regexp"

	"bhive/infer"
	"bhive/infer/grammar"
)

// maxGrammars is how many compiled grammars a server keeps.
const maxGrammars = 128

// formatFields say what form a text must have: OpenAI's response_format, and vLLM's fields.
type formatFields struct {
	ResponseFormat    json.RawMessage `json:"response_format"`
	GuidedJSON        json.RawMessage `json:"guided_json"`
	GuidedRegex       *string         `json:"guided_regex"`
	GuidedChoice      []string        `json:"guided_choice"`
	GuidedGrammar     json.RawMessage `json:"guided_grammar"`
	StructuredOutputs *struct {
		JSON          json.RawMessage `json:"json"`
		JSONObject    *bool           `json:"json_object"`
		Regex         *string         `json:"regex"`
		Choice        []string        `json:"choice"`
		Grammar       json.RawMessage `json:"grammar"`
		StructuralTag json.RawMessage `json:"structural_tag"`
	} `json:"structured_outputs"`
}

// newGrammars makes the cache of grammars over the model's tokens. Special tokens are in no text.
func newGrammars(d Deps) *grammar.Cache {
	t := d.Tokenizer
	return grammar.NewCache(grammar.NewVocabulary(t.VocabSize(), func(id int) []byte {
		if t.IsSpecial(id) {
			return nil
		}
		return t.TokenBytes(id)
	}, d.Engine.Config().EOS), maxGrammars)
}

var schemaName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// constraint makes what the fields ask for, nil where they ask for nothing. Its second result goes into infer.Request.
func (s *Server) constraint(ctx context.Context, f *formatFields) (func() infer.Constraint, error) {
	type source struct {
		param string // as errors name it
		make  func(c *grammar.Cache) (*grammar.Bound, error)
	}
	owner := tenant(ctx)
	var asked []source
	schema := func(param string, raw json.RawMessage) {
		if !given(raw) {
			return
		}
		var text string
		if json.Unmarshal(raw, &text) == nil { // a schema's text is as good
			raw = json.RawMessage(text)
		}
		asked = append(asked, source{param, func(c *grammar.Cache) (*grammar.Bound, error) { return c.Schema(ctx, owner, raw) }})
	}
	regex := func(param string, p *string) {
		if p != nil {
			asked = append(asked, source{param, func(c *grammar.Cache) (*grammar.Bound, error) { return c.Regex(ctx, owner, *p) }})
		}
	}
	choice := func(param string, texts []string) {
		if texts != nil {
			asked = append(asked, source{param, func(c *grammar.Cache) (*grammar.Bound, error) { return c.Choice(ctx, owner, texts) }})
		}
	}
	object := source{"response_format", func(c *grammar.Cache) (*grammar.Bound, error) { return c.Object(ctx, owner) }}

	if given(f.ResponseFormat) {
		var format struct {
			Type   string `json:"type"`
			Schema *struct {
				Name   string          `json:"name"`
				Schema json.RawMessage `json:"schema"`
			} `json:"json_schema"`
		}
		if err := json.Unmarshal(f.ResponseFormat, &format); err != nil {
			return nil, badField("response_format", "response_format: must be an object like {\"type\": \"json_object\"}")
		}
		switch format.Type {
		case "text":
		case "json_object":
			asked = append(asked, object)
		case "json_schema":
			switch {
			case format.Schema == nil:
				return nil, badField("response_format.json_schema", "response_format.json_schema: is missing")
			case !schemaName.MatchString(format.Schema.Name):
				return nil, badField("response_format.json_schema.name", "response_format.json_schema.name: must be 1 to 64 letters, digits, underscores or dashes")
			case !given(format.Schema.Schema):
				asked = append(asked, object)
			}
			schema("response_format.json_schema.schema", format.Schema.Schema)
		default:
			return nil, badField("response_format.type", "response_format.type: must be text, json_object or json_schema, is %.40q", format.Type)
		}
	}
	schema("guided_json", f.GuidedJSON)
	regex("guided_regex", f.GuidedRegex)
	choice("guided_choice", f.GuidedChoice)
	if given(f.GuidedGrammar) {
		return nil, badField("guided_grammar", "guided_grammar: not supported by this server")
	}
	if o := f.StructuredOutputs; o != nil {
		schema("structured_outputs.json", o.JSON)
		regex("structured_outputs.regex", o.Regex)
		choice("structured_outputs.choice", o.Choice)
		if o.JSONObject != nil && *o.JSONObject {
			asked = append(asked, source{"structured_outputs.json_object", object.make})
		}
		if given(o.Grammar) || given(o.StructuralTag) {
			return nil, badField("structured_outputs", "structured_outputs: grammar and structural_tag are not supported by this server")
		}
	}
	switch len(asked) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, badField(asked[1].param, "%s: cannot be combined with %s", asked[1].param, asked[0].param)
	}
	bound, err := asked[0].make(s.grammars())
	var bad *grammar.Error
	if errors.As(err, &bad) {
		at := ""
		if bad.Pointer != "" {
			at = " at " + bad.Pointer
		}
		return nil, badField(asked[0].param, "%s%s: %s", asked[0].param, at, bad.Message)
	}
	if err != nil {
		return nil, err
	}
	return func() infer.Constraint { return bound.New() }, nil
}

// given reports whether a field is there and not null.
func given(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}
