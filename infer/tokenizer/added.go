package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is cut out of the text before anything else looks at it.
type addedToken struct {
	Content    string
	SingleWord bool `json:"single_word"` // only where no word character touches it
	LStrip     bool `json:"lstrip"`      // takes the white space before it
	RStrip     bool `json:"rstrip"`      // and after it
	Normalized bool // looked for in normalized text, in normalized form
	Special    bool

	id int
}

// addedSet finds added tokens: the leftmost, among those that begin there the longest.
type addedSet struct {
	nodes  []addedNode // a trie over bytes; nodes[0] is the root
	first  [256]bool
	tokens []*addedToken
}

type addedNode struct {
	next  map[byte]int32
	token int32 // index in tokens, -1 if none ends here
}

func newAddedSet() *addedSet { return &addedSet{nodes: []addedNode{{token: -1}}} }

func (a *addedSet) add(text string, t *addedToken) {
	if text == "" {
		return
	}
	a.first[text[0]] = true
	at := int32(0)
	for i := range len(text) {
		to, ok := a.nodes[at].next[text[i]]
		if !ok {
			to = int32(len(a.nodes))
			if a.nodes[at].next == nil {
				a.nodes[at].next = map[byte]int32{}
			}
			a.nodes[at].next[text[i]] = to
			a.nodes = append(a.nodes, addedNode{token: -1})
		}
		at = to
	}
	if a.nodes[at].token < 0 {
		a.nodes[at].token = int32(len(a.tokens))
		a.tokens = append(a.tokens, t)
	}
}

// longest returns the longest token that s[i:] begins with.
func (a *addedSet) longest(s string, i int) (t *addedToken, end int) {
	at, ok := int32(0), true
	for k := i; k < len(s); {
		if at, ok = a.nodes[at].next[s[k]]; !ok {
			break
		}
		k++
		if n := a.nodes[at].token; n >= 0 {
			t, end = a.tokens[n], k
		}
	}
	return t, end
}

// cut calls text for the parts of s between the tokens and token for each token. With ordinary, special tokens are left as text.
func (a *addedSet) cut(s string, ordinary bool, text func(start, end int), token func(t *addedToken)) {
	last := 0
	if len(a.tokens) > 0 {
		for i := 0; i < len(s); i++ {
			if !a.first[s[i]] {
				continue
			}
			t, end := a.longest(s, i)
			if t == nil {
				continue
			}
			start, next := i, end
			i = end - 1
			if ordinary && t.Special || t.SingleWord && (wordEnds(s[:start]) || wordBegins(s[end:])) {
				continue
			}
			if t.LStrip {
				start = max(len(strings.TrimRightFunc(s[:start], unicode.IsSpace)), last)
			}
			if t.RStrip {
				next = len(s) - len(strings.TrimLeftFunc(s[end:], unicode.IsSpace))
			}
			if last < start {
				text(last, start)
			}
			token(t)
			last = next
		}
	}
	if last < len(s) {
		text(last, len(s))
	}
}

func wordEnds(s string) bool {
	r, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && isWord(r)
}

func wordBegins(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return n > 0 && isWord(r)
}
