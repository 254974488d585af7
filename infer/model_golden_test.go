package infer

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/infer/goldentest"
	"bhive/kernels"
	"bhive/kernels/devicetest"
)

// float16Rounding is what storing reference logits in half precision adds, as a share of (max − min): half an ulp of the largest
// magnitude, which is at most (max − min).
const float16Rounding = 1.0 / 2048

// bfloat16Tolerance is the bfloat16 form's share of a position's (max − min). Its working values (z, K, V) have 8 significant bits,
// a rounding error of up to 2⁻⁹ each, and so have base weights that the checkpoint holds in more bits. Errors of that size
// enter at each of a layer's seven linears, at the embedding and at the head, independent of each other, and add up as their root.
//
// A device with bfloat16 activations rounds eleven more times in a layer: what its four linears write and what they read, the residual
// stream twice, and q.
func bfloat16Tolerance(layers int) float64 {
	each := 7
	if !devicetest.OnCPU() {
		each += 11
	}
	return math.Sqrt(float64(each*layers+2)) / 512
}

type goldenLogits struct {
	IDs       []int32     `json:"ids"`
	LogSumExp []float64   `json:"logsumexp"`
	TopIDs    [][]int     `json:"top_ids"`
	TopLogits [][]float32 `json:"top_logits"`
}

type goldenGreedy struct {
	Prompt []int32   `json:"prompt"`
	IDs    []int32   `json:"ids"`
	Margin []float64 `json:"margin"`
}

func readJSON[T any](t testing.TB, path string) (v T) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

// goldenModel is a model with reference files in dir.
type goldenModel struct {
	dir  string
	cp   *checkpoint.Checkpoint
	hash string
}

func demoGolden(t testing.TB) goldenModel {
	t.Helper()
	cp, err := checkpoint.OpenFS(demo.FS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cp.Close() })
	return goldenModel{"testdata/demo", cp, BaseHash(cp)}
}

