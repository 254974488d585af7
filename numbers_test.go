package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestNumbers: a number that a command could do nothing with is an error that names the flag.
func TestNumbers(t *testing.T) {
	for _, x := range []struct{ args, want string }{
		{"plan --memory-gib NaN", "--memory-gib must be a number"},
		{"plan --memory-gib Inf", "--memory-gib must be a number"},
		{"plan --memory-gib=-80", "--memory-gib must be above 0, is -80"},
		{"plan --memory-gib 1e30", "--memory-gib must be at most"},
		{"plan --bandwidth-gbs 0", "--bandwidth-gbs must be above 0, is 0"},
		{"plan --tflops=-Inf", "--tflops must be a number"},
		{"plan --rows=-5 -r 1", "--rows must be at least 0"},
		{"plan --alpha Inf", "--alpha must be a number"},
		{"plan --batches 1,0", "--batches must be at least 1, is 0"},
		{"bench gpu --seconds 0", "--seconds must be above 0, is 0"},
		{"bench gpu --seconds=-1", "--seconds must be above 0, is -1"},
		{"bench gpu --seconds NaN", "--seconds must be a number"},
		{"bench gpu --arrivals 0", "--arrivals must be above 0"},
		{"bench gpu --counts=1,-1", "--counts must be at least 1, is -1"},
		{"bench gpu --tpot-target=10ms,-1s", "--tpot-target must be at least 0, is -1s"},
		{"bench --steps 0", "--steps must be at least 1"},
		{"serve --quota-mib=-1", "--quota-mib must be at least 0"},
		{"serve --kv-mib=-2", "--kv-mib must be at least -1"},
		{"serve --gpu-memory-utilization 1.5", "--gpu-memory-utilization must be at most 1, is 1.5"},
		{"serve --drain-timeout=-1s", "--drain-timeout must be at least 0, is -1s"},
		{"chat --max-tokens=-1", "--max-tokens must be at least 1"},
		{"chat --temperature NaN", "--temperature must be a number"},
		{"tune file --name n --epochs Inf", "--epochs must be a number"},
		{"adapters import dir --rank=-1", "--rank must be at least 1"},
		{"serve", ""}, {"plan --memory-gib 80", ""}, {"bench gpu --seconds 0.5", ""}, {"bench", ""}, {"chat --temperature 0", ""}, {"serve --kv-mib=-1", ""},
	} {
		parser, err := kong.New(&cli{}, kong.DefaultEnvars("BHIVE"), kong.Vars{"version": "test"})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.Parse(strings.Fields(x.args))
		if err == nil {
			err = checkNumbers(parsed.Flags())
		}
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", x.args, err, x.want)
		}
	}
}

// TestNumbersHaveBounds: a flag that counts or measures says what it may be; a seed may be anything.
func TestNumbersHaveBounds(t *testing.T) {
	parser, err := kong.New(&cli{}, kong.DefaultEnvars("BHIVE"), kong.Vars{"version": "test"})
	if err != nil {
		t.Fatal(err)
	}
	var visit func(*kong.Node)
	visit = func(n *kong.Node) {
		for _, f := range n.Flags {
			if strings.HasSuffix(f.Name, "seed") || f.Name == "log-level" {
				continue
			}
			one := f.Target.Type()
			for one.Kind() == reflect.Pointer || one.Kind() == reflect.Slice {
				one = one.Elem()
			}
			if len(numbers(reflect.New(one).Elem())) > 0 && !f.Tag.Has("least") && !f.Tag.Has("above") {
				t.Errorf("%s --%s has no bound", n.Path(), f.Name)
			}
		}
		for _, child := range n.Children {
			visit(child)
		}
	}
	visit(parser.Model.Node)
}
