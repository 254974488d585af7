package finetune

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// unlabelled is the label, in an example of tokens, of one that is not trained.
const unlabelled = -100

// tokenExample reads an example that is tokens already, as Hugging Face's data sets have them: input_ids, and labels of the same places, −100 where
// nothing is trained; all are where there are none. attention_mask may be there and hide nothing: examples are packed, so padding would only cost.
func tokenExample(fields map[string]json.RawMessage, vocab int) (Example, error) {
	ids, err := tokenField(fields, "input_ids")
	if err != nil {
		return Example{}, err
	}
	e := Example{IDs: make([]int32, len(ids)), Labels: make([]int32, len(ids))}
	for i, id := range ids {
		if id < 0 || id >= vocab {
			return Example{}, fieldErrorf(fmt.Sprintf("input_ids[%d]", i), "must be a token id in [0, %d), is %d", vocab, id)
		}
		e.IDs[i] = int32(id)
	}
	labels := ids
	if v := fields["labels"]; len(v) > 0 && !bytes.Equal(v, []byte("null")) {
		if labels, err = tokenField(fields, "labels"); err != nil {
			return Example{}, err
		}
	}
	if len(labels) != len(ids) {
		return Example{}, fieldErrorf("labels", "must be as many as input_ids, %d, are %d", len(ids), len(labels))
	}
	for i, l := range labels {
		if l != unlabelled && (l < 0 || l >= vocab) {
			return Example{}, fieldErrorf(fmt.Sprintf("labels[%d]", i), "must be %d or a token id in [0, %d), is %d", unlabelled, vocab, l)
		}
		if l == unlabelled {
			l = -1
		}
		if i > 0 { // the token before predicts it
			e.Labels[i-1] = int32(l)
		}
	}
	if n := len(ids); n > 0 {
		e.Labels[n-1] = -1
	}
	if v := fields["attention_mask"]; len(v) > 0 && !bytes.Equal(v, []byte("null")) {
		mask, err := tokenField(fields, "attention_mask")
		if err != nil {
			return Example{}, err
		}
		if len(mask) != len(ids) {
			return Example{}, fieldErrorf("attention_mask", "must be as long as input_ids, %d, is %d long", len(ids), len(mask))
		}
		for i, m := range mask {
			if m != 1 {
				return Example{}, fieldErrorf(fmt.Sprintf("attention_mask[%d]", i), "must be 1, is %d: leave padding out", m)
			}
		}
	}
	return e, nil
}

// tokenField reads an array of whole numbers.
func tokenField(fields map[string]json.RawMessage, name string) (list []int, err error) {
	raw := fields[name]
	if json.Unmarshal(raw, &list) != nil || bytes.Contains(raw, []byte("null")) { // which would be 0's
		what := kindOf(raw)
		if what == "an array" {
			what = "an array with something else in it"
		}
		return nil, fieldErrorf(name, "must be an array of whole numbers, is %s", what)
	}
	return list, nil
}
