package adapters

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Weights is a whole B in memory, not yet scaled.
type Weights struct {
	Geometry Geometry
	Rank     int
	Alpha    float64
	Scaling  float64   // the factor of B·A·x; folded into B when it is loaded for serving
	Data     []float32 // [Rank·OutTotal] in the flat layout
}

// NewWeights is a B of zeros with scaling alpha/rank.
func NewWeights(g Geometry, rank int, alpha float64) *Weights {
	if rank < 1 {
		panic(fmt.Sprintf("adapters: weights of rank %d", rank))
	}
	return &Weights{Geometry: g, Rank: rank, Alpha: alpha, Scaling: alpha / float64(rank),
		Data: make([]float32, rank*g.OutTotal())}
}

// Module is the part of Data that holds (layer, p): [out, Rank] row-major.
func (w *Weights) Module(layer int, p Proj) []float32 {
	off := w.Rank * w.Geometry.OutOffset(layer, p)
	return w.Data[off : off+w.Rank*w.Geometry.Out(p)]
}

// Storable says (ErrCorrupt) that bfloat16 cannot hold B, or not once scaling is folded in: it could not be stored, or stored and never loaded.
func (w *Weights) Storable() error {
	s := float32(w.Scaling)
	for layer := range w.Geometry.Layers {
		for p := Q; p < NumProjs; p++ {
			for i, v := range w.Module(layer, p) {
				if !finite(fromBF16(toBF16(v))) {
					return fmt.Errorf("%w: layers.%d.%v: element [%d, %d] of lora_B is %v, which bfloat16 does not hold", ErrCorrupt, layer, p, i/w.Rank, i%w.Rank, v)
				}
				if !finite(fromBF16(toBF16(s * v))) {
					return fmt.Errorf("%w: layers.%d.%v: element [%d, %d] of lora_B is %v, which a scaling of %v makes too large", ErrCorrupt, layer, p, i/w.Rank, i%w.Rank, v, w.Scaling)
				}
			}
		}
	}
	return nil
}

// DType is the working type of a B on the device.
type DType int

// The working types.
const (
	BF16 DType = iota
	F32
)

// Size is the bytes of one element.
func (d DType) Size() int {
	switch d {
	case BF16:
		return 2
	case F32:
		return 4
	}
	panic(fmt.Sprintf("adapters: no such dtype: %d", int(d)))
}

// Pack gives the flat layout's bytes (little-endian) in the working type, with scaling folded in: s·B, computed in
// float32 and rounded once. Length: Rank·OutTotal·d.Size().
func (w *Weights) Pack(d DType) []byte {
	out := make([]byte, len(w.Data)*d.Size())
	w.PackInto(out, d)
	return out
}

// PackInto is Pack into memory of that length. It reports whether all numbers are finite in the working type.
func (w *Weights) PackInto(out []byte, d DType) (whole bool) {
	if len(out) != len(w.Data)*d.Size() {
		panic(fmt.Sprintf("adapters: packing %d elements into %d bytes", len(w.Data), len(out)))
	}
	const piece = 1 << 18
	s := float32(w.Scaling)
	return together((len(w.Data)+piece-1)/piece, func(n int) error {
		from := w.Data[n*piece : min((n+1)*piece, len(w.Data))]
		return packParts(out[n*piece*d.Size():], len(from), d, func(part []float32, at int) {
			for i := range part {
				part[i] = s * from[at+i]
			}
		})
	}) == nil
}

// packParts writes n numbers, which fill gives in parts from the at-th on, in the working type. ErrCorrupt: one of them is not finite in it.
func packParts(to []byte, n int, d DType, fill func(part []float32, at int)) (err error) {
	var parts [512]float32 // stays in the processor's cache
	for at := 0; at < n; at += len(parts) {
		part, to := parts[:min(len(parts), n-at)], to[at*d.Size():]
		fill(part, at)
		if d == BF16 {
			if bad := roundBF16(to, part); bad >= 0 {
				err = ErrCorrupt
				for i := bad; i < len(part); i++ {
					binary.LittleEndian.PutUint16(to[2*i:], toBF16(part[i]))
				}
			}
			continue
		}
		for i, v := range part {
			if !finite(v) {
				err = ErrCorrupt
			}
			binary.LittleEndian.PutUint32(to[4*i:], math.Float32bits(v))
		}
	}
	return err
}

// Mix is Σ weights[i]·s_i·B_i at the largest rank, with scaling 1, summed in float32 in the given order. Smaller
// ranks fill the first columns. All parts have one geometry.
func Mix(parts []*Weights, weights []float64) *Weights {
	if len(parts) == 0 || len(parts) != len(weights) {
		panic(fmt.Sprintf("adapters: mix of %d parts with %d weights", len(parts), len(weights)))
	}
	g, rank := parts[0].Geometry, 0
	for _, p := range parts {
		if p.Geometry != g {
			panic("adapters: mix over several geometries")
		}
		rank = max(rank, p.Rank)
	}
	m := NewWeights(g, rank, float64(rank))
	for i, p := range parts {
		c := float32(weights[i] * p.Scaling)
		for row := range g.OutTotal() {
			from, to := p.Data[row*p.Rank:(row+1)*p.Rank], m.Data[row*rank:]
			for j, v := range from {
				to[j] += float32(c * v)
			}
		}
	}
	return m
}
