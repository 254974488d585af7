package finetune

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"bhive/infer"
	"bhive/kernels"
)

// background is a trainer as an engine's background, until it has nothing left to do.
type background struct {
	*Trainer
	once sync.Once
	done chan struct{}
}

func (b *background) Ready() bool {
	_, more := b.Next()
	if !more {
		b.once.Do(func() { close(b.done) })
	}
	return more
}

func (b *background) Enqueue(after kernels.Event) kernels.Event { return b.Trainer.Enqueue(after) }

// TestBesideRequests: lanes that train beside requests end as alone, and the requests' tokens are those without training, bit for bit.
func TestBesideRequests(t *testing.T) {
	m := demoModel(t, 8)
	tok, _, err := infer.LoadText(openDemo(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := TrainerConfig{Lanes: 2, BatchTokens: 96, Seqs: 8}
	lanes := func() (*Trainer, []*Lane) {
		tr := newTrainer(t, m, c)
		return tr, []*Lane{addLane(t, tr, laneOptions(m, 1, 4, 4)), addLane(t, tr, laneOptions(m, 2, 8, 3))}
	}
	alone, ls := lanes()
	runUnits(t, alone)
	want := [][]byte{state(t, ls[0]), state(t, ls[1])}

	apart := !m.Backend.Info().CopyInPlace
	e, err := infer.New(infer.Config{MaxSeqs: 4, KVBlocks: 64, TPOTTarget: time.Second, Graphs: apart, Overlap: apart}, m, nil, nil, tok)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	ask := func(i int) []int {
		r := infer.Request{Prompt: []int{5 + i, 6, 7, 8 + i}, Params: infer.DefaultParams()}
		r.Params.Temperature, r.Params.MaxTokens, r.Params.IgnoreEOS = 0, 24, true
		g, err := e.Submit(t.Context(), r)
		if err != nil {
			t.Error(err)
			return nil
		}
		defer g.Close()
		var ids []int
		for {
			d, err := g.Next(t.Context())
			if errors.Is(err, io.EOF) {
				return ids
			}
			if err != nil {
				t.Error(err)
				return nil
			}
			for _, token := range d.Tokens {
				ids = append(ids, token.ID)
			}
		}
	}
	const requests = 3
	var texts [requests][]int
	for i := range texts {
		texts[i] = ask(i)
	}
	var tr *Trainer
	if err := e.Do(t.Context(), func() error { // the device belongs to the engine's goroutine
		tr, ls = lanes()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b := &background{Trainer: tr, done: make(chan struct{})}
	var all sync.WaitGroup
	e.SetBackground(b)
	for i := range requests {
		all.Go(func() {
			for over := false; !over; {
				select {
				case <-b.done:
					over = true
				default:
				}
				if got := ask(i); !slices.Equal(got, texts[i]) {
					t.Errorf("request %d beside training: %v, without %v", i, got, texts[i])
					return
				}
			}
		})
	}
	all.Wait()
	<-b.done
	stats := e.Stats()
	stop()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	for i, l := range ls {
		if !bytes.Equal(state(t, l), want[i]) {
			t.Errorf("lane %d does not end as it does alone", i)
		}
	}
	if stats.BackgroundTime == 0 || stats.IdleTime == 0 || stats.TPOTTarget != time.Second {
		t.Errorf("statistics: %+v", stats)
	}
	e.Close()
}
