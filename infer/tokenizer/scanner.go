package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// The split patterns that are scanned by hand, as they stand in tokenizer.json files.
const (
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternLlama3 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen2  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternTekken = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternO200k  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// scanner finds the matches of one known pattern. Each of these patterns matches at every place, so that the matches cover the text.
type scanner struct {
	classes *[classRunes]class
	next    func(t *scanner, s string, i int) int // end of the match that begins at i < len(s)

	digits   int  // most digits in one match
	cased    bool // words split between lower and upper case, as Tekken and o200k do
	suffixed bool // contractions belong to the word before them, as in o200k
}

// knownScanner returns the scanner of a pattern, nil if the pattern is not known.
func knownScanner(pattern string) *scanner {
	t := &scanner{classes: classes(), next: (*scanner).nextModern}
	switch pattern {
	case patternGPT2:
		t.next = (*scanner).nextGPT2
	case patternLlama3:
		t.digits = 3
	case patternQwen2:
		t.digits = 1
	case patternTekken:
		t.digits, t.cased = 1, true
	case patternO200k:
		t.digits, t.cased, t.suffixed = 3, true, true
	default:
		return nil
	}
	return t
}

func (t *scanner) find(s string, emit func(start, end int)) {
	for i := 0; i < len(s); {
		end := t.next(t, s, i)
		emit(i, end)
		i = end
	}
}

func (t *scanner) nextGPT2(s string, i int) int {
	if s[i] == '\'' {
		if n := contraction(s[i:], false); n > 0 {
			return i + n
		}
	}
	j := i
	if s[i] == ' ' {
		j++
	}
	c, n := t.at(s, j)
	switch {
	case n == 0 || c&space != 0:
		return t.spaces(s, i)
	case c&letter != 0:
		return t.run(s, j+n, letter)
	case c&number != 0:
		return t.run(s, j+n, number)
	}
	return t.runNot(s, j+n, space|letter|number)
}

func (t *scanner) nextModern(s string, i int) int {
	c, n := t.at(s, i)
	if t.cased {
		if end := t.casedWord(s, i, c, n); end > i {
			return end
		}
	} else {
		if s[i] == '\'' {
			if n := contraction(s[i:], true); n > 0 {
				return i + n
			}
		}
		if c&(newline|letter|number) == 0 { // one leading character
			if k, m := t.at(s, i+n); k&letter != 0 {
				return t.run(s, i+n+m, letter)
			}
		}
		if c&letter != 0 {
			return t.run(s, i+n, letter)
		}
	}
	if c&number != 0 {
		end := i + n
		for d := 1; d < t.digits; d++ {
			k, m := t.at(s, end)
			if k&number == 0 {
				break
			}
			end += m
		}
		return end
	}
	j := i
	if s[i] == ' ' {
		j++
	}
	if k, m := t.at(s, j); m > 0 && k&(space|letter|number) == 0 {
		end := t.runNot(s, j+m, space|letter|number)
		for end < len(s) && (s[end] == '\r' || s[end] == '\n' || t.cased && s[end] == '/') {
			end++
		}
		return end
	}
	return t.newlines(s, i)
}

// newlines matches \s*[\r\n]+|\s+(?!\S)|\s+.
func (t *scanner) newlines(s string, i int) int {
	end := t.run(s, i, space)
	if k := strings.LastIndexAny(s[i:end], "\r\n"); k >= 0 {
		return i + k + 1
	}
	return t.spaces(s, i)
}

// spaces matches \s+(?!\S)|\s+: a run without its last character where a word follows.
func (t *scanner) spaces(s string, i int) int {
	end := t.run(s, i, space)
	if end == len(s) {
		return end
	}
	_, n := utf8.DecodeLastRuneInString(s[i:end])
	if end-n > i {
		return end - n
	}
	return end
}

// casedWord matches [^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W* with U = upperish and W = lowerish, which share Lm, Lo and M.
func (t *scanner) casedWord(s string, i int, c class, n int) int {
	lead := c&(newline|letter|number) == 0
	end := -1
	if lead {
		end = t.upperLower(s, i+n)
	}
	if end < 0 {
		end = t.upperLower(s, i)
	}
	if end < 0 && lead {
		end = t.upperOnly(s, i+n)
	}
	if end < 0 {
		end = t.upperOnly(s, i)
	}
	if end > 0 && t.suffixed && end < len(s) && s[end] == '\'' {
		end += contraction(s[end:], true)
	}
	return end
}

// upperLower matches U*W+ with backtracking: -1 if it does not match.
func (t *scanner) upperLower(s string, i int) int {
	last := -1 // end of the last character of the run that is of both kinds
	for i < len(s) {
		c, n := t.at(s, i)
		if c&upperish == 0 {
			if c&lowerish != 0 {
				return t.run(s, i+n, lowerish)
			}
			break
		}
		i += n
		if c&lowerish != 0 {
			last = i
		}
	}
	return last
}

// upperOnly matches U+W*: -1 if it does not match.
func (t *scanner) upperOnly(s string, i int) int {
	end := t.run(s, i, upperish)
	if end == i {
		return -1
	}
	return t.run(s, end, lowerish)
}

// contraction returns the length of 's 't 're 've 'm 'll 'd at the beginning of s, 0 if there is none. With fold, case does not
// matter, and the long s is an s.
func contraction(s string, fold bool) int {
	if len(s) < 2 {
		return 0
	}
	low := func(b byte) byte {
		if fold && 'A' <= b && b <= 'Z' {
			return b + 'a' - 'A'
		}
		return b
	}
	switch low(s[1]) {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v':
		if len(s) > 2 && low(s[2]) == 'e' {
			return 3
		}
	case 'l':
		if len(s) > 2 && low(s[2]) == 'l' {
			return 3
		}
	}
	if fold && strings.HasPrefix(s[1:], "ſ") {
		return 1 + len("ſ")
	}
	return 0
}
