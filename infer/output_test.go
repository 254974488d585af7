package infer

import (
	"strings"
	"testing"

	"bhive/infer/tokenizer"

	"pgregory.net/rapid"
)

// TestStopStrings: however a text comes, it is shown up to the stop string that begins first of those that are there at the earliest piece with one,
// and what may be the beginning of one waits.
func TestStopStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		few := rapid.StringOfN(rapid.RuneFrom([]rune("aab")), 1, 6, -1)
		stops := rapid.SliceOfN(few, 0, 4).Draw(t, "stops")
		o := output{stream: new(tokenizer.Tokenizer).NewStream(true), include: rapid.Bool().Draw(t, "include")}
		for _, s := range stops {
			o.stops = append(o.stops, newStopString(s))
		}
		late := rapid.IntRange(0, 3).Draw(t, "unchecked")
		held := ""
		for i, piece := range rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("aaabbc")), 0, 5, -1), 0, 12).Draw(t, "pieces") {
			got := o.take(piece, i >= late, false)
			held += piece
			cut, stop := len(held), ""
			if i >= late {
				for _, s := range stops {
					if at := strings.Index(held, s); at >= 0 && (stop == "" || at < cut) {
						cut, stop = at, s
					}
				}
				for n := 1; n <= len(held) && stop == ""; n++ {
					for _, s := range stops {
						if n < len(s) && strings.HasSuffix(held, s[:n]) {
							cut = len(held) - n
						}
					}
				}
				if stop != "" && o.include {
					cut += len(stop)
				}
			}
			if got.text != held[:cut] || got.stop != stop {
				t.Fatalf("piece %d, %q behind %q: shown %q, stop %q; want %q and %q", i, piece, held[:len(held)-len(piece)], got.text, got.stop, held[:cut], stop)
			}
			if stop != "" {
				return
			}
			held = held[cut:]
		}
		if got := o.end(true); got.text != held || got.stop != "" {
			t.Fatalf("at the end %q, want %q", got.text, held)
		}
	})
}

// BenchmarkStopStrings is a token's text beside the most stop strings of the greatest length, of which the text is nearly the beginning.
func BenchmarkStopStrings(b *testing.B) {
	o := output{stream: new(tokenizer.Tokenizer).NewStream(true)}
	for i := range maxStops {
		o.stops = append(o.stops, newStopString(strings.Repeat("a", 2000+i)+"b"+strings.Repeat("a", maxStopLen-2001-i)))
	}
	o.take(strings.Repeat("a", 4000), true, false)
	for b.Loop() {
		o.take("aaaa", true, false)
	}
}
