package grammar

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestPatternsMatchAsRegexp: the automaton of an expression finds what Go's engine finds, where both mean the same.
func TestPatternsMatchAsRegexp(t *testing.T) {
	atoms := []string{"a", "b", "ab", "é", "[a-c]", "[^ab]", `\d`, `\w`, `\W`, "(?:a|bc)", "(a)", `\.`, "😀", `[\d_]`, "(?i:K)"}
	rapid.Check(t, func(t *rapid.T) {
		var p strings.Builder
		if rapid.Bool().Draw(t, "begin") {
			p.WriteString("^")
		}
		for range rapid.IntRange(0, 5).Draw(t, "atoms") {
			p.WriteString(rapid.SampledFrom(atoms).Draw(t, "atom"))
			p.WriteString(rapid.SampledFrom([]string{"", "", "*", "+", "?", "{2}", "{1,3}", "+?", "|", `\b`, `\B`}).Draw(t, "times"))
		}
		if rapid.Bool().Draw(t, "end") {
			p.WriteString("$")
		}
		go_, err := regexp.Compile(p.String())
		if err != nil {
			return
		}
		d, err := compilePattern(p.String(), false, newWork(), "")
		if err != nil {
			t.Fatal(err)
		}
		whole, err := Regex(p.String())
		if err != nil && !strings.Contains(err.Error(), "matches nothing") {
			t.Fatal(err)
		}
		go_whole := regexp.MustCompile("^(?:" + p.String() + ")$")
		for range 20 {
			s := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "é", "1", "_", ".", " ", "😀", "k", "K", "\u212a", "\n", `"`, `\`}), 0, 6).Draw(t, "text"), "")
			if d.match(s) != go_.MatchString(s) {
				t.Fatalf("%q in %q: %v, want %v", p.String(), s, d.match(s), go_.MatchString(s))
			}
			if !d.complement().match(s) != go_.MatchString(s) {
				t.Fatalf("the complement of %q on %q", p.String(), s)
			}
			if whole != nil && whole.Accepts([]byte(s)) != go_whole.MatchString(s) {
				t.Fatalf("%q as a whole on %q: %v", p.String(), s, !go_whole.MatchString(s))
			}
		}
	})
}

func TestTranslate(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{`^\u00e9\x41\cJ$`, []string{"éA\n"}, []string{"e"}},
		{`^\u{1F600}$`, []string{"😀"}, nil},
		{`^\s$`, []string{" ", "\u00a0", "\ufeff", "\v"}, []string{"a", ""}},
		{`^\S$`, []string{"a", "é"}, []string{" ", "\u2028"}},
		{`^.$`, []string{"a", "😀"}, []string{"\n", "\r", "\u2029"}},
		{`^[^]$`, []string{"\n", "a"}, []string{""}},
		{`^[[:a]$`, []string{"[", ":", "a"}, []string{"b"}},
		{`^[\b]\0$`, []string{"\b\x00"}, nil},
		{`^\p{Letter}\p{gc=Nd}\p{Script=Greek}$`, []string{"a1α"}, []string{"1aα"}},
		{`^[\s\w-]+$`, []string{"a -"}, []string{"é"}},
		{`^a\/b\-c$`, []string{"a/b-c"}, nil},
		{`^(?<x>a)$`, []string{"a"}, nil},
	} {
		d, err := compilePattern(c.pattern, false, newWork(), "")
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, s := range c.yes {
			if !d.match(s) {
				t.Errorf("%s does not match %q", c.pattern, s)
			}
		}
		for _, s := range c.no {
			if d.match(s) {
				t.Errorf("%s matches %q", c.pattern, s)
			}
		}
	}
	for _, p := range []string{`(?=a)`, `(?!a)`, `(?<=a)b`, `(a)\1`, `\k<a>`, `[\S]`, `\A`, `a\z`, `\Q.\E`, `[]`, `\u12`, `\c1`, `\07`, `(`, `a**`, `\p{Nonsense}`, strings.Repeat("a", 5000), `(a|b)*a(a|b){20}`} {
		if _, err := compilePattern(p, false, newWork(), "/pattern"); err == nil {
			t.Errorf("%.40s is compiled", p)
		} else if !strings.HasPrefix(err.Error(), "/pattern: ") {
			t.Errorf("%.40s: %v", p, err)
		}
	}
}
