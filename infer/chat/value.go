package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"github.com/ardanlabs/jinja"
)

// valueOf reads JSON into a template value, keys in their order.
func valueOf(raw []byte) (jinja.Value, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	v, err := readValue(dec)
	if err != nil {
		return v, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return v, fmt.Errorf("more than one JSON value")
	}
	return v, nil
}

func readValue(dec *json.Decoder) (jinja.Value, error) {
	t, err := dec.Token()
	if err != nil {
		return jinja.Undefined(), err
	}
	switch t := t.(type) {
	case nil:
		return jinja.None(), nil
	case bool:
		return jinja.NewBool(t), nil
	case string:
		return jinja.NewString(t), nil
	case json.Number:
		if n, err := strconv.ParseInt(string(t), 10, 64); err == nil {
			return jinja.NewInt(n), nil
		}
		f, err := t.Float64()
		return jinja.NewFloat(f), err
	case json.Delim:
		if t == '[' {
			var items []jinja.Value
			for dec.More() {
				v, err := readValue(dec)
				if err != nil {
					return v, err
				}
				items = append(items, v)
			}
			_, err = dec.Token()
			return jinja.NewList(items), err
		}
		out := jinja.NewDict()
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return out, err
			}
			v, err := readValue(dec)
			if err != nil {
				return v, err
			}
			out.AsDict().Set(k.(string), v) // an object's keys are strings
		}
		_, err = dec.Token()
		return out, err
	}
	return jinja.Undefined(), fmt.Errorf("unexpected %v", t)
}
