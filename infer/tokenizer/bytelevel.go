package tokenizer

import "strings"

// alphabet is GPT-2's table from bytes to printable characters: printable Latin-1 stands for itself, the rest begins at U+0100.
var alphabet = func() (t [256]rune) {
	next := rune(0x100)
	for b := range t {
		if b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE {
			t[b] = rune(b)
		} else {
			t[b] = next
			next++
		}
	}
	return t
}()

// alphabetByte is alphabet's inverse by rune; -1 where there is none.
var alphabetByte = func() (t [0x144]int16) {
	for i := range t {
		t[i] = -1
	}
	for b, r := range alphabet {
		t[r] = int16(b)
	}
	return t
}()

// toAlphabet writes the bytes of s in GPT-2's alphabet.
func toAlphabet(s string) string {
	var w strings.Builder
	w.Grow(len(s) + len(s)/4)
	for i := range len(s) {
		w.WriteRune(alphabet[s[i]])
	}
	return w.String()
}

// appendAlphabet appends the bytes that s stands for in GPT-2's alphabet. If any character is outside it, s stands for itself:
// false.
func appendAlphabet(b []byte, s string) ([]byte, bool) {
	n := len(b)
	for _, r := range s {
		if int(r) >= len(alphabetByte) || alphabetByte[r] < 0 {
			return append(b[:n], s...), false
		}
		b = append(b, byte(alphabetByte[r]))
	}
	return b, true
}
