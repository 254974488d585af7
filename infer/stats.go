package infer

import "time"

// Stats is a snapshot of the engine. Counters only grow.
type Stats struct {
	Running int // sequences with KV
	Waiting int // sequences without: queued, preempted, or waiting for their adapter

	WaitingAdapters int // sequences whose adapter is on its way

	KVBlocks        int // blocks of the KV cache
	KVUsed          int // blocks that sequences hold
	KVCached        int // further blocks that hold a cached prefix
	KVBytes         int64
	MaxSeqs         int
	MaxContext      int
	Steps           int64
	PromptTokens    int64 // of admitted requests
	CachedTokens    int64 // of those, found in the prefix cache
	GeneratedTokens int64
	ComputedTokens  int64 // tokens run through the model; recomputed ones count again
	Preemptions     int64
	Requests        map[FinishReason]int64 // finished choices; "error" for failed ones
	StepTime        time.Duration          // in which steps ran, as the host sees it
	BackgroundTime  time.Duration          // in which background work ran
	IdleTime        time.Duration          // in which there was background work and no step ran: what BackgroundTime can be at most
	TPOTTarget      time.Duration          // in force; 0: no step has shown what the default is
}

// Observer is told what happens, for metrics. Its methods are called on the engine's goroutine and must be quick.
type Observer interface {
	ObserveStep(StepInfo)
	ObserveFinish(RequestInfo)
	// ObserveSlice is told how long the background work between two steps took, or a slice of it where there are none.
	ObserveSlice(time.Duration)
}

// StepInfo describes one step.
type StepInfo struct {
	Seqs, Tokens     int // in the step
	PrefillTokens    int
	DecodeSeqs       int
	Adapters         int           // distinct adapter slots, the base not counted
	Duration         time.Duration // from its start to the reading of its tokens
	Host             time.Duration // of that, scheduling, metadata and publishing
	Waited           time.Duration // and on the device, for background work that was enqueued before it
	KVUsed, KVBlocks int
}

// RequestInfo describes one finished choice.
type RequestInfo struct {
	ID, Tenant string
	Index      int
	Reason     FinishReason // "error" where it failed
	Usage      Usage
	Queue      time.Duration // from Submit to the first step
	FirstToken time.Duration // from Submit to the first token; 0 without one
	PerToken   time.Duration // mean time of each further token; 0 without one
	Total      time.Duration // from Submit to the end
	Preempted  int
}

// ReasonError stands in Stats.Requests and RequestInfo.Reason for choices that failed.
const ReasonError FinishReason = "error"
