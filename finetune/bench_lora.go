package finetune

import (
	"fmt"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
)

// ordinary makes a benchmark's steps cost what an ordinary LoRA's cost, by the same kernels: a device that keeps the input x of every linear where
// LoRA-FA keeps z, multiplies dA = dzᵀ·x for an A of each projection's own, and updates those A's with AdamW. B is trained as without it; A's move beside
// the frozen ones, which stay what the model multiplies by. Kept x is where the forward writes it, at no copy; but attn_out's, which the attention's backward
// keeps anyway, is copied before its product. What it leaves out is to the ordinary LoRA's favour: [W; A] would have three A's at attn_in and two at mlp_in.
type ordinary struct {
	kernels.Backend
	m     *infer.Model
	sites map[kernels.Weight]layerSite
	rows  map[int]layerSite // by the rows of B before the site's

	x      [][adapters.NumSites]kernels.Tensor // [T, in+R], in whose last R columns, z's of the A's that are not shared, nothing of use is
	o      []kernels.Tensor                    // attn_out's
	lanes  kernels.LaneTable
	a      kernels.AdamWArgs // of all A's, transposed: rows of rank numbers
	stream kernels.Stream
	owned  []kernels.Tensor
}

// layerSite is a site of a layer.
type layerSite struct {
	layer int
	site  adapters.Site
}

func newOrdinary(m *infer.Model, tokens, rank int) (_ *ordinary, err error) {
	be, r := m.Backend, m.R()
	o := &ordinary{Backend: be, m: m, sites: map[kernels.Weight]layerSite{}, rows: map[int]layerSite{}, x: make([][adapters.NumSites]kernels.Tensor, len(m.Layers)),
		o: make([]kernels.Tensor, len(m.Layers)), stream: be.NewStream()}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	alloc := func(to *kernels.Tensor, d kernels.DType, rows, cols int) {
		if err != nil {
			return
		}
		if *to, err = be.Alloc(d, rows, cols); err != nil {
			err = fmt.Errorf("allocating what an ordinary LoRA keeps: %w", err)
			return
		}
		o.owned = append(o.owned, *to)
	}
	var scratch kernels.Tensor
	alloc(&scratch, be.Info().Activation, tokens, m.Geometry.QDim+r)
	for l := range m.Layers {
		for site := range adapters.NumSites {
			p := layerSite{l, site}
			o.sites[m.Layers[l].Weight(site)], o.rows[m.B(nil, l, site).Offset] = p, p
			if x := &o.x[l][site]; site == adapters.AttnOut {
				*x = scratch
			} else {
				alloc(x, be.Info().Activation, tokens, m.Geometry.In(site)+r)
			}
		}
	}
	n := rank * o.offset(len(m.Layers), 0)
	for _, t := range []*kernels.Tensor{&o.a.Master, &o.a.M, &o.a.V, &o.a.Grad} {
		alloc(t, kernels.F32, 1, n)
	}
	alloc(&o.a.Working, be.Info().Working, 1, n)
	alloc(&o.a.Norms, kernels.F32, 1, 1)
	if err != nil {
		return nil, err
	}
	o.a.Rank, o.a.Sites = rank, []kernels.SiteRows{{Rows: n / rank}}
	if o.lanes, err = be.NewLaneTable(1); err != nil {
		return nil, fmt.Errorf("allocating a lane table: %w", err)
	}
	be.SetLane(o.stream, o.lanes, 0, o.a.Grad, rank, 1)
	if err = o.stream.Sync(); err != nil {
		return nil, fmt.Errorf("setting the lane of an ordinary LoRA: %w", err)
	}
	return o, nil
}

func (o *ordinary) close() {
	if o.lanes != nil {
		o.Backend.FreeLaneTable(o.lanes)
	}
	for _, t := range o.owned {
		o.Backend.Free(t)
	}
	o.Backend.FreeStream(o.stream)
}

// offset is the rows of A, transposed, before a projection's.
func (o *ordinary) offset(layer int, p adapters.Proj) int {
	each, before := 0, 0
	for q := range adapters.NumProjs {
		if in := o.m.Geometry.In(q.Site()); q < p {
			before, each = before+in, each+in
		} else {
			each += in
		}
	}
	return layer*each + before
}

// kept is where the input of a site lies.
func (o *ordinary) kept(layer int, site adapters.Site) kernels.Tensor {
	return o.x[layer][site].ColRange(0, o.m.Geometry.In(site))
}

// RMSNorm of a pass writes the first layer's input.
func (o *ordinary) RMSNorm(s kernels.Stream, y, x, w, rstd kernels.Tensor, eps float32, step kernels.Step) {
	o.Backend.RMSNorm(s, o.kept(0, adapters.AttnIn), x, w, rstd, eps, step)
}

// ResidualNorm writes the next site's input; after the last layer there is none.
func (o *ordinary) ResidualNorm(s kernels.Stream, a kernels.ResidualNormArgs, step kernels.Step) {
	switch at := o.rows[a.B.Offset]; {
	case at.site == adapters.AttnOut:
		a.Normed = o.kept(at.layer, adapters.MLPIn)
	case at.layer+1 < len(o.x):
		a.Normed = o.kept(at.layer+1, adapters.AttnIn)
	}
	o.Backend.ResidualNorm(s, a, step)
}

// MLP writes the input of mlp_down.
func (o *ordinary) MLP(s kernels.Stream, a kernels.MLPArgs, step kernels.Step) {
	a.Act = o.kept(o.rows[a.B.Offset].layer, adapters.MLPDown)
	o.Backend.MLP(s, a, step)
}

// Linear reads its input where it is kept.
func (o *ordinary) Linear(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, step kernels.Step) {
	at := o.sites[w]
	if at.site == adapters.AttnOut {
		o.o[at.layer] = x
	} else {
		x = o.kept(at.layer, at.site)
	}
	o.Backend.Linear(s, yz, x, w, step)
}

// ExpandBackward goes on to dA = dzᵀ·x of each of the site's projections, which is dB's product with x in dy's place and dz in z's.
func (o *ordinary) ExpandBackward(s kernels.Stream, a kernels.ExpandBackwardArgs, step kernels.Step) {
	o.Backend.ExpandBackward(s, a, step)
	at := o.rows[a.B.Offset]
	x, in := o.x[at.layer][at.site], o.m.Geometry.In(at.site)
	if at.site == adapters.AttnOut {
		o.Backend.Copy(s, x.ColRange(0, in), o.o[at.layer])
	}
	for _, p := range at.site.Projs() {
		rows := o.offset(at.layer, p)
		o.Backend.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: x, Z: a.DYZ.ColRange(a.B.Out, a.DYZ.Cols), B: kernels.BRef{Offset: rows, Out: in},
			Grad: kernels.GradRef{Table: o.lanes, Offset: rows, Out: in}}, step)
	}
}

// AdamW updates the A's after B.
func (o *ordinary) AdamW(s kernels.Stream, a kernels.AdamWArgs) {
	o.Backend.AdamW(s, a)
	o.Backend.GradNorm(s, o.a.Norms, o.lanes)
	o.a.Hyper = a.Hyper
	o.Backend.AdamW(s, o.a)
}
