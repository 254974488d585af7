package infer

import (
	"fmt"
	"time"
)

// Config sizes an engine. The zero value of a field is its default.
type Config struct {
	MaxSeqs     int   // sequences with KV at once; default 64
	MaxTokens   int   // token budget of a step: decodes first, then prefill; ≥ MaxSeqs; default 512
	MaxContext  int   // tokens of prompt and text together; default: the model's
	BlockTokens int   // P, tokens in a KV block; default 16
	KVBytes     int64 // memory of the KV cache, bytes; default 512 MiB, or by MemoryUtilization
	KVBlocks    int   // blocks of the KV cache; overrides KVBytes where set
	PromptRows  int   // rows of logits a step has for prompt logprobs; default 64
	QueueLimit  int   // requests that may wait before Submit returns ErrQueueFull; a tenant with less than its share of them may add one; default 1024

	// MemoryUtilization, where neither KVBytes nor KVBlocks is set, gives the KV cache what Open finds free on the device, but for the share
	// 1 − MemoryUtilization of its whole memory (scratch of steps, and other processes) and for Reserve; in (0, 1], 0: off.
	MemoryUtilization float64
	Reserve           int64 // bytes of device memory that MemoryUtilization leaves to who asks later: adapters

	// Watermark is the share of KV blocks that stays free when a sequence is admitted beside others, so that it is not preempted
	// at once; default 0.02, negative: none.
	Watermark float64
	// NoPrefixCache switches the prefix cache off.
	NoPrefixCache bool
	// Overlap schedules and enqueues a step before the tokens of the one before are read. It pays where the device works by itself; a
	// sequence that ends costs one row more.
	Overlap bool
	// Graphs captures decode steps, a graph for each number of sequences 1, 2, 4, …, at Open.
	Graphs bool

	// TPOTTarget is the time from one token of a sequence to the next under which 99 of 100 stay beside background work: that takes what
	// steps leave of it, and all of the time when no request runs. Default: 1.25 × what a token takes without it at the present load.
	TPOTTarget time.Duration
	// TrainSlice is the most background work that is enqueued at once, by prediction, and so the most that a request may wait for it. A
	// piece that alone takes longer runs by itself. Default 5 ms.
	TrainSlice time.Duration

	EOS      []int    // end-of-text tokens; default: the model's
	Observer Observer // optional
}

// defaults fills in what is zero.
func (c Config) defaults() Config {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.MaxSeqs, 64)
	def(&c.MaxTokens, max(512, c.MaxSeqs))
	def(&c.BlockTokens, 16)
	def(&c.PromptRows, 64)
	def(&c.QueueLimit, 1024)
	if c.KVBytes == 0 && c.MemoryUtilization == 0 {
		c.KVBytes = 512 << 20
	}
	if c.Watermark == 0 {
		c.Watermark = 0.02
	}
	if c.TrainSlice == 0 {
		c.TrainSlice = 5 * time.Millisecond
	}
	c.Watermark = max(c.Watermark, 0)
	return c
}

// Validate says which field is out of range.
func (c Config) Validate() error {
	d := c.defaults()
	for _, f := range []struct {
		name  string
		value int
		least int
	}{
		{"MaxSeqs", d.MaxSeqs, 1}, {"MaxTokens", d.MaxTokens, d.MaxSeqs}, {"MaxContext", d.MaxContext, 0}, {"BlockTokens", d.BlockTokens, 1},
		{"KVBlocks", d.KVBlocks, 0}, {"PromptRows", d.PromptRows, 1}, {"QueueLimit", d.QueueLimit, 1},
	} {
		if f.value < f.least {
			return fmt.Errorf("engine configuration: %s = %d is below %d", f.name, f.value, f.least)
		}
	}
	switch {
	case d.KVBytes < 0:
		return fmt.Errorf("engine configuration: KVBytes = %d is negative", d.KVBytes)
	case !(d.MemoryUtilization >= 0 && d.MemoryUtilization <= 1):
		return fmt.Errorf("engine configuration: MemoryUtilization = %v is not in 0 … 1", d.MemoryUtilization)
	case d.Reserve < 0:
		return fmt.Errorf("engine configuration: Reserve = %d is negative", d.Reserve)
	case d.Watermark >= 1:
		return fmt.Errorf("engine configuration: Watermark = %v is not below 1", d.Watermark)
	case d.TPOTTarget < 0:
		return fmt.Errorf("engine configuration: TPOTTarget = %v is negative", d.TPOTTarget)
	case d.TrainSlice < 0:
		return fmt.Errorf("engine configuration: TrainSlice = %v is negative", d.TrainSlice)
	}
	return nil
}

// flights is the number of steps that may be enqueued and not read.
func (c Config) flights() int {
	if c.Overlap {
		return 2
	}
	return 1
}
