package adapters

import "io/fs"

// PEFT is a LoRA adapter as Hugging Face PEFT stores it.
type PEFT struct {
	Geometry Geometry
	Rank     int          // r of adapter_config.json; the largest of the modules' ranks where rank_pattern differs
	Alpha    float64      // lora_alpha
	Scaling  float64      // alpha/r, or alpha/√r with use_rslora
	Modules  []PEFTModule // in the order of the flat layout; only those that the adapter trains
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

// ReadPEFT reads adapter_config.json and adapter_model.safetensors from fsys and checks every tensor against the
// geometry. Errors: ErrUnsupported (DoRA, biases, other peft types, …), ErrBaseMismatch (shapes, layers),
// ErrCorrupt (everything else), each naming the field or tensor.
func ReadPEFT(fsys fs.FS, g Geometry) (*PEFT, error) { panic("to come") }

// ImportBasis makes a basis of a PEFT adapter's lora_A's. Every site must have one; projections of a site must
// share it (ErrUnsupported, naming the module). R is the adapter's rank.
func ImportBasis(p *PEFT, baseHash string) (*Basis, error) { panic("to come") }
