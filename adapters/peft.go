package adapters

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"bhive/adapters/safetensors"
)

// PEFT is a LoRA adapter as Hugging Face PEFT stores it.
type PEFT struct {
	Geometry Geometry
	Rank     int          // the largest of the modules' ranks (r of adapter_config.json without rank_pattern)
	Alpha    float64      // lora_alpha
	Scaling  float64      // alpha/r, or alpha/√r with use_rslora, of the configuration's own alpha and r
	Modules  []PEFTModule // in the order of the flat layout; only those that the adapter trains
	BaseHash string       // of the base, where the adapter was exported from here; else ""
	Bytes    int64        // of adapter_model.safetensors
}

// PEFTModule is the LoRA of one projection: y += Scaling·B·A·x.
type PEFTModule struct {
	Layer   int
	Proj    Proj
	Rank    int
	Scaling float64
	A       []float32 // [Rank, in]
	B       []float32 // [out, Rank]
	ABits   []uint16  // A rounded to bf16, [Rank, in]
	AExact  bool      // A has no more precision than ABits
}

func (m PEFTModule) String() string { return fmt.Sprintf("layers.%d.%v", m.Layer, m.Proj) }

type peftConfig struct {
	PeftType     string             `json:"peft_type"`
	R            int                `json:"r"`
	Alpha        *float64           `json:"lora_alpha"`
	RSLoRA       bool               `json:"use_rslora"`
	Bias         string             `json:"bias"`
	RankPattern  map[string]int     `json:"rank_pattern"`
	AlphaPattern map[string]float64 `json:"alpha_pattern"`

	Targets       json.RawMessage `json:"target_modules"`
	Exclude       json.RawMessage `json:"exclude_modules"`
	Layers        json.RawMessage `json:"layers_to_transform"`
	LayersPattern json.RawMessage `json:"layers_pattern"`

	keys map[string]*regexp.Regexp // of both patterns
}

// peftOff are the fields of adapter_config.json that change what an adapter computes and must be off.
var peftOff = []string{"use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication",
	"trainable_token_indices", "target_parameters", "alora_invocation_tokens", "kasa_config", "monteclora_config", "velora_config", "arrow_config"}

// peftInits are the values of init_lora_weights that leave the base as it is. With the others (pissa, olora, corda, loftq, …) PEFT takes what A and B begin
// with out of the base's weights, also when it loads the adapter: over the base itself it would be another model.
var peftInits = []string{"", "null", "true", "false", `"gaussian"`, `"eva"`, `"orthogonal"`}

const (
	maxPEFTConfig = 1 << 20 // bytes
	maxPEFTHeader = 4 << 20 // bytes of the model file's list of tensors, which takes ten times its size in memory; of 126 layers it has some 350 KB
	maxPatterns   = 1 << 16 // instructions of all keys of rank_pattern and alpha_pattern as programs; a module's name is some 50
)

// ReadPEFT reads adapter_config.json and adapter_model.safetensors from fsys and checks every tensor against the
// geometry. rank_pattern, alpha_pattern and use_rslora are honoured. Errors: ErrUnsupported (DoRA, biases, other
// peft types, …), ErrBaseMismatch (shapes, layers), ErrRank (above MaxRank), ErrCorrupt (everything else), each naming the field or tensor.
func ReadPEFT(fsys fs.FS, g Geometry) (*PEFT, error) {
	p, err := readPEFT(fsys, g)
	if err != nil {
		return nil, fmt.Errorf("reading a PEFT adapter: %w", err)
	}
	return p, nil
}

