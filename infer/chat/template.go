package chat

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ardanlabs/jinja"
)

// Options are what a template sees besides a conversation. The zero value is usable.
type Options struct {
	BOS, EOS, Pad, Unk string           // bos_token …; "" leaves it undefined
	Now                func() time.Time // strftime_now's clock; nil is time.Now
}

// Template is a compiled chat template.
type Template struct {
	chat  *jinja.Template
	tools *jinja.Template // used when tools are given; nil: chat
	opts  Options
}

// Input is one conversation to render.
type Input struct {
	Messages            []Message
	Tools               []json.RawMessage // tool descriptions, seen as they stand
	AddGenerationPrompt bool              // end with the beginning of an assistant's turn
	Kwargs              map[string]any    // more variables, such as enable_thinking
}

// Parse compiles a template. The error is ErrSyntax.
func Parse(template string, opts Options) (*Template, error) {
	c, err := compile(template)
	if err != nil {
		return nil, err
	}
	return &Template{chat: c, opts: opts}, nil
}

func compile(template string) (c *jinja.Template, err error) {
	defer func() {
		if r := recover(); r != nil {
			c, err = nil, fmt.Errorf("%w: %v", ErrSyntax, r)
		}
	}()
	// As jinja2's lexer: one kind of line end, and the template's last one is dropped.
	template = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(template)
	template = strings.TrimSuffix(template, "\n")
	if c, err = jinja.Compile(template); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSyntax, err)
	}
	return c, nil
}

// Render returns the text of a conversation. Errors are ErrTemplate or ErrMessage.
func (t *Template) Render(in Input) (text string, err error) {
	data, err := t.data(in)
	if err != nil {
		return "", err
	}
	var raised *RaisedError
	data["raise_exception"] = jinja.NewCallable("raise_exception", func(args []jinja.Value, kw map[string]jinja.Value) (jinja.Value, error) {
		raised = &RaisedError{}
		if v, ok := argument(args, kw, "message"); ok {
			raised.Message = plain(v)
		}
		return jinja.Undefined(), raised
	})
	c := t.chat
	if len(in.Tools) > 0 && t.tools != nil {
		c = t.tools
	}
	defer func() {
		if r := recover(); r != nil {
			text, err = "", fmt.Errorf("%w: %v", ErrTemplate, r)
		}
	}()
	text, err = c.RenderValues(data)
	switch {
	case err != nil && raised != nil:
		return "", raised
	case err != nil:
		return "", fmt.Errorf("%w: %v", ErrTemplate, err)
	}
	return text, nil
}

func (t *Template) data(in Input) (map[string]jinja.Value, error) {
	data := map[string]jinja.Value{}
	for name, token := range map[string]string{"bos_token": t.opts.BOS, "eos_token": t.opts.EOS, "pad_token": t.opts.Pad, "unk_token": t.opts.Unk} {
		if token != "" {
			data[name] = jinja.NewString(token)
		}
	}
	for name, x := range in.Kwargs {
		raw, err := json.Marshal(x)
		if err != nil {
			return nil, fmt.Errorf("%w: argument %s: %v", ErrMessage, name, err)
		}
		if data[name], err = valueOf(raw); err != nil {
			return nil, fmt.Errorf("%w: argument %s: %v", ErrMessage, name, err)
		}
	}
	messages := make([]jinja.Value, len(in.Messages))
	for i := range in.Messages {
		v, err := in.Messages[i].value()
		if err != nil {
			return nil, fmt.Errorf("messages[%d]: %w", i, err)
		}
		messages[i] = v
	}
	data["messages"] = jinja.NewList(messages)
	data["add_generation_prompt"] = jinja.NewBool(in.AddGenerationPrompt)
	data["tools"] = jinja.None()
	if len(in.Tools) > 0 {
		tools := make([]jinja.Value, len(in.Tools))
		for i, raw := range in.Tools {
			v, err := valueOf(raw)
			if err != nil {
				return nil, fmt.Errorf("%w: tools[%d]: %v", ErrMessage, i, err)
			}
			tools[i] = v
		}
		data["tools"] = jinja.NewList(tools)
	}
	if _, ok := data["documents"]; !ok {
		data["documents"] = jinja.None()
	}
	now := t.opts.Now
	if now == nil {
		now = time.Now
	}
	data["strftime_now"] = jinja.NewCallable("strftime_now", func(args []jinja.Value, kw map[string]jinja.Value) (jinja.Value, error) {
		v, ok := argument(args, kw, "format")
		if !ok || !v.IsString() {
			return jinja.Undefined(), fmt.Errorf("strftime_now wants a format")
		}
		return jinja.NewString(strftime(now(), v.AsString())), nil
	})
	return data, nil
}

func argument(args []jinja.Value, kw map[string]jinja.Value, name string) (jinja.Value, bool) {
	if len(args) > 0 {
		return args[0], true
	}
	v, ok := kw[name]
	return v, ok
}

func plain(v jinja.Value) string {
	if v.IsString() {
		return v.AsString()
	}
	return v.String()
}

// strftime formats as Python's datetime does in the C locale. Codes it does not know stay as they are.
func strftime(t time.Time, format string) string {
	layouts := map[byte]string{'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM",
		'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'j': "002", 'f': "000000", 'e': "_2",
		'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'x': "01/02/06", 'X': "15:04:05", 'c': "Mon Jan _2 15:04:05 2006"}
	var w strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			w.WriteByte(format[i])
			continue
		}
		i++
		unpadded := format[i] == '-' && i+1 < len(format)
		if unpadded {
			i++
		}
		var s string
		switch c := format[i]; {
		case c == '%':
			s = "%"
		case c == 'Z' || c == 'z': // a local time without a zone
		case c == 'f':
			s = fmt.Sprintf("%06d", t.Nanosecond()/1000)
		case c == 'w':
			s = strconv.Itoa(int(t.Weekday()))
		case layouts[c] != "":
			s = t.Format(layouts[c])
		default:
			s = "%" + string(c)
		}
		if unpadded {
			if s = strings.TrimLeft(s, "0 "); s == "" {
				s = "0"
			}
		}
		w.WriteString(s)
	}
	return w.String()
}
