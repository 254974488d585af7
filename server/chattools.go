package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"bhive/infer"
	"bhive/infer/toolcall"
)

// toolPlan is what a request asks of tools.
type toolPlan struct {
	format  toolcall.Format
	offered []json.RawMessage // as the template sees them
	tools   []tool
	must    bool   // some tool is to be called,
	named   string // this one
	single  bool   // no more than one call
	prefix  string // of the answer: it is forced to begin so
}

// tool is a function that the model may call.
type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string          `json:"name"`
		Description *string         `json:"description"`
		Parameters  json.RawMessage `json:"parameters"`
		Strict      *bool           `json:"strict"`
	} `json:"function"`
}

// maxTools is the most tools of a request, OpenAI's limit.
const maxTools = 128

var toolName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// toolChoice reads `tool_choice`: a word, a function, or functions that are allowed.
type toolChoice struct {
	mode    string // none, auto, required
	named   string
	allowed []string // nil: all
}

func (c *toolChoice) UnmarshalJSON(b []byte) error {
	bad := func() error {
		return badField("tool_choice", `tool_choice: must be "none", "auto", "required", {"type": "function", "function": {"name": …}} or {"type": "allowed_tools", …}`)
	}
	type function struct {
		Type     string `json:"type"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	var word *string
	var o struct {
		function
		Allowed struct {
			Mode  string     `json:"mode"`
			Tools []function `json:"tools"`
		} `json:"allowed_tools"`
	}
	if json.Unmarshal(b, &word) == nil {
		if *c = (toolChoice{mode: "auto"}); word != nil {
			c.mode = *word
		}
		if !slices.Contains([]string{"none", "auto", "required"}, c.mode) {
			return bad()
		}
		return nil
	}
	if json.Unmarshal(b, &o) != nil {
		return bad()
	}
	switch {
	case o.Type == "function" && o.Function.Name != "":
		*c = toolChoice{mode: "required", named: o.Function.Name}
	case o.Type == "allowed_tools" && (o.Allowed.Mode == "auto" || o.Allowed.Mode == "required") && len(o.Allowed.Tools) > 0:
		*c = toolChoice{mode: o.Allowed.Mode}
		for _, f := range o.Allowed.Tools {
			if f.Type != "function" || f.Function.Name == "" {
				return bad()
			}
			c.allowed = append(c.allowed, f.Function.Name)
		}
	default:
		return bad()
	}
	return nil
}

// planTools reads a request's tools; nil where the model is to call none.
func (s *Server) planTools(q *chatRequest) (*toolPlan, error) {
	choice := toolChoice{mode: "auto"}
	if len(q.ToolChoice) > 0 {
		if err := json.Unmarshal(q.ToolChoice, &choice); err != nil {
			return nil, err
		}
	}
	plan := &toolPlan{format: s.d.ToolCalls, must: choice.mode == "required", named: choice.named, single: q.Parallel != nil && !*q.Parallel}
	if err := plan.read(q.Tools); err != nil {
		return nil, err
	}
	switch {
	case len(plan.tools) == 0 && plan.must:
		return nil, badField("tool_choice", "tool_choice: needs tools")
	case len(plan.tools) == 0 || choice.mode == "none":
		return nil, nil
	case s.d.Template == nil:
		return nil, badField("tools", "tools: the model %s has no chat template", s.d.Model.Name)
	case plan.format == toolcall.None:
		return nil, badField("tools", "tools: the chat template of the model %s does not define tools, or writes calls in a form that this server does not read", s.d.Model.Name)
	}
	if choice.named != "" {
		choice.allowed = []string{choice.named}
	}
	for _, name := range choice.allowed {
		if !slices.Contains(plan.names(), name) {
			return nil, badField("tool_choice", "tool_choice: %q is not among the tools", name)
		}
	}
	if choice.allowed != nil && choice.named == "" { // the model sees those alone
		for i := len(plan.tools) - 1; i >= 0; i-- {
			if !slices.Contains(choice.allowed, plan.tools[i].Function.Name) {
				plan.tools, plan.offered = slices.Delete(plan.tools, i, i+1), slices.Delete(plan.offered, i, i+1)
			}
		}
	}
	if plan.must {
		plan.prefix, _ = plan.format.Prefix(plan.named)
		plan.single = true
	}
	return plan, nil
}

// read checks `tools`.
func (p *toolPlan) read(raw json.RawMessage) error {
	if !asks(raw) {
		return nil
	}
	if err := json.Unmarshal(raw, &p.offered); err != nil {
		return badField("tools", "tools: must be an array")
	}
	if len(p.offered) > maxTools {
		return badField("tools", "tools: has %d, at most %d are possible", len(p.offered), maxTools)
	}
	for i, one := range p.offered {
		at := fmt.Sprintf("tools[%d]", i)
		var t tool
		if err := json.Unmarshal(one, &t); err != nil {
			return badField(at, "%s: must be {\"type\": \"function\", \"function\": {\"name\": …}}", at)
		}
		f := &t.Function
		var parameters map[string]json.RawMessage
		switch {
		case t.Type != "function":
			return badField(at+".type", "%s.type: must be function, is %q", at, t.Type)
		case !toolName.MatchString(f.Name):
			return badField(at+".function.name", "%s.function.name: must be 1 to 64 letters, digits, _ or -, is %q", at, f.Name)
		case slices.Contains(p.names(), f.Name):
			return badField(at+".function.name", "%s.function.name: there is another tool %q", at, f.Name)
		case len(f.Parameters) > 0 && json.Unmarshal(f.Parameters, &parameters) != nil:
			return badField(at+".function.parameters", "%s.function.parameters: must be a JSON Schema, an object", at)
		}
		p.tools = append(p.tools, t)
	}
	return nil
}

func (p *toolPlan) names() []string {
	var names []string
	for i := range p.tools {
		names = append(names, p.tools[i].Function.Name)
	}
	return names
}

// parser reads one choice; nil without tools.
func (p *toolPlan) parser() *choiceParser {
	if p == nil {
		return nil
	}
	c := &choiceParser{Parser: toolcall.NewParser(p.format, p.names(), p.single), mistral: p.format == toolcall.Mistral}
	c.begin = c.Add(p.prefix)
	return c
}

// choiceParser reads the text of one choice.
type choiceParser struct {
	*toolcall.Parser
	mistral bool
	begin   []toolcall.Piece // what the prompt's end holds of a call
}

// pieces is what a delta adds; last tells that no other follows.
func (c *choiceParser) pieces(text string, last bool) []toolcall.Piece {
	out := append(c.begin, c.Add(text)...)
	c.begin = nil
	if last {
		out = append(out, c.End()...)
	}
	return out
}

// newID names a call. Mistral's templates want nine letters and digits.
func (c *choiceParser) newID() string {
	id := strings.ToLower(rand.Text())
	if c.mistral {
		return id[:9]
	}
	return "call_" + id[:24]
}

// finish is why the choice ended, given the engine's reason.
func (c *choiceParser) finish(reason *string) *string {
	if c != nil && c.Calls() > 0 && *reason == "stop" {
		calls := "tool_calls"
		return &calls
	}
	return reason
}

// checkCalls checks the calls and results in a conversation.
func (s *Server) checkCalls(m messages) error {
	for i := range m {
		at := fmt.Sprintf("messages[%d]", i)
		if s.d.ToolCalls == toolcall.None && (len(m[i].ToolCalls) > 0 || m[i].Role == "tool") {
			return badField(at, "%s: the chat template of the model %s does not define tools", at, s.d.Model.Name)
		}
		for j, raw := range m[i].ToolCalls {
			at := fmt.Sprintf("%s.tool_calls[%d]", at, j)
			var call struct {
				Function struct {
					Name      string          `json:"name"`
					Arguments json.RawMessage `json:"arguments"`
				} `json:"function"`
			}
			if json.Unmarshal(raw, &call) != nil || call.Function.Name == "" || len(call.Function.Arguments) == 0 ||
				!strings.ContainsRune(`"{`, rune(call.Function.Arguments[0])) {
				return badField(at, `%s: must be {"id": …, "type": "function", "function": {"name": …, "arguments": …}}`, at)
			}
		}
	}
	return nil
}

