package adapters

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

var demo = Geometry{Layers: 6, Hidden: 256, QDim: 256, KVDim: 128, FeedForward: 768}

func readDemo(t testing.TB, name string) *PEFT {
	t.Helper()
	p, err := ReadPEFT(os.DirFS("testdata/"+name), demo)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestProjectionGolden(t *testing.T) {
	var want struct {
		Kept      float64            `json:"kept"`
		PerModule map[string]float64 `json:"per_module"`
	}
	raw, err := os.ReadFile("testdata/projection.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	b, err := ImportBasis(readDemo(t, "adapter_one"), "demo")
	if err != nil {
		t.Fatal(err)
	}
	plain := readDemo(t, "adapter_plain")
	w, got, err := b.Adopt(plain)
	if err != nil {
		t.Fatal(err)
	}
	if got.Exact || w.Rank != 8 || w.Scaling != 2 || len(got.Modules) != len(want.PerModule) {
		t.Fatalf("exact %v, rank %d, scaling %v, %d modules", got.Exact, w.Rank, w.Scaling, len(got.Modules))
	}
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > 1e-5*want {
			t.Errorf("%s: kept %v, want %v", what, got, want)
		}
	}
	near("all", got.Kept, want.Kept)
	for _, m := range got.Modules {
		name := fmt.Sprintf("%d.%v", m.Layer, m.Proj)
		near(name, m.Kept, want.PerModule[name])
	}
	// What was projected is orthogonal to what was left: (B·A − B′·A′)·Aᵀ = 0.
	m := plain.Modules[0]
	in, a := demo.In(m.Proj.Site()), b.A(m.Layer, m.Proj.Site())
	for i := range 5 {
		for k := range 8 {
			var sum, scale float64
			for x := range in {
				v := 0.0
				for j := range 8 {
					v += float64(w.Module(m.Layer, m.Proj)[i*8+j]) * float64(fromBF16(a[j*in+x]))
				}
				for j := range m.Rank {
					v -= float64(m.B[i*m.Rank+j]) * float64(m.A[j*in+x])
				}
				sum += v * float64(fromBF16(a[k*in+x]))
				scale += math.Abs(v * float64(fromBF16(a[k*in+x])))
			}
			if math.Abs(sum) > 1e-5*scale {
				t.Errorf("residual of row %d along A's row %d: %v of %v", i, k, sum, scale)
			}
		}
	}
}

func TestAdoptExact(t *testing.T) {
	one := readDemo(t, "adapter_one")
	b, err := ImportBasis(one, "demo")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"adapter_one", "adapter_two"} { // two shares one's A's
		p := readDemo(t, name)
		w, report, err := b.Adopt(p)
		if err != nil {
			t.Fatal(err)
		}
		if !report.Exact || report.Kept != 1 || w.Rank != 8 || w.Alpha != 16 || w.Scaling != 2 {
			t.Fatalf("%s: %+v, rank %d alpha %v scaling %v", name, report.Exact, w.Rank, w.Alpha, w.Scaling)
		}
		for _, m := range p.Modules {
			got := w.Module(m.Layer, m.Proj)
			for i := range got {
				if got[i] != m.B[i] {
					t.Fatalf("%s: %v differs at %d", name, m, i)
				}
			}
		}
		proj, full, err := b.Project(p, 8)
		if err != nil || math.Abs(full.Kept-1) > 1e-9 {
			t.Fatalf("projection onto its own rows keeps %v, %v", full.Kept, err)
		}
		for i := range w.Data {
			if math.Abs(float64(w.Data[i]-proj.Data[i])) > 1e-5 {
				t.Fatalf("%s: element %d: adopted %v, projected %v", name, i, w.Data[i], proj.Data[i])
			}
		}
	}
	if _, _, err := b.Project(one, 9); !errors.Is(err, ErrRank) {
		t.Errorf("rank over R: %v", err)
	}
}

