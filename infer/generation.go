package infer

import (
	"context"
	"io"
	"sync"
)

// Generation is the stream of a request's choices. Its methods are safe for concurrent use.
type Generation struct {
	cancel func()

	mu    sync.Mutex
	queue []*Delta // at most one a choice, and its last
	over  bool
	err   error
	ready chan struct{} // has a value when there may be something new
}

func newGeneration(cancel func()) *Generation {
	return &Generation{cancel: cancel, ready: make(chan struct{}, 1)}
}

// Next waits for what comes next, for any of the choices, and merges what has come meanwhile. After the last choice's FinishReason it
// returns io.EOF. It returns ctx's error where that is done first, and ErrStep, ErrAdapterLoad or ErrClosed where the request failed.
func (g *Generation) Next(ctx context.Context) (Delta, error) {
	for {
		g.mu.Lock()
		if len(g.queue) > 0 {
			d := g.queue[0]
			g.queue = g.queue[1:]
			if len(g.queue) > 0 || g.over {
				g.signal()
			}
			g.mu.Unlock()
			return *d, nil
		}
		over, err := g.over, g.err
		if over {
			g.signal() // others may wait
		}
		g.mu.Unlock()
		if over {
			if err == nil {
				err = io.EOF
			}
			return Delta{}, err
		}
		select {
		case <-g.ready:
		case <-ctx.Done():
			return Delta{}, ctx.Err()
		}
	}
}

// Close cancels what still runs. It may be called at any time, and twice.
func (g *Generation) Close() { g.cancel() }

// push adds news of a choice.
func (g *Generation) push(d Delta) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, q := range g.queue {
		if q.Index == d.Index {
			q.Text += d.Text
			q.Tokens = append(q.Tokens, d.Tokens...)
			q.Prompt = append(q.Prompt, d.Prompt...)
			q.FinishReason, q.StopReason, q.Usage = d.FinishReason, d.StopReason, d.Usage
			return
		}
	}
	g.queue = append(g.queue, &d)
	g.signal()
}

// finish says that nothing more comes.
func (g *Generation) finish(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over, g.err = true, err
	g.signal()
}

func (g *Generation) signal() {
	select {
	case g.ready <- struct{}{}:
	default:
	}
}
