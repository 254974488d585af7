package adapters

import "fmt"

// Site is a place in a layer whose input one shared lora_A reads.
type Site int

// The four sites of a layer, in the order in which they run.
const (
	AttnIn  Site = iota // input of q, k and v
	AttnOut             // input of o
	MLPIn               // input of gate and up
	MLPDown             // input of down
	NumSites
)

var siteNames = [NumSites]string{"attn_in", "attn_out", "mlp_in", "mlp_down"}

// String is the site's name in files: attn_in, attn_out, mlp_in, mlp_down.
func (s Site) String() string {
	if s < 0 || s >= NumSites {
		return fmt.Sprintf("Site(%d)", int(s))
	}
	return siteNames[s]
}

// Projs lists the projections that read the site's input.
func (s Site) Projs() []Proj {
	switch s {
	case AttnIn:
		return []Proj{Q, K, V}
	case AttnOut:
		return []Proj{O}
	case MLPIn:
		return []Proj{Gate, Up}
	case MLPDown:
		return []Proj{Down}
	}
	panic(fmt.Sprintf("adapters: no such site: %d", int(s)))
}

// Proj is a linear projection of a layer that a lora_B can change.
type Proj int

// The seven projections of a layer, in the order of the flat layout.
const (
	Q Proj = iota
	K
	V
	O
	Gate
	Up
	Down
	NumProjs
)

var projNames = [NumProjs]string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

// String is the projection's name in files: q_proj … down_proj.
func (p Proj) String() string {
	if p < 0 || p >= NumProjs {
		return fmt.Sprintf("Proj(%d)", int(p))
	}
	return projNames[p]
}

// ParseProj is the inverse of Proj.String.
func ParseProj(s string) (Proj, bool) {
	for i, n := range projNames {
		if n == s {
			return Proj(i), true
		}
	}
	return 0, false
}

// Site is where the projection's input comes from.
func (p Proj) Site() Site {
	switch p {
	case Q, K, V:
		return AttnIn
	case O:
		return AttnOut
	case Gate, Up:
		return MLPIn
	case Down:
		return MLPDown
	}
	panic(fmt.Sprintf("adapters: no such projection: %d", int(p)))
}

// Geometry holds the sizes of a base model that fix an adapter's shapes.
//
// It also fixes the flat layout in which a whole B is kept everywhere (device slots, masters, moments,
// gradients): for rank r the projections of all layers follow each other in the order
// [layer][q, k, v, o, gate, up, down], each [out, r] row-major, so that (layer, proj) begins at element
// r·OutOffset(layer, proj) and has r·Out(proj) elements. Modules that an adapter does not train are zeros.
type Geometry struct {
	Layers      int `json:"layers"`
	Hidden      int `json:"hidden"`       // H
	QDim        int `json:"q_dim"`        // Hq·D
	KVDim       int `json:"kv_dim"`       // Hkv·D
	FeedForward int `json:"feed_forward"` // F
}

// Validate says which size is not positive or implausibly large.
func (g Geometry) Validate() error {
	for _, f := range []struct {
		name string
		n    int
	}{{"layers", g.Layers}, {"hidden", g.Hidden}, {"q_dim", g.QDim}, {"kv_dim", g.KVDim}, {"feed_forward", g.FeedForward}} {
		if f.n < 1 || f.n > 1<<20 {
			return fmt.Errorf("geometry: %s = %d is not in 1 … 2^20", f.name, f.n)
		}
	}
	return nil
}

// In is the size of the site's input.
func (g Geometry) In(s Site) int {
	switch s {
	case AttnIn, MLPIn:
		return g.Hidden
	case AttnOut:
		return g.QDim
	case MLPDown:
		return g.FeedForward
	}
	panic(fmt.Sprintf("adapters: no such site: %d", int(s)))
}

// Out is the size of the projection's output.
func (g Geometry) Out(p Proj) int {
	switch p {
	case Q:
		return g.QDim
	case K, V:
		return g.KVDim
	case O, Down:
		return g.Hidden
	case Gate, Up:
		return g.FeedForward
	}
	panic(fmt.Sprintf("adapters: no such projection: %d", int(p)))
}

// OutPerLayer is the sum of the output sizes of one layer's projections.
func (g Geometry) OutPerLayer() int {
	return g.QDim + 2*g.KVDim + 2*g.Hidden + 2*g.FeedForward
}

// OutTotal is the sum of the output sizes of all projections: a B of rank r has r·OutTotal elements.
func (g Geometry) OutTotal() int { return g.Layers * g.OutPerLayer() }

// OutOffset is the sum of the output sizes of all projections before (layer, p) in the flat layout.
func (g Geometry) OutOffset(layer int, p Proj) int {
	if layer < 0 || layer >= g.Layers {
		panic(fmt.Sprintf("adapters: layer %d of %d", layer, g.Layers))
	}
	off := layer * g.OutPerLayer()
	for q := Q; q < p; q++ {
		off += g.Out(q)
	}
	return off
}
