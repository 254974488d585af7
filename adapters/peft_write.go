package adapters

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"bhive/adapters/safetensors"
)

// The two files of a PEFT adapter.
const (
	PEFTConfigFile = "adapter_config.json"
	PEFTModelFile  = "adapter_model.safetensors"
)

// metaBase is the metadata key under which an exported adapter names its base model's hash; PEFT ignores it.
const metaBase = "bhive.base"

// PEFTExport is a B written out as an ordinary LoRA, each module with a lora_A of its own. Its tensors are made while they are written.
type PEFTExport struct {
	Config    []byte // adapter_config.json
	ModelSize int64  // bytes of adapter_model.safetensors

	tensors []safetensors.Tensor
	meta    map[string]string
}

// Export writes w as PEFT 0.21 does: for each projection that is not zero in every layer (all where every one is) and each layer lora_A [r, in],
// the basis' first r rows in bf16, and lora_B [out, r] in bf16, or in float32 where bf16 does not hold its values. baseName becomes
// base_model_name_or_path. Errors: ErrRank (above R), ErrUnsupported (a scaling of 0, which PEFT has no word for), ErrBaseMismatch.
func (b *Basis) Export(w *Weights, baseName string) (*PEFTExport, error) {
	switch {
	case w.Geometry != b.Geometry:
		return nil, fmt.Errorf("exporting an adapter: %w", ErrBaseMismatch)
	case w.Rank > b.R:
		return nil, fmt.Errorf("exporting an adapter: %w: %d is above the basis' %d rows", ErrRank, w.Rank, b.R)
	case w.Scaling == 0:
		return nil, fmt.Errorf("exporting an adapter: %w: its scaling is 0", ErrUnsupported)
	}
	used := usedProjs(w)
	config, err := exportConfig(w, baseName, used)
	if err != nil {
		return nil, fmt.Errorf("exporting an adapter: %w", err)
	}
	x := &PEFTExport{Config: config, meta: map[string]string{"format": "pt", metaBase: b.BaseHash}}
	for layer := range w.Geometry.Layers {
		for _, p := range used {
			in, out, m := w.Geometry.In(p.Site()), w.Geometry.Out(p), w.Module(layer, p)
			rows := b.A(layer, p.Site())[:w.Rank*in]
			dtype := safetensors.BF16
			if slices.ContainsFunc(m, func(v float32) bool { return fromBF16(toBF16(v)) != v }) {
				dtype = safetensors.F32
			}
			x.tensors = append(x.tensors,
				safetensors.Tensor{Name: peftTensor(layer, p, "A"), DType: safetensors.BF16, Shape: []int{w.Rank, in}, From: &late{make: func() []byte { return bf16Bytes(rows) }}},
				safetensors.Tensor{Name: peftTensor(layer, p, "B"), DType: dtype, Shape: []int{out, w.Rank}, From: &late{make: func() []byte { return floatBytes(m, dtype) }}})
		}
	}
	if x.ModelSize, err = safetensors.Size(x.tensors, x.meta); err != nil {
		return nil, fmt.Errorf("exporting an adapter: %w", err)
	}
	return x, nil
}

func peftTensor(layer int, p Proj, which string) string {
	part := "self_attn"
	if p >= Gate {
		part = "mlp"
	}
	return fmt.Sprintf("base_model.model.model.layers.%d.%s.%v.lora_%s.weight", layer, part, p, which)
}

// usedProjs are the projections that are not zero in every layer, or all.
func usedProjs(w *Weights) []Proj {
	var used, all []Proj
	for p := Q; p < NumProjs; p++ {
		all = append(all, p)
		for layer := range w.Geometry.Layers {
			if slices.ContainsFunc(w.Module(layer, p), func(v float32) bool { return v != 0 }) {
				used = append(used, p)
				break
			}
		}
	}
	if len(used) == 0 {
		return all
	}
	return used
}

