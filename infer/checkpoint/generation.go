package checkpoint

import (
	"encoding/json"
	"fmt"
)

// Generation is the checkpoint's own sampling defaults (generation_config.json); nil where it names none.
type Generation struct {
	Temperature       *float64
	TopP              *float64
	MinP              *float64
	TopK              *int
	RepetitionPenalty *float64
	DoSample          *bool
	MaxNewTokens      *int
	BOS, Pad          *int
	EOS               []int
}

func parseGeneration(data []byte) (Generation, error) {
	var g struct {
		Temperature       *float64 `json:"temperature"`
		TopP              *float64 `json:"top_p"`
		MinP              *float64 `json:"min_p"`
		TopK              *int     `json:"top_k"`
		RepetitionPenalty *float64 `json:"repetition_penalty"`
		DoSample          *bool    `json:"do_sample"`
		MaxNewTokens      *int     `json:"max_new_tokens"`
		BOS               *int     `json:"bos_token_id"`
		Pad               *int     `json:"pad_token_id"`
		EOS               ids      `json:"eos_token_id"`
	}
	if err := json.Unmarshal(data, &g); err != nil {
		return Generation{}, fmt.Errorf("%w: generation_config.json: %w", ErrFormat, err)
	}
	return Generation{
		Temperature: g.Temperature, TopP: g.TopP, MinP: g.MinP, TopK: g.TopK, RepetitionPenalty: g.RepetitionPenalty,
		DoSample: g.DoSample, MaxNewTokens: g.MaxNewTokens, BOS: g.BOS, Pad: g.Pad, EOS: g.EOS,
	}, nil
}