// callConstraint holds a forced call to the parameters of its tool; nil where none is forced. Behind the plan's prefix comes the arguments'
// object, or for any of the tools the object that describes the call.
func (s *Server) callConstraint(ctx context.Context, p *toolPlan) (func() infer.Constraint, error) {
	if !p.must {
		return nil, nil
	}
	_, key := p.format.Prefix(p.named)
	var schemas []json.RawMessage
	for i := range p.tools {
		name := p.tools[i].Function.Name
		if p.named != "" && name != p.named {
			continue
		}
		parameters, err := s.parameters(ctx, i, &p.tools[i])
		if err != nil {
			return nil, err
		}
		if p.named == "" {
			path := fmt.Sprintf("/anyOf/%d/properties/%s", len(schemas), key)
			parameters = fmt.Appendf(nil, `{"type":"object","properties":{"name":{"const":%s},%s:%s},"required":["name",%[2]s],"additionalProperties":false}`,
				quote(name), quote(key), rebase(parameters, path))
		}
		schemas = append(schemas, parameters)
	}
	schema := schemas[0]
	if p.named == "" {
		schema = mustJSON(map[string]any{"anyOf": schemas})
	}
	bound, err := s.grammars().Schema(ctx, tenant(ctx), schema)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, badField("tools", "tools: %s", err)
	}
	return func() infer.Constraint { return bound.New() }, nil
}

// anyObject are the parameters of a tool that names none.
var anyObject = json.RawMessage(`{"type":"object"}`)

// parameters is the schema of a tool's arguments: that of any object, where the tool's own cannot be compiled and need not be kept strictly.
func (s *Server) parameters(ctx context.Context, i int, t *tool) (json.RawMessage, error) {
	f := &t.Function
	if !given(f.Parameters) {
		return anyObject, nil
	}
	var b bytes.Buffer
	var schema map[string]json.RawMessage
	if err := errors.Join(json.Compact(&b, f.Parameters), json.Unmarshal(f.Parameters, &schema)); err != nil {
		return nil, err
	}
	if len(schema) == 0 {
		return anyObject, nil
	}
	raw := json.RawMessage(b.Bytes())
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { _, ok := schema[w]; return ok })
	}
	if !says("type") { // arguments are an object, whether the schema says so or not
		raw = append(json.RawMessage(`{"type":"object",`), raw[1:]...)
	}
	// No arguments are made up that the tool does not name, where the schema leaves it open.
	if says("properties") && !says("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties", "allOf", "anyOf", "oneOf", "$ref") {
		raw = append(json.RawMessage(`{"additionalProperties":false,`), raw[1:]...)
	}
	_, err := s.grammars().Schema(ctx, tenant(ctx), raw)
	switch {
	case err == nil:
		return raw, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case f.Strict != nil && *f.Strict:
		param := fmt.Sprintf("tools[%d].function.parameters", i)
		return nil, badField(param, "%s: %s", param, err)
	}
	return anyObject, nil
}

// rebase makes a compact schema fit for a place below another's root, which its references start from.
func rebase(schema json.RawMessage, path string) json.RawMessage {
	return bytes.ReplaceAll(schema, []byte(`"$ref":"#`), []byte(`"$ref":"#`+path))
}
