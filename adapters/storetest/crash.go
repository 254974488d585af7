package storetest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"bhive/adapters"
)

// scriptRounds is how often Script goes through all kinds of writes.
const scriptRounds = 3

func scriptBlob(round int) string { return strings.Repeat(fmt.Sprintf("round %d. ", round), 2000) }

// Script writes one thing after the other and calls done with the number of each that the store has acknowledged. It runs in a process
// that may be killed at any write point.
func Script(s adapters.Store, done func(step int)) error {
	step := 0
	ack := func(err error) error {
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		step++
		done(step)
		return nil
	}
	for round := 1; round <= scriptRounds; round++ {
		whole, ok := s.(adapters.BlobPublisher)
		ok = ok && round == 2 // this one puts and publishes in one
		content := scriptBlob(round)
		if ok {
			content = "another"
		}
		b, err := s.PutBlob(ctx, "", strings.NewReader(content))
		if err := ack(err); err != nil {
			return err
		}
		j, err := s.CreateJob(ctx, "", adapters.Job{ID: fmt.Sprintf("job-%d", round), State: "running"}, json.RawMessage(`"created"`))
		if err := ack(err); err != nil {
			return err
		}
		j.State = "succeeded"
		o := adapters.PublishOptions{Job: &j, Events: []json.RawMessage{json.RawMessage(`"done"`)}}
		if ok {
			_, err = whole.PublishBlob(ctx, "", strings.NewReader(scriptBlob(round)), adapters.Version{Name: "a"}, o)
		} else {
			_, err = s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: b.SHA256}, o)
		}
		if err := ack(err); err != nil {
			return err
		}
		_, err = s.PutBlob(ctx, "", strings.NewReader(fmt.Sprint("loose ", round)))
		if err := ack(err); err != nil {
			return err
		}
		if _, err = s.GC(ctx, 0); ack(err) != nil {
			return err
		}
	}
	return ack(s.Delete(ctx, "", "a", 1))
}

// CheckScript checks what Script left after step was acknowledged and perhaps one step more was made.
func CheckScript(t testing.TB, s adapters.Store, step int) {
	t.Helper()
	const perRound = 5
	last := step == scriptRounds*perRound+1
	published, err := s.Versions(ctx, "", "a")
	if err != nil && step >= 3 {
		t.Errorf("after step %d: %v", step, err)
	}
	highest := 0
	for _, v := range published {
		highest = max(highest, v.Number)
		got, err := readBlob(s, "", v.SHA256)
		if sum := sha256.Sum256([]byte(got)); err != nil || got != scriptBlob(v.Number) || hex.EncodeToString(sum[:]) != v.SHA256 {
			t.Errorf("after step %d: version %d has %d bytes, %v", step, v.Number, len(got), err)
		}
	}
	// Round r publishes in its third step.
	sure, perhaps := (step+perRound-3)/perRound, (step+1+perRound-3)/perRound
	if highest < sure || highest > perhaps {
		t.Errorf("after step %d the highest version is %d, want %d or %d", step, highest, sure, perhaps)
	}
	if gone := len(published) != highest; gone != last && step != scriptRounds*perRound {
		t.Errorf("after step %d: %d versions up to %d", step, len(published), highest)
	}
	if highest > 0 {
		if live, err := s.Get(ctx, "", "a", 0); err != nil || live.Number != highest {
			t.Errorf("after step %d: live is %d, %v", step, live.Number, err)
		}
	}
	// A version and its job's end are one: neither is there without the other. The same for the feed.
	for r := 1; r <= scriptRounds; r++ {
		id := fmt.Sprintf("job-%d", r)
		j, err := s.GetJob(ctx, "", id)
		if err != nil {
			if step >= (r-1)*perRound+2 {
				t.Errorf("after step %d: %v", step, err)
			}
			continue
		}
		events, err := s.Events(ctx, "", id, 0, 0)
		if done := highest >= r; err != nil || (j.State == "succeeded") != done || (j.Published != "") != done || len(events) != map[bool]int{false: 1, true: 2}[done] {
			t.Errorf("after step %d: version %d exists: %v; job %+v, %d events, %v", step, r, done, j, len(events), err)
		}
	}
	if highest > 0 {
		changes, err := s.Watch(ctx, "")
		n := 0
		for _, c := range changes {
			if c.Kind == adapters.Published {
				n++
			}
		}
		if err != nil || n != highest {
			t.Errorf("after step %d: %d publications in the feed, %v", step, n, err)
		}
	}
	// The store goes on as if nothing had been.
	if _, err := s.GC(ctx, 0); err != nil {
		t.Errorf("after step %d: %v", step, err)
	}
	if v := publish(t, s, "", "a", "next"); v.Number != highest+1 {
		t.Errorf("after step %d: the next version is %d", step, v.Number)
	}
}
