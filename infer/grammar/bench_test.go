package grammar

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
)

const benchSchema = `{"type":"object","properties":{"name":{"type":"string"},"short":{"type":"string","maxLength":40},"age":{"type":"integer","minimum":0},
	"email":{"type":"string","format":"email"},"kind":{"enum":["a","b","c"]},"tags":{"type":"array","items":{"type":"string"}},
	"child":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["name","short","age","email","kind","tags","child"],"additionalProperties":false}`

// bigVocabulary is made of words as long and as varied as a real one's: letters with and without a space before, digits, punctuation.
func bigVocabulary(size int) (*Vocabulary, [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	tokens := [][]byte{[]byte("<end>")}
	for _, t := range toyTokens()[1:] {
		seen[string(t)] = true
		tokens = append(tokens, t)
	}
	for len(tokens) < size {
		n := 2 + r.IntN(7) + r.IntN(5)
		var b []byte
		switch r.IntN(10) {
		case 0, 1, 2, 3, 4:
			b = append(b, ' ')
		case 5:
			b = append(b, `"`...)
		case 6:
			b = append(b, "É"...)
		}
		for range n {
			b = append(b, "etaoinshrdlucmfwypvbgkqjxz"[min(r.IntN(26), r.IntN(26))])
		}
		if r.IntN(30) == 0 {
			b = append(b, `",":})]`[r.IntN(7)])
		}
		if !seen[string(b)] {
			seen[string(b)] = true
			tokens = append(tokens, b)
		}
	}
	return NewVocabulary(size, func(id int) []byte {
		if id == 0 {
			return nil
		}
		return tokens[id]
	}, []int{0}), tokens
}

const benchText = `{"name":"Ada Lovelace","short":"of London","age":36,"email":"ada@example.com","kind":"b","tags":["x","yz",""],"child":{"name":"Byron","short":"","age":7,` +
	`"email":"b@c.org","kind":"a","tags":[],"child":null}}`

// BenchmarkMask reports a mask of each state of a text: all at first sight, and all seen before.
func BenchmarkMask(b *testing.B) {
	for _, size := range []int{49_152, 128_256} {
		v, _ := bigVocabulary(size)
		dst := make([]int32, v.words)
		read := func(bound *Bound) {
			m := bound.New()
			for i := range len(benchText) {
				m.Mask(dst)
				m.Accept(1 + int(benchText[i]))
			}
			if !m.Complete() {
				b.Fatal("the text is not the schema's")
			}
		}
		g, err := Compile(json.RawMessage(benchSchema))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("vocabulary=%d/first", size), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				v.mu.Lock()
				clear(v.shared)
				v.mu.Unlock()
				bound := v.Bind(g)
				b.StartTimer()
				read(bound)
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N*len(benchText))*1e6, "µs/mask")
		})
		b.Run(fmt.Sprintf("vocabulary=%d/new grammar", size), func(b *testing.B) {
			for b.Loop() {
				read(v.Bind(g))
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N*len(benchText))*1e6, "µs/mask")
		})
		bound := v.Bind(g)
		b.Run(fmt.Sprintf("vocabulary=%d/seen", size), func(b *testing.B) {
			for b.Loop() {
				read(bound)
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N*len(benchText))*1e6, "µs/mask")
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Compile(json.RawMessage(benchSchema)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVocabulary(b *testing.B) {
	_, tokens := bigVocabulary(128_256)
	for b.Loop() {
		NewVocabulary(len(tokens), func(id int) []byte { return tokens[id] }, nil)
	}
}