// An adapter that could not be loaded once it is published is refused before.
func TestAdoptOverflows(t *testing.T) {
	b, err := ImportBasis(readDemo(t, "adapter_one"), "demo")
	if err != nil {
		t.Fatal(err)
	}
	p := readDemo(t, "adapter_one")
	project := func(p *PEFT) (*Weights, Projection, error) { return b.Project(p, 8) }
	for name, fit := range map[string]func(*PEFT) (*Weights, Projection, error){"adopted": b.Adopt, "projected": project} {
		clear(p.Modules[2].B)
		p.Modules[2].B[5] = 2e38 // bfloat16 holds it, but not s times that
		if w, _, err := fit(p); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), p.Modules[2].String()) {
			t.Errorf("%s: %v; it would load: %v", name, err, w != nil && w.PackInto(make([]byte, 2*len(w.Data)), BF16))
		}
		was := p.Scaling
		p.Modules[2].B[5], p.Scaling = math.MaxFloat32, 1e-3 // float32 holds it, and bfloat16 s times that, but not it
		for i := range p.Modules {
			p.Modules[i].Scaling = p.Scaling
		}
		if w, _, err := fit(p); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), p.Modules[2].String()) {
			t.Errorf("%s, with a small scaling: %v; it would be stored: %v", name, err, w != nil && EncodeBlob(io.Discard, w, "", "") == nil)
		}
		for i := range p.Modules {
			p.Modules[i].Scaling = was
		}
		p.Modules[2].B[5], p.Scaling = 1e30, was
		if w, _, err := fit(p); err != nil || !w.PackInto(make([]byte, 2*len(w.Data)), BF16) {
			t.Errorf("%s, large: %v", name, err)
		}
	}
}

func TestImportNeedsSharedA(t *testing.T) {
	_, err := ImportBasis(readDemo(t, "adapter_plain"), "demo")
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "v_proj") {
		t.Errorf("q and v with A's of their own: %v", err)
	}
}

// A list of tensors that is far longer than an adapter's is not read: 95 MB of it took nine seconds and half a gigabyte.
func TestLongModelHeader(t *testing.T) {
	fsys := edited(t, func(map[string]any) {})
	for _, x := range []struct {
		bytes int
		want  string
	}{{maxPEFTHeader, "not a lora_A or lora_B"}, {maxPEFTHeader + 1, "at most 4194304 are allowed"}} {
		const around = `{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`
		header := around + strings.Repeat(" ", x.bytes-len(around))
		fsys[PEFTModelFile] = &fstest.MapFile{Data: append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)}
		if _, err := ReadPEFT(fsys, demo); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("a header of %d bytes: %v", x.bytes, err)
		}
	}
}

