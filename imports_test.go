package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// layers are the packages from left to right; imports go rightwards only. See doc.go of each.
var layers = []string{"server", "finetune", "infer", "adapters", "kernels"}

// layer is the place of an import path among layers; the command itself comes before all.
func layer(path string) int {
	rest, inside := strings.CutPrefix(path, "bhive/")
	if !inside {
		return -1
	}
	top, _, _ := strings.Cut(rest, "/")
	for i, l := range layers {
		if top == l {
			return i
		}
	}
	return -1
}

func TestImportsGoRightwards(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		from := layer("bhive/" + filepath.ToSlash(filepath.Dir(path)) + "/")
		if from < 0 {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			test := strings.HasSuffix(path, "_test.go") // tests may build what they test from the right device
			switch l := layer(to); {
			case l >= 0 && l < from:
				t.Errorf("%s imports %s, which lies to its left", path, to)
			case layers[from] == "server" && strings.HasPrefix(to, "bhive/kernels") && !test:
				t.Errorf("%s imports %s: server never imports kernels", path, to)
			case strings.HasPrefix(to, "bhive/kernels/") && layers[from] != "kernels" && !test:
				t.Errorf("%s imports %s: devices are chosen by the command alone", path, to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("only %d files were looked at", files)
	}
}