func exportConfig(w *Weights, baseName string, used []Proj) ([]byte, error) {
	alpha, rslora := w.Alpha, false
	r := float64(w.Rank)
	switch w.Scaling {
	case alpha / r:
	case alpha / math.Sqrt(r):
		rslora = true
	default:
		alpha = w.Scaling * r
	}
	var targets []string
	for _, p := range used {
		targets = append(targets, p.String())
	}
	config := map[string]any{"peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.21.0", "base_model_name_or_path": baseName, "auto_mapping": nil, "revision": nil,
		"inference_mode": true, "r": w.Rank, "lora_alpha": alpha, "use_rslora": rslora, "lora_dropout": 0.0, "bias": "none", "lora_bias": false, "use_dora": false,
		"fan_in_fan_out": false, "init_lora_weights": true, "modules_to_save": nil, "target_modules": targets, "rank_pattern": struct{}{}, "alpha_pattern": struct{}{}}
	return json.MarshalIndent(config, "", "  ")
}

// WriteModel writes adapter_model.safetensors. It can be called once: the tensors are streams.
func (x *PEFTExport) WriteModel(w io.Writer) error {
	if err := safetensors.Write(w, x.tensors, x.meta); err != nil {
		return fmt.Errorf("writing a PEFT adapter: %w", err)
	}
	return nil
}

// WriteTar writes a tar of the two files, which at says to be of that time. It can be called once.
func (x *PEFTExport) WriteTar(w io.Writer, at time.Time) error {
	t := tar.NewWriter(w)
	put := func(name string, size int64, write func(io.Writer) error) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: at.Truncate(time.Second)}); err != nil {
			return fmt.Errorf("writing a PEFT adapter: %s: %w", name, err)
		}
		return write(t)
	}
	err := put(PEFTConfigFile, int64(len(x.Config)), func(w io.Writer) error { _, err := w.Write(x.Config); return err })
	if err == nil {
		err = put(PEFTModelFile, x.ModelSize, x.WriteModel)
	}
	if err != nil {
		return err
	}
	return t.Close()
}

// WriteDir writes the two files into a directory, which it makes where it is absent. What it had before stays whole until both are written. It
// can be called once.
func (x *PEFTExport) WriteDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing a PEFT adapter: %w", err)
	}
	write := func(name string, write func(io.Writer) error) (*renameio.PendingFile, error) {
		f, err := renameio.NewPendingFile(filepath.Join(dir, name), renameio.WithPermissions(0o644))
		if err != nil {
			return nil, fmt.Errorf("writing a PEFT adapter: %w", err)
		}
		if err := write(f); err != nil {
			return nil, errors.Join(err, f.Cleanup())
		}
		return f, nil
	}
	model, err := write(PEFTModelFile, x.WriteModel)
	if err != nil {
		return err
	}
	defer func() { _ = model.Cleanup() }() // nothing to do once it is in its place
	config, err := write(PEFTConfigFile, func(w io.Writer) error {
		_, err := w.Write(x.Config)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = config.Cleanup() }()
	for _, f := range []*renameio.PendingFile{model, config} {
		if err := f.CloseAtomicallyReplace(); err != nil {
			return fmt.Errorf("writing a PEFT adapter: %w", err)
		}
	}
	return nil
}

// late is a reader whose bytes are made when the first is read, and dropped with the last.
type late struct {
	make func() []byte
	rest *bytes.Reader
}

func (l *late) Read(p []byte) (int, error) {
	if l.rest == nil {
		if l.make == nil {
			return 0, io.EOF
		}
		l.rest, l.make = bytes.NewReader(l.make()), nil
	}
	n, err := l.rest.Read(p)
	if l.rest.Len() == 0 {
		l.rest = nil
	}
	return n, err
}

func floatBytes(v []float32, d safetensors.DType) []byte {
	out := make([]byte, 0, len(v)*d.Size())
	for _, x := range v {
		if d == safetensors.BF16 {
			out = binary.LittleEndian.AppendUint16(out, toBF16(x))
		} else {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(x))
		}
	}
	return out
}
