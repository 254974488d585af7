package demo

import (
	"embed"
	"io/fs"
)

//go:embed config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json
var files embed.FS

// FS holds the checkpoint's files at its root.
func FS() fs.FS { return files }
