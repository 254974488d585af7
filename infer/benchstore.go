package infer

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"bhive/adapters"
)

// seedStore makes packed B's from their name.
type seedStore struct {
	wide      bool    // float32
	bandwidth float64 // bytes a second, of all fetches together; 0: no limit

	mu   sync.Mutex
	next time.Time
	made int64
}

// limit sets the bandwidth.
func (s *seedStore) limit(bytesPerSecond float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bandwidth, s.next = bytesPerSecond, time.Time{}
}

// fetches is how many B's were made.
func (s *seedStore) fetches() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made
}

// load writes noise of magnitude 2⁻⁸ … 2⁻⁷ and takes the time that reading it would.
func (s *seedStore) load(ctx context.Context, t adapters.Target, dst []byte) error {
	s.mu.Lock()
	s.made++
	var until time.Time
	if s.bandwidth > 0 {
		if now := time.Now(); s.next.Before(now) {
			s.next = now
		}
		s.next = s.next.Add(time.Duration(float64(len(dst)) / s.bandwidth * float64(time.Second)))
		until = s.next
	}
	s.mu.Unlock()
	mask, exponent := uint64(0x807f807f807f807f), uint64(0x3b803b803b803b80)
	if s.wide {
		mask, exponent = 0x807fffff807fffff, 0x3b8000003b800000
	}
	z := uint64(0x9E3779B97F4A7C15)
	for _, c := range []byte(t.Parts[0].Version.Name) {
		z = (z ^ uint64(c)) * 0xBF58476D1CE4E5B9
	}
	for i := 0; i+8 <= len(dst); i += 8 {
		z ^= z << 13
		z ^= z >> 7
		z ^= z << 17
		binary.LittleEndian.PutUint64(dst[i:], z&mask|exponent)
	}
	for i := len(dst) &^ 7; i < len(dst); i++ {
		dst[i] = 0
	}
	select {
	case <-time.After(time.Until(until)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// benchTarget is the i-th adapter.
func benchTarget(i, rank int) adapters.Target {
	return adapters.Target{Parts: []adapters.TargetPart{{Version: adapters.Version{Tenant: "bench", Name: fmt.Sprintf("a%d", i), Number: 1, Rank: rank, Scaling: 1}, Weight: 1}}}
}
