package finetune

import "testing"

// TestBench runs optimizer steps of the benchmark; times are not looked at.
func TestBench(t *testing.T) {
	m := demoModel(t, 8)
	free := m.Backend.Info().MemoryFree
	b, err := OpenBench(m, BenchConfig{Rank: 4, Length: 24, Sequences: 2})
	if err != nil {
		t.Fatal(err)
	}
	before := b.lane.Weights(false)
	for range 2 {
		if took, err := b.Step(); err != nil || took <= 0 {
			t.Fatal(took, err)
		}
	}
	if b.Tokens() != 48 || b.lane.pos.Updates != 2 || b.lane.trained != 48 {
		t.Errorf("%d tokens, %d updates, %d trained", b.Tokens(), b.lane.pos.Updates, b.lane.trained)
	}
	moved := false
	for i, v := range b.lane.Weights(false).Data {
		moved = moved || v != before.Data[i]
	}
	if !moved {
		t.Error("no weight has moved")
	}
	b.Close()
	if now := m.Backend.Info().MemoryFree; now != free && *on == "cpu" { // a GPU keeps a stream's scratch
		t.Errorf("%d bytes free before, %d after", free, now)
	}
}
