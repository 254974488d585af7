package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestEnvironmentMeansOneThing: a variable that several verbs read is of one type with one set of values, and those below are not read by verbs to
// which they would mean something else: BHIVE_MODEL, which names a directory to serve, is no model that a client may ask for.
func TestEnvironmentMeansOneThing(t *testing.T) {
	parser, err := kong.New(&cli{}, kong.DefaultEnvars("BHIVE"), kong.Vars{"version": "test"})
	if err != nil {
		t.Fatal(err)
	}
	form := map[string]string{}   // of a variable
	readBy := map[string]string{} // who gave it
	var visit func(*kong.Node)
	visit = func(n *kong.Node) {
		for _, f := range n.Flags {
			for _, env := range f.Envs {
				is := fmt.Sprintf("%s in {%s}", strings.TrimLeft(f.Target.Type().String(), "*[]"), f.Enum) // a list may be of one
				if was, ok := form[env]; ok && was != is {
					t.Errorf("%s is %s to %s, and %s to %s", env, was, readBy[env], is, n.Path())
				}
				form[env], readBy[env] = is, readBy[env]+" "+n.Path()
			}
		}
		for _, child := range n.Children {
			visit(child)
		}
	}
	visit(parser.Model.Node)
	for _, x := range []struct{ verb, env, flag string }{
		{"chat", "BHIVE_MODEL", "model"}, {"chat", "BHIVE_MAX_TOKENS", "max-tokens"}, {"plan", "BHIVE_DEVICE", "device"}, {"plan", "BHIVE_ALPHA", "alpha"},
	} {
		for _, n := range parser.Model.Children {
			for _, f := range n.Flags {
				if n.Name == x.verb && f.Name == x.flag && len(f.Envs) == 1 && f.Envs[0] == x.env {
					t.Errorf("%s reads %s, which is another thing to other verbs", x.verb, x.env)
				}
			}
		}
	}
}