func readPEFT(fsys fs.FS, g Geometry) (*PEFT, error) {
	c, err := readPEFTConfig(fsys)
	if err != nil {
		return nil, fmt.Errorf("adapter_config.json: %w", err)
	}
	data, size, done, err := openModel(fsys)
	if err != nil {
		return nil, missing(err)
	}
	defer done()
	f, err := safetensors.OpenWithin(data, size, maxPEFTHeader)
	if err != nil {
		return nil, fmt.Errorf("adapter_model.safetensors: %w: %w", ErrCorrupt, err)
	}
	p := &PEFT{Geometry: g, Alpha: *c.Alpha, Scaling: c.scaling(*c.Alpha, c.R), BaseHash: f.Metadata()[metaBase], Bytes: size}
	names, err := peftTensors(f, g)
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		if err := c.covers(names, g); err != nil {
			return nil, err
		}
	}
	for layer := range g.Layers {
		for proj := Q; proj < NumProjs; proj++ {
			n, ok := names[moduleKey{layer, proj}]
			if !ok {
				continue
			}
			m, err := c.module(f, n, layer, proj, g)
			if err != nil {
				return nil, err
			}
			p.Modules = append(p.Modules, m)
			p.Rank = max(p.Rank, m.Rank)
		}
	}
	if len(p.Modules) == 0 {
		return nil, fmt.Errorf("adapter_model.safetensors: %w: it has no tensors", ErrCorrupt)
	}
	return p, nil
}

// openRegular opens a regular file. What it is, is asked before: to open a pipe is to wait for somebody who writes into it.
func openRegular(fsys fs.FS, name string) (fs.File, int64, error) {
	info, err := fs.Stat(fsys, name)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrCorrupt, name)
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := fsys.Open(name)
	return f, info.Size(), err
}

// openModel opens adapter_model.safetensors; one that cannot be read at an offset is read into memory.
func openModel(fsys fs.FS) (io.ReaderAt, int64, func() error, error) {
	f, size, err := openRegular(fsys, PEFTModelFile)
	if err != nil {
		return nil, 0, nil, err
	}
	if at, ok := f.(io.ReaderAt); ok {
		return at, size, f.Close, nil
	}
	raw, err := io.ReadAll(f)
	_ = f.Close() // it was only read
	return bytes.NewReader(raw), int64(len(raw)), func() error { return nil }, err
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// readSmall reads a regular file, at most a byte more than maxPEFTConfig of it.
func readSmall(fsys fs.FS, name string) ([]byte, error) {
	f, _, err := openRegular(fsys, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPEFTConfig+1))
}

