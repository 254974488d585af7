package tokenizer

import (
	"encoding/json"
	"fmt"
)

// postProcessor adds special tokens around the ids of a text.
type postProcessor interface {
	process(ids []int) []int
}

// template is a list of fixed ids and places for the text's own (-1).
type template []int

func (t template) process(ids []int) []int {
	out := make([]int, 0, len(ids)+len(t))
	for _, id := range t {
		if id < 0 {
			out = append(out, ids...)
		} else {
			out = append(out, id)
		}
	}
	return out
}

// parsePostProcessor appends to out the steps of a post-processor, sequences unrolled.
func parsePostProcessor(raw json.RawMessage, where string, out []postProcessor) ([]postProcessor, error) {
	kind, err := kindOf(raw, where)
	if err != nil || kind == "" {
		return out, err
	}
	switch kind {
	case "ByteLevel": // trims offsets, which are not kept here
		return out, nil
	case "Sequence":
		var f struct{ Processors []json.RawMessage }
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		for _, r := range f.Processors {
			if out, err = parsePostProcessor(r, where, out); err != nil {
				return nil, err
			}
		}
		return out, nil
	case "TemplateProcessing":
		t, err := parseTemplate(raw, where)
		if err != nil {
			return nil, err
		}
		return append(out, t), nil
	}
	return nil, unsupported(where, kind)
}

func parseTemplate(raw json.RawMessage, where string) (template, error) {
	type part struct{ ID string }
	var f struct {
		Single []struct {
			SpecialToken *part
			Sequence     *part
		}
		SpecialTokens map[string]struct{ IDs []int } `json:"special_tokens"`
	}
	if err := fields(raw, &f, where); err != nil {
		return nil, err
	}
	t := template{}
	for i, p := range f.Single {
		switch {
		case p.Sequence != nil && p.Sequence.ID == "A":
			t = append(t, -1)
		case p.SpecialToken != nil:
			s, ok := f.SpecialTokens[p.SpecialToken.ID]
			if !ok {
				return nil, fmt.Errorf("%w: %s: %q is not among its special_tokens", ErrFormat, where, p.SpecialToken.ID)
			}
			for _, id := range s.IDs {
				if id < 0 {
					return nil, fmt.Errorf("%w: %s: %q has id %d", ErrFormat, where, p.SpecialToken.ID, id)
				}
				t = append(t, id)
			}
		default:
			return nil, fmt.Errorf("%w: %s: part %d of single", ErrUnsupported, where, i)
		}
	}
	return t, nil
}
