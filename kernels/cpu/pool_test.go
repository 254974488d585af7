package cpu

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type countTask struct {
	hits []atomic.Int32
	bad  int
}

func (t *countTask) part(_, i int) {
	if i == t.bad {
		panic("a bad part")
	}
	t.hits[i].Add(1)
}

// TestPool: every part runs once, in any mix of sizes, with pauses long enough for workers to park.
func TestPool(t *testing.T) {
	for _, workers := range []int{1, 2, 5} {
		a, b := &countTask{hits: make([]atomic.Int32, 300), bad: -1}, &countTask{hits: make([]atomic.Int32, 300), bad: -1}
		var p pool
		p.start(workers, []task{a, b})
		for round := range 3000 {
			if round%500 == 499 {
				time.Sleep(2 * time.Millisecond)
			}
			n := round * 7 % 300
			p.run(round%2, n)
			for i := range a.hits {
				want := int32(0)
				if i < n {
					want = 1
				}
				if got := []*countTask{a, b}[round%2].hits[i].Swap(0); got != want {
					t.Fatalf("%d workers, round %d: part %d of %d ran %d times", workers, round, i, n, got)
				}
			}
		}
		p.stop()
	}
}

// TestPoolPanic: a part that panics fails its run, and no other.
func TestPoolPanic(t *testing.T) {
	var p pool
	good := &countTask{hits: make([]atomic.Int32, 50), bad: -1}
	p.start(3, []task{&countTask{hits: make([]atomic.Int32, 50), bad: 20}, good})
	defer p.stop()
	func() {
		defer func() {
			if r, ok := recover().(string); !ok || !strings.Contains(r, "a bad part") {
				t.Errorf("recovered %v", r)
			}
		}()
		p.run(0, 50)
	}()
	p.run(1, 50)
	for i := range good.hits {
		if n := good.hits[i].Load(); n != 1 {
			t.Errorf("part %d of the next task ran %d times", i, n)
		}
	}
}

func BenchmarkPool(b *testing.B) {
	var p pool
	p.start(2, []task{&countTask{hits: make([]atomic.Int32, 8), bad: -1}})
	defer p.stop()
	for b.Loop() {
		p.run(0, 2)
	}
}
