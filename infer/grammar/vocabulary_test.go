package grammar

import "testing"

// TestEndsBeyondTheTokens: a model's end of text may lie behind the tokenizer's last token, where the logits are wider, or nowhere.
func TestEndsBeyondTheTokens(t *testing.T) {
	g, err := Regex("a*")
	if err != nil {
		t.Fatal(err)
	}
	m := NewVocabulary(2, func(id int) []byte { return []byte{"ab"[id]} }, []int{-1, 70}).Bind(g).New()
	m.Accept(0)
	dst := make([]int32, 3)
	m.Mask(dst)
	if dst[0] != 1 || dst[1] != 0 || dst[2] != 1<<6 {
		t.Errorf("the mask is %x", dst)
	}
	m.Mask(make([]int32, 1)) // a model that does not have it
	m.Accept(70)
	if !m.Complete() {
		t.Error("the text has not ended")
	}
}
