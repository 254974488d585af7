package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// lossy returns b as UTF-8 with each maximal invalid part replaced by U+FFFD (the Unicode standard's "substitution of maximal
// subparts"; strings.ToValidUTF8 makes one of a whole run, a range loop one of each byte).
func lossy(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var w strings.Builder
	w.Grow(len(s) + 8)
	for len(s) > 0 {
		n, ok := validPrefix(s)
		w.WriteString(s[:n])
		s = s[n:]
		if ok {
			break
		}
		w.WriteString("\uFFFD")
		s = s[invalidPart(s):]
	}
	return w.String()
}

// lossyPrefix appends to w what is already certain of a byte stream that begins with b, and returns how many bytes that used up;
// the rest is the beginning of a character whose end has not come yet.
func lossyPrefix(w *strings.Builder, b []byte) int {
	used := 0
	for used < len(b) {
		r, n := utf8.DecodeRune(b[used:])
		if r == utf8.RuneError && n == 1 {
			if !utf8.FullRune(b[used:]) {
				return used
			}
			w.WriteString("\uFFFD")
			used += invalidPart(string(b[used:min(used+4, len(b))]))
			continue
		}
		w.Write(b[used : used+n])
		used += n
	}
	return used
}

// validPrefix returns the length of the longest valid prefix of s, and whether that is all of s.
func validPrefix(s string) (int, bool) {
	for i := 0; i < len(s); {
		if s[i] < utf8.RuneSelf {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return i, false
		}
		i += n
	}
	return len(s), true
}

// invalidPart returns the length of the maximal subpart at the beginning of s, where no valid character begins: the longest
// prefix that could have become a character, or one byte.
func invalidPart(s string) int {
	n := 1
	for n < len(s) && n < 4 && !utf8.FullRuneInString(s[:n]) {
		// s[:n] can still become a character; does s[n] go on with it?
		if s[n]&0xC0 != 0x80 || (utf8.FullRuneInString(s[:n+1]) && !validRune(s[:n+1])) {
			break
		}
		n++
	}
	return n
}

func validRune(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return !(r == utf8.RuneError && n == 1)
}
