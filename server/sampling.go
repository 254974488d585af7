package server

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"bhive/adapters"
	"bhive/infer"
)

// samplingFields are the fields that both kinds of completion share. A pointer tells an absent (or null) field from a zero.
type samplingFields struct {
	Model         string `json:"model"`
	Stream        *bool  `json:"stream"`
	StreamOptions *struct {
		IncludeUsage *bool `json:"include_usage"`
	} `json:"stream_options"`
	N                 *int               `json:"n"`
	Temperature       *float32           `json:"temperature"`
	TopP              *float32           `json:"top_p"`
	TopK              *int               `json:"top_k"`
	MinP              *float32           `json:"min_p"`
	RepetitionPenalty *float32           `json:"repetition_penalty"`
	PresencePenalty   *float32           `json:"presence_penalty"`
	FrequencyPenalty  *float32           `json:"frequency_penalty"`
	LogitBias         map[string]float32 `json:"logit_bias"`
	Seed              *int64             `json:"seed"`
	Stop              stopStrings        `json:"stop"`
	StopTokenIDs      []*int             `json:"stop_token_ids"`
	IncludeStop       *bool              `json:"include_stop_str_in_output"`
	IgnoreEOS         *bool              `json:"ignore_eos"`
	MinTokens         *int               `json:"min_tokens"`
	SkipSpecial       *bool              `json:"skip_special_tokens"`
	formatFields

	// Of a conversation, or not supported: refused rather than ignored where the answer would not be what was asked for.
	Tools        json.RawMessage `json:"tools"`
	ToolChoice   json.RawMessage `json:"tool_choice"`
	Parallel     *bool           `json:"parallel_tool_calls"`
	Functions    json.RawMessage `json:"functions"`
	FunctionCall json.RawMessage `json:"function_call"`
}

// stopStrings reads `stop`: null, a string or an array of them.
type stopStrings []string

func (s *stopStrings) UnmarshalJSON(b []byte) error {
	var one *string
	if json.Unmarshal(b, &one) == nil {
		if *s = nil; one != nil {
			*s = stopStrings{*one}
		}
		return nil
	}
	var many []string
	if json.Unmarshal(b, &many) != nil {
		return badField("stop", "stop: must be a string or an array of strings")
	}
	*s = many
	return nil
}

// asks reports whether a raw field holds anything but null and empty lists.
func asks(raw json.RawMessage) bool {
	switch strings.TrimSpace(string(raw)) {
	case "", "null", "[]", "{}", `"none"`, `"auto"`:
		return false
	}
	return true
}

// params turns the fields into the engine's, over the model's defaults. Ranges are the engine's to check.
func (f *samplingFields) params(defaults infer.Params) (infer.Params, error) {
	for _, u := range []struct {
		name string
		raw  json.RawMessage
	}{{"functions", f.Functions}, {"function_call", f.FunctionCall}} {
		if asks(u.raw) {
			return infer.Params{}, badField(u.name, "%s: not supported by this server, tools are", u.name)
		}
	}
	if f.StreamOptions != nil && !f.stream() {
		return infer.Params{}, badField("stream_options", "stream_options: needs stream to be true")
	}
	p := defaults
	set(&p.N, f.N)
	set(&p.Temperature, f.Temperature)
	set(&p.TopP, f.TopP)
	set(&p.TopK, f.TopK)
	set(&p.MinP, f.MinP)
	set(&p.RepetitionPenalty, f.RepetitionPenalty)
	set(&p.PresencePenalty, f.PresencePenalty)
	set(&p.FrequencyPenalty, f.FrequencyPenalty)
	set(&p.IncludeStop, f.IncludeStop)
	set(&p.IgnoreEOS, f.IgnoreEOS)
	set(&p.MinTokens, f.MinTokens)
	set(&p.SkipSpecial, f.SkipSpecial)
	p.Seed, p.Stop = f.Seed, f.Stop
	var err error
	if p.StopTokens, err = tokenIDs("stop_token_ids", f.StopTokenIDs); err != nil {
		return infer.Params{}, err
	}
	if len(f.LogitBias) > 0 {
		p.LogitBias = make(map[int]float32, len(f.LogitBias))
		for key, v := range f.LogitBias {
			id, err := strconv.Atoi(key)
			if err != nil {
				return infer.Params{}, badField("logit_bias", "logit_bias: %q is not a token id", key)
			}
			p.LogitBias[id] = v
		}
	}
	return p, nil
}

// tokenIDs are a list's ids. A null among them would be token 0.
func tokenIDs(field string, list []*int) ([]int, error) {
	var ids []int
	for i, id := range list {
		if id == nil {
			return nil, badField(field, "%s: [%d] is null, not a token id", field, i)
		}
		ids = append(ids, *id)
	}
	return ids, nil
}

func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

func (f *samplingFields) stream() bool { return f.Stream != nil && *f.Stream }

func (f *samplingFields) includeUsage() bool {
	return f.StreamOptions != nil && f.StreamOptions.IncludeUsage != nil && *f.StreamOptions.IncludeUsage
}

// resolve finds what a request's model means: the base, or versions of adapters.
func (s *Server) resolve(ctx context.Context, model string) (adapters.Target, error) {
	if model == "" || model == s.d.Model.Name {
		return adapters.Target{}, nil
	}
	ref, err := adapters.ParseRef(model)
	if err != nil {
		if strings.ContainsAny(model, ":+") { // meant as a mix: say what is wrong with it
			return adapters.Target{}, badField("model", "model: %s", err)
		}
		return adapters.Target{}, modelNotFound(model)
	}
	target, err := s.d.Registry.Resolve(ctx, tenant(ctx), ref, callerOf(ctx).admin)
	if errors.Is(err, adapters.ErrNotFound) {
		return adapters.Target{}, modelNotFound(model)
	}
	return target, err
}
