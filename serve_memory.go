package main

import (
	"fmt"
	"math"

	"bhive/kernels"
)

// mibFlag is a flag that counts MiB.
type mibFlag struct {
	name string
	mib  int64
}

// checkMiB refuses what is no number of bytes any more: it would wrap around, to no bound at all or to something small.
func checkMiB(flags ...mibFlag) error {
	for _, f := range flags {
		if most := int64(math.MaxInt64 >> 20); f.mib > most {
			return fmt.Errorf("--%s must be at most %d, is %d", f.name, most, f.mib)
		}
	}
	return nil
}

// serveMemory is how a device's memory is shared out, in bytes.
type serveMemory struct {
	kv          int64   // 0: what is left by utilization
	utilization float64 // 0 where kv is given
	adapters    int64   // for B's
	inUse       int64   // of those, held at most: the rest are blocks that were freed and that steps under way may still read
	later       int64   // of adapters, not taken before the KV cache is sized
}

// memory reads the flags for a device.
func (c *serveCmd) memory(info kernels.Info) serveMemory {
	apart := !info.CopyInPlace
	m := serveMemory{kv: c.KVMiB << 20, adapters: c.AdapterMiB << 20}
	switch {
	case c.KVMiB == 0 || c.KVMiB < 0 && apart:
		m.kv, m.utilization = 0, c.Utilization
	case c.KVMiB < 0:
		m.kv = 512 << 20
	}
	if m.adapters == 0 {
		m.adapters = 1 << 30
		if apart {
			m.adapters = info.MemoryTotal / 10
		}
	}
	m.inUse = m.adapters
	if apart {
		m.inUse -= m.adapters / 8
	} else {
		m.later = m.adapters
	}
	return m
}