func readPEFTConfig(fsys fs.FS) (peftConfig, error) {
	var c peftConfig
	raw, err := readSmall(fsys, PEFTConfigFile)
	if err != nil {
		return c, missing(err)
	}
	if len(raw) > maxPEFTConfig {
		return c, fmt.Errorf("%w: it has more than the %d bytes that are read", ErrCorrupt, maxPEFTConfig)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return c, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if c.PeftType != "LORA" {
		return c, fmt.Errorf("%w: peft_type is %s, not LORA", ErrUnsupported, quote(c.PeftType))
	}
	if c.Bias != "" && c.Bias != "none" {
		return c, fmt.Errorf("%w: bias is %s, not none", ErrUnsupported, quote(c.Bias))
	}
	for _, name := range peftOff {
		switch v := string(all[name]); v {
		case "", "null", "false", "[]", "{}", `""`:
		default:
			return c, fmt.Errorf("%w: %s is %s", ErrUnsupported, name, quote(v))
		}
	}
	if v := string(all["init_lora_weights"]); !slices.Contains(peftInits, strings.ToLower(v)) {
		return c, fmt.Errorf("%w: init_lora_weights is %s, which changes the base; save the adapter with path_initial_model_for_weight_conversion",
			ErrUnsupported, quote(v))
	}
	if c.R < 1 || c.R > MaxRank {
		return c, fmt.Errorf("%w: r is %d, not in 1 … %d", ErrRank, c.R, MaxRank)
	}
	if c.Alpha != nil && *c.Alpha == 0 {
		return c, fmt.Errorf("%w: lora_alpha is 0", ErrUnsupported)
	}
	if c.Alpha == nil {
		return c, fmt.Errorf("%w: lora_alpha is missing", ErrCorrupt)
	}
	if s := c.scaling(*c.Alpha, c.R); !sane(s) {
		return c, fmt.Errorf("%w: lora_alpha %v gives a scaling of %v", ErrCorrupt, *c.Alpha, s)
	}
	for k, alpha := range c.AlphaPattern {
		if alpha != 0 && !sane(alpha) {
			return c, fmt.Errorf("%w: alpha_pattern %s is %v", ErrCorrupt, quote(k), alpha)
		}
	}
	for k, r := range c.RankPattern {
		if r < 1 || r > MaxRank {
			return c, fmt.Errorf("%w: rank_pattern %s is %d, not in 1 … %d", ErrRank, quote(k), r, MaxRank)
		}
	}
	return c, c.compile()
}

// compile compiles the keys of the patterns, each once: every module is looked up in all of them. Their size is bounded, since {1000} in a few
// thousand keys would keep an import at work for an hour.
func (c *peftConfig) compile() error {
	c.keys = map[string]*regexp.Regexp{}
	size := 0
	for field, keys := range map[string]iter.Seq[string]{"rank_pattern": maps.Keys(c.RankPattern), "alpha_pattern": maps.Keys(c.AlphaPattern)} {
		for k := range keys {
			text := `^(?:(?:.*\.)?(?:` + k + `))$` // the whole name, or its end behind a dot
			tree, err := syntax.Parse(text, syntax.Perl)
			if err != nil {
				return fmt.Errorf("%w: %s has the key %s: %w", ErrUnsupported, field, quote(k), err)
			}
			program, err := syntax.Compile(tree.Simplify())
			if err != nil {
				return fmt.Errorf("%w: %s has the key %s: %w", ErrUnsupported, field, quote(k), err)
			}
			if size += len(program.Inst); size > maxPatterns {
				return fmt.Errorf("%w: the keys of %s are too many or too large", ErrUnsupported, field)
			}
			c.keys[k] = regexp.MustCompile(text)
		}
	}
	return nil
}

// sane says that a scaling, and what is computed of it, its square and its share of another one among them, stays in the range of the numbers used.
func sane(s float64) bool { return math.Abs(s) > 1e-30 && math.Abs(s) < 1e30 }

func (c peftConfig) scaling(alpha float64, r int) float64 {
	if c.RSLoRA {
		return alpha / math.Sqrt(float64(r))
	}
	return alpha / float64(r)
}

// pattern looks name up as PEFT does, by keys that are compiled.
func pattern[V comparable](compiled map[string]*regexp.Regexp, field string, keys map[string]V, name string, otherwise V) (V, error) {
	found, hit := otherwise, ""
	for k, v := range keys {
		if !compiled[k].MatchString(name) {
			continue
		}
		if hit != "" && v != found {
			return found, fmt.Errorf("%w: %s has the keys %s and %s for %s", ErrUnsupported, field, quote(hit), quote(k), name)
		}
		found, hit = v, k
	}
	return found, nil
}

type moduleKey struct {
	layer int
	proj  Proj
}

type tensorPair struct{ module, a, b string }

var peftName = regexp.MustCompile(`^(?:base_model\.model\.)?((?:model\.)?layers\.(\d{1,6})\.(self_attn|mlp)\.([a-z]+_proj))\.lora_([AB])(?:\.default)?\.weight$`)

// peftTensors sorts the file's tensors by module and refuses those that it cannot place.
func peftTensors(f *safetensors.File, g Geometry) (map[moduleKey]tensorPair, error) {
	pairs := map[moduleKey]tensorPair{}
	for _, name := range f.Names() {
		m := peftName.FindStringSubmatch(name)
		if m == nil {
			return nil, fmt.Errorf("%w: tensor %s is not a lora_A or lora_B of a linear projection", ErrUnsupported, quote(name))
		}
		layer, err := strconv.Atoi(m[2])
		proj, ok := ParseProj(m[4])
		if err != nil || !ok || (m[3] == "mlp") != (proj >= Gate) {
			return nil, fmt.Errorf("%w: tensor %s: no such projection", ErrUnsupported, quote(name))
		}
		if layer >= g.Layers {
			return nil, fmt.Errorf("%w: tensor %s: the base has %d layers", ErrBaseMismatch, quote(name), g.Layers)
		}
		k := moduleKey{layer, proj}
		t := pairs[k]
		t.module = m[1]
		if (m[5] == "A" && t.a != "") || (m[5] == "B" && t.b != "") {
			return nil, fmt.Errorf("%w: tensor %s: the module has another one", ErrCorrupt, quote(name))
		}
		if m[5] == "A" {
			t.a = name
		} else {
			t.b = name
		}
		pairs[k] = t
	}
	for k, t := range pairs {
		if t.a == "" || t.b == "" {
			return nil, fmt.Errorf("%w: layers.%d.%v lacks its lora_A or lora_B", ErrCorrupt, k.layer, k.proj)
		}
	}
	return pairs, nil
}

func (c peftConfig) module(f *safetensors.File, n tensorPair, layer int, proj Proj, g Geometry) (PEFTModule, error) {
	m := PEFTModule{Layer: layer, Proj: proj}
	rank, err := pattern(c.keys, "rank_pattern", c.RankPattern, n.module, c.R)
	if err != nil {
		return m, err
	}
	alpha, err := pattern(c.keys, "alpha_pattern", c.AlphaPattern, n.module, *c.Alpha)
	if err != nil {
		return m, err
	}
	in, out := g.In(proj.Site()), g.Out(proj)
	a, _ := f.Info(n.a)
	b, _ := f.Info(n.b)
	if len(a.Shape) != 2 || a.Shape[1] != in {
		return m, fmt.Errorf("%w: tensor %s has shape %v, not [%d, %d]", ErrBaseMismatch, n.a, a.Shape, rank, in)
	}
	if len(b.Shape) != 2 || b.Shape[0] != out {
		return m, fmt.Errorf("%w: tensor %s has shape %v, not [%d, %d]", ErrBaseMismatch, n.b, b.Shape, out, rank)
	}
	m.Rank, m.Scaling = rank, c.scaling(alpha, rank)
	ta, err := readTensor(f, n.a, rank, in, safetensors.BF16, safetensors.F16, safetensors.F32)
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	tb, err := readTensor(f, n.b, out, rank, safetensors.BF16, safetensors.F16, safetensors.F32)
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m.A, m.ABits, m.AExact, m.B = ta.values, ta.bits(), ta.exact, tb.values
	return m, nil
}

// ImportBasis makes a basis of a PEFT adapter's lora_A's, rounded to bf16. Every site must have one, all of one
// rank (ErrRank); projections of a site must share it (ErrUnsupported, naming the module). R is the adapter's rank.
func ImportBasis(p *PEFT, baseHash string) (*Basis, error) {
	if limit := p.Geometry.maxRows(); p.Rank > limit {
		return nil, fmt.Errorf("importing a basis: %w: R = %d, but the smallest input of a site is %d", ErrRank, p.Rank, limit)
	}
	b := emptyBasis(Import, 0, p.Rank, p.Geometry, baseHash)
	from := make([]PEFTModule, len(b.rows))
	for _, m := range p.Modules {
		i := m.Layer*int(NumSites) + int(m.Proj.Site())
		switch {
		case m.Rank != p.Rank:
			return nil, fmt.Errorf("importing a basis: %w: %v has rank %d, others %d", ErrRank, m, m.Rank, p.Rank)
		case b.rows[i] == nil:
			b.rows[i], from[i] = m.ABits, m
		case !slices.Equal(m.A, from[i].A):
			return nil, fmt.Errorf("importing a basis: %w: %v has another lora_A than %v of the same input", ErrUnsupported, m, from[i])
		}
	}
	for i, rows := range b.rows {
		if rows == nil {
			return nil, fmt.Errorf("importing a basis: %w: layers.%d has no lora_A at %v", ErrUnsupported, i/int(NumSites), Site(i%int(NumSites)))
		}
	}
	return b, nil
}
