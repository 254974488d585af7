package adapters

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// covers checks the tensors found against target_modules where that is a list: PEFT would leave a tensor of another module unused, and
// start a module without one at zero. A pattern, and a configuration with exclude_modules, is not checked.
func (c peftConfig) covers(found map[moduleKey]tensorPair, g Geometry) error {
	var targets []string
	if json.Unmarshal(c.Targets, &targets) != nil || targets == nil || given(c.Exclude) || given(c.LayersPattern) {
		return nil
	}
	var layers []int
	if given(c.Layers) {
		var one int
		if json.Unmarshal(c.Layers, &one) == nil {
			layers = []int{one}
		} else if err := json.Unmarshal(c.Layers, &layers); err != nil {
			return fmt.Errorf("%s: %w: layers_to_transform is %s", PEFTConfigFile, ErrCorrupt, quote(string(c.Layers)))
		}
	}
	for layer := range g.Layers {
		for p := Q; p < NumProjs; p++ {
			name := strings.TrimSuffix(strings.TrimPrefix(peftTensor(layer, p, "A"), "base_model.model."), ".lora_A.weight")
			target := slices.ContainsFunc(targets, func(t string) bool { return name == t || strings.HasSuffix(name, "."+t) })
			target = target && (layers == nil || slices.Contains(layers, layer))
			switch t, ok := found[moduleKey{layer, p}]; {
			case target && !ok:
				return fmt.Errorf("%s: %w: tensor %s is missing, though target_modules names its module", PEFTModelFile, ErrCorrupt, peftTensor(layer, p, "A"))
			case ok && !target:
				return fmt.Errorf("%s: %w: tensor %s is not used: target_modules does not name its module", PEFTModelFile, ErrCorrupt, quote(t.a))
			}
		}
	}
	return nil
}

func given(raw json.RawMessage) bool {
	return len(raw) > 0 && string(raw) != "null" && string(raw) != "[]"
}