// edited is adapter_plain with changed configuration.
func edited(t testing.TB, edit func(map[string]any)) fstest.MapFS {
	t.Helper()
	var c map[string]any
	raw, err := os.ReadFile("testdata/adapter_plain/adapter_config.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	edit(c)
	raw, _ = json.Marshal(c)
	model, err := os.ReadFile("testdata/adapter_plain/adapter_model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	return fstest.MapFS{"adapter_config.json": {Data: raw}, "adapter_model.safetensors": {Data: model}}
}

func TestPEFTConfig(t *testing.T) {
	set := func(k string, v any) func(map[string]any) { return func(c map[string]any) { c[k] = v } }
	for _, c := range []struct {
		edit func(map[string]any)
		kind error
		name string
	}{
		{set("use_dora", true), ErrUnsupported, "use_dora"},
		{set("bias", "all"), ErrUnsupported, "bias"},
		{set("init_lora_weights", "pissa"), ErrUnsupported, "init_lora_weights"},
		{set("init_lora_weights", "pissa_niter_16"), ErrUnsupported, "init_lora_weights"},
		{set("init_lora_weights", "OLoRA"), ErrUnsupported, "init_lora_weights"},
		{set("init_lora_weights", "corda"), ErrUnsupported, "init_lora_weights"},
		{set("init_lora_weights", "loftq"), ErrUnsupported, "init_lora_weights"},
		{set("peft_type", "IA3"), ErrUnsupported, "peft_type"},
		{set("modules_to_save", []string{"lm_head"}), ErrUnsupported, "modules_to_save"},
		{set("target_modules", []string{"q_proj", "v_proj", "down_proj", "k_proj"}), ErrCorrupt, "layers.0.self_attn.k_proj.lora_A.weight is missing"},
		{set("target_modules", []string{"q_proj", "down_proj"}), ErrCorrupt, "layers.0.self_attn.v_proj.lora_A.weight\" is not used"},
		{set("layers_to_transform", []int{0, 1}), ErrCorrupt, "layers.2.self_attn.q_proj.lora_A.weight\" is not used"},
		{set("r", 0), ErrRank, "r is 0"},
		{set("r", 5), ErrCorrupt, "lora_A"},
		{set("r", "4"), ErrCorrupt, "r"},
		{set("lora_alpha", nil), ErrCorrupt, "lora_alpha"},
		{set("lora_alpha", 1e300), ErrCorrupt, "lora_alpha"},
		{set("lora_alpha", -5e-324), ErrCorrupt, "lora_alpha"},
		{set("alpha_pattern", map[string]float64{"q_proj": 1e300}), ErrCorrupt, "alpha_pattern"},
		{set("rank_pattern", map[string]int{"q_proj": 2}), ErrCorrupt, "q_proj.lora_A"},
		{set("rank_pattern", map[string]int{"(": 2}), ErrUnsupported, "rank_pattern"},
		{set("alpha_pattern", map[string]int{"q_proj": 2, "layers.0.self_attn.q_proj": 3}), ErrUnsupported, "alpha_pattern"},
		{set("alpha_pattern", map[string]int{strings.Repeat("(a{1000}|b{1000})?", 100): 2}), ErrUnsupported, "too large"},
	} {
		_, err := ReadPEFT(edited(t, c.edit), demo)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("want %v naming %s, got %v", c.kind, c.name, err)
		}
	}
	for _, v := range []any{true, false, nil, "gaussian", "eva", "orthogonal"} {
		if _, err := ReadPEFT(edited(t, set("init_lora_weights", v)), demo); err != nil {
			t.Errorf("init_lora_weights %v: %v", v, err)
		}
	}
	alphas := map[string]int{"layers.1.self_attn.q_proj": 2}
	for layer := range 126 { // every module of the largest Llama by its name
		for p := Q; p < NumProjs; p++ {
			alphas[strings.TrimSuffix(peftTensor(demo.Layers+layer, p, "A"), ".lora_A.weight")] = 3
		}
	}
	p, err := ReadPEFT(edited(t, func(c map[string]any) {
		c["use_rslora"] = true
		c["alpha_pattern"] = alphas
	}), demo)
	if err != nil {
		t.Fatal(err)
	}
	if p.Scaling != 4 || p.Modules[0].Scaling != 4 || p.Modules[3].Scaling != 1 {
		t.Errorf("scalings %v, %v of %v, %v of %v", p.Scaling, p.Modules[0].Scaling, p.Modules[0], p.Modules[3].Scaling, p.Modules[3])
	}
	g := demo
	g.Layers = 5
	if _, err := ReadPEFT(edited(t, func(map[string]any) {}), g); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("five layers: %v", err)
	}
	g = demo
	g.Hidden = 512
	if _, err := ReadPEFT(edited(t, func(map[string]any) {}), g); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("another hidden size: %v", err)
	}
	if _, err := ReadPEFT(fstest.MapFS{}, demo); !errors.Is(err, ErrCorrupt) {
		t.Errorf("empty directory: %v", err)
	}
}

// A directory of pipes, into which nobody writes, is refused and not waited for.
func TestPEFTPipes(t *testing.T) {
	for _, name := range []string{PEFTConfigFile, PEFTModelFile} {
		dir := t.TempDir()
		for other, f := range edited(t, func(map[string]any) {}) {
			if other == name {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, other), f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Skip(err)
		}
		read := make(chan error, 1)
		go func() { _, err := ReadPEFT(os.DirFS(dir), demo); read <- err }()
		select {
		case err := <-read:
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second): // not for ever
			t.Fatalf("%s is waited for", name)
		}
	}
}

func FuzzReadPEFT(f *testing.F) {
	fsys := edited(f, func(map[string]any) {})
	f.Add(fsys["adapter_config.json"].Data, fsys["adapter_model.safetensors"].Data[:3000])
	f.Add([]byte(`{"peft_type":"LORA","r":1,"lora_alpha":1}`), []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, config, model []byte) {
		p, err := ReadPEFT(fstest.MapFS{"adapter_config.json": {Data: config}, "adapter_model.safetensors": {Data: model}}, small)
		if err == nil && (len(p.Modules) == 0 || p.Rank < 1) {
			t.Errorf("accepted %+v", p)
		}
	})
}