func (g goldenModel) peft(t testing.TB, name string) *adapters.PEFT {
	t.Helper()
	p, err := adapters.ReadPEFT(os.DirFS(filepath.Join(g.dir, "adapter_"+name)), GeometryOf(g.cp.Config()))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (g goldenModel) has(name string) bool {
	_, err := os.Stat(filepath.Join(g.dir, name+".logits.json"))
	return err == nil
}

// shared is the basis of adapter_one and adapter_two, and the B's of the variants over it.
func (g goldenModel) shared(t testing.TB) (*adapters.Basis, map[string]*adapters.Weights) {
	t.Helper()
	one := g.peft(t, "one")
	basis, err := adapters.ImportBasis(one, g.hash)
	if err != nil {
		t.Fatal(err)
	}
	adopt := func(p *adapters.PEFT) *adapters.Weights {
		w, projection, err := basis.Adopt(p)
		if err != nil || !projection.Exact {
			t.Fatalf("adopting an adapter over its own basis: exact %v, %v", projection.Exact, err)
		}
		return w
	}
	all := map[string]*adapters.Weights{"base": nil, "one": adopt(one)}
	if g.has("two") {
		two := adopt(g.peft(t, "two"))
		all["two"] = two
		all["mix"] = adapters.Mix([]*adapters.Weights{all["one"], two}, []float64{0.7, 0.3})
	}
	return basis, all
}

// plain holds the ordinary LoRA exactly: its modules' own A's are stacked as rows of the sites' A, and each B has zeros where the rows
// of others stand.
func (g goldenModel) plain(t testing.TB) (*adapters.Basis, map[string]*adapters.Weights) {
	t.Helper()
	p := g.peft(t, "plain")
	geometry := p.Geometry
	const sites = int(adapters.NumSites)
	type stack struct {
		bits []uint16
		at   map[adapters.Proj]int // first row of a projection's A
		rows int
	}
	stacks := make([]stack, geometry.Layers*sites)
	for i := range stacks {
		stacks[i].at = map[adapters.Proj]int{}
	}
	r := 0
	for _, m := range p.Modules {
		s := &stacks[m.Layer*sites+int(m.Proj.Site())]
		s.at[m.Proj] = s.rows
		s.bits = append(s.bits, m.ABits...)
		s.rows += m.Rank
		r = max(r, s.rows)
	}
	w := adapters.NewWeights(geometry, r, float64(r)*p.Scaling)
	imported := &adapters.PEFT{Geometry: geometry, Rank: r, Alpha: w.Alpha, Scaling: w.Scaling}
	for i, s := range stacks {
		site := adapters.Site(i % sites)
		bits := make([]uint16, r*geometry.In(site))
		copy(bits, s.bits)
		for row := s.rows; row < r; row++ { // rows that no B uses
			bits[row*geometry.In(site)+row] = 0x3f80
		}
		matrix := bf16Matrix{r, geometry.In(site), bits}
		a := make([]float32, len(bits))
		for row := range r {
			matrix.Row(row, a[row*matrix.cols:(row+1)*matrix.cols])
		}
		imported.Modules = append(imported.Modules, adapters.PEFTModule{Layer: i / sites, Proj: site.Projs()[0], Rank: r, Scaling: w.Scaling, A: a, ABits: bits, AExact: true})
	}
	for _, m := range p.Modules {
		from := stacks[m.Layer*sites+int(m.Proj.Site())].at[m.Proj]
		b := w.Module(m.Layer, m.Proj)
		for o := range geometry.Out(m.Proj) {
			copy(b[o*r+from:], m.B[o*m.Rank:(o+1)*m.Rank])
		}
	}
	basis, err := adapters.ImportBasis(imported, g.hash)
	if err != nil {
		t.Fatal(err)
	}
	return basis, map[string]*adapters.Weights{"plain": w}
}

// check holds the model in one form against all references; whole adds the texts.
func (g goldenModel) check(t *testing.T, working kernels.DType, format kernels.Format, tolerance float64, texts bool) {
	be := openDevice(t, working)
	for _, set := range []func(testing.TB) (*adapters.Basis, map[string]*adapters.Weights){g.shared, g.plain} {
		basis, variants := set(t)
		m, err := Load(context.Background(), be, g.cp, basis, LoadConfig{Format: format, Positions: 1024, BaseHash: g.hash})
		if err != nil {
			t.Fatal(err)
		}
		s := newScorer(t, m, ScorerConfig{KVTokens: 1024})
		for name, w := range variants {
			t.Run(name, func(t *testing.T) {
				slot := adapters.BaseSlot
				if w != nil {
					slot = 3
					if err := s.SetAdapter(slot, w); err != nil {
						t.Fatal(err)
					}
				}
				g.checkLogits(t, s, name, slot, tolerance)
				if texts {
					g.checkTexts(t, s, name, slot, tolerance)
				}
			})
		}
		s.Close()
		m.Close()
	}
}

func (g goldenModel) checkLogits(t *testing.T, s *Scorer, name string, slot int, tolerance float64) {
	want := readJSON[[]goldenLogits](t, filepath.Join(g.dir, name+".logits.json"))
	if len(want) == 0 {
		t.Fatal("no prompts")
	}
	var seqs []Sequence
	for _, w := range want {
		seqs = append(seqs, Sequence{Tokens: w.IDs, Adapter: slot})
	}
	worst, worstLast := 0.0, 0.0
	err := s.Logits(context.Background(), seqs, func(i, p int, got []float32) {
		w := &want[i]
		span := float64(slices.Max(got) - slices.Min(got))
		worst = worse(worst, (logSumExp(got)-w.LogSumExp[p])/span)
		for k, id := range w.TopIDs[p] {
			worst = worse(worst, float64(got[id]-w.TopLogits[p][k])/span)
		}
		if name == "base" && p == len(w.IDs)-1 {
			last := float16s(t, goldentest.OpenTensors(t, filepath.Join(g.dir, "base.last_logits.safetensors")), fmt.Sprintf("prompt%d", i))
			worstLast = worse(worstLast, difference(got, last))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("logits: worst difference %.2g of (max − min), whole last rows %.2g", worst, worstLast)
	if !(worst <= tolerance) {
		t.Errorf("logits differ by %.3g of (max − min), more than %g", worst, tolerance)
	}
	if !(worstLast <= tolerance+float16Rounding) {
		t.Errorf("last rows differ by %.3g of (max − min), more than %g", worstLast, tolerance+float16Rounding)
	}
}

// checkTexts decodes greedily and compares up to the first end of text, or the first token whose lead does not decide.
func (g goldenModel) checkTexts(t *testing.T, s *Scorer, name string, slot int, tolerance float64) {
	compared, open := 0, 0
	for i, want := range readJSON[[]goldenGreedy](t, filepath.Join(g.dir, name+".greedy.json")) {
		n := len(want.IDs)
		if end := slices.IndexFunc(want.IDs, func(id int32) bool { return slices.Contains(g.cp.Config().EOS, int(id)) }); end >= 0 {
			n = end + 1
		}
		got, spans := greedyTokens(t, s, want.Prompt, slot, n)
		for j := range n {
			decided := want.Margin[j] > 2*tolerance*spans[j] // both the best and the second may be off
			if got[j] == want.IDs[j] {
				compared++
				continue
			}
			if decided {
				t.Errorf("prompt %d: token %d is %d, want %d (which leads by %.3g of %.3g)", i, j, got[j], want.IDs[j], want.Margin[j], spans[j])
			}
			open += n - j
			break
		}
	}
	t.Logf("texts: %d tokens equal, %d after a lead that does not decide", compared, open)
	if compared == 0 {
		t.Error("no token was compared")
	}
}

// greedyTokens continues a prompt by n tokens; spans are the logits' (max − min) at each.
func greedyTokens(t testing.TB, s *Scorer, prompt []int32, slot, n int) (ids []int32, spans []float64) {
	t.Helper()
	q := StepSeq{Tokens: prompt, Adapter: slot, Lane: -1, Blocks: s.free}
	for len(ids) < n {
		q.Rows = []Row{GreedyRow(len(q.Tokens) - 1)}
		logits, err := s.Step([]StepSeq{q})
		if err != nil {
			t.Fatal(err)
		}
		best, top := int32(0), logits[0]
		for id, v := range logits {
			if v > top {
				best, top = int32(id), v
			}
		}
		ids, spans = append(ids, best), append(spans, float64(top-slices.Min(logits)))
		q.Start += len(q.Tokens)
		q.Tokens = []int32{best}
	}
	return ids, spans
}

func TestDemoFloat32(t *testing.T) {
	demoGolden(t).check(t, kernels.F32, kernels.FormatF32, float32Tolerance, true)
}

// TestDemoBFloat16 is the default form: bfloat16 weights, z, K and V; the residual stream stays float32.
func TestDemoBFloat16(t *testing.T) {
	g := demoGolden(t)
	g.check(t, kernels.BF16, kernels.FormatBF16, bfloat16Tolerance(g.cp.Config().Layers), true)
}
