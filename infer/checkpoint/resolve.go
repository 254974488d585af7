package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
)

// Demo is the name and the resolved path of the embedded model: open it by OpenFS(demo.FS()).
const Demo = "demo"

// SmolLM2 is the file that `make smollm2` fetches.
const SmolLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"

// Resolve turns a model's name into a path for Open: "demo" stays Demo, "smollm2" is looked for in dirs (in order;
// "models" where none is given), anything else is a path. ErrUnknownModel says what to do.
func Resolve(name string, dirs []string) (string, error) {
	if len(dirs) == 0 {
		dirs = []string{"models"}
	}
	switch name {
	case Demo:
		return Demo, nil
	case "smollm2":
		for _, d := range dirs {
			p := filepath.Join(d, SmolLM2)
			if _, err := os.Stat(p); err == nil {
				return p, nil
			}
		}
		return "", fmt.Errorf("%w: smollm2 is not in %q; `make smollm2` fetches it", ErrUnknownModel, dirs)
	}
	if _, err := os.Stat(name); err != nil {
		return "", fmt.Errorf("%w: %q is not demo or smollm2, and not a path (%w); give a Hugging Face directory or a .gguf file", ErrUnknownModel, name, err)
	}
	return name, nil
}
