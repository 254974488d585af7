package adapters

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

type tarEntry struct {
	name string
	data []byte
	kind byte // 0: a file
	size int64
}

// packed is a tar of the entries; an entry's size, where set, is what its header says.
func packed(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		w := tar.NewWriter(&b)
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.data))}
		if e.kind != 0 {
			h.Typeflag, h.Linkname, h.Size = e.kind, "/etc/passwd", 0
		}
		if e.size != 0 {
			h.Size = e.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == 0 {
			if _, err := w.Write(e.data); err != nil {
				t.Fatal(err)
			}
		}
		if e.size == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if entries[len(entries)-1].size == 0 {
		if err := tar.NewWriter(&b).Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func plainFiles(t testing.TB) (config, model tarEntry) {
	fsys := edited(t, func(map[string]any) {})
	return tarEntry{name: PEFTConfigFile, data: fsys[PEFTConfigFile].Data}, tarEntry{name: PEFTModelFile, data: fsys[PEFTModelFile].Data}
}

func TestReadPEFTTar(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	config, model := plainFiles(t)
	in := func(dir string, e tarEntry) tarEntry { e.name = dir + e.name; return e }
	noise := tarEntry{name: "README.md", data: []byte("read me")}
	want := readDemo(t, "adapter_plain")
	for _, good := range [][]tarEntry{{config, model}, {model, noise, config}, {in("./", config), in("./", model)},
		{{name: "mine/", kind: tar.TypeDir}, in("mine/", config), in("mine/", model)}} {
		p, err := ReadPEFTTar(iotest.HalfReader(bytes.NewReader(packed(t, good...))), 1<<20, demo)
		if err != nil {
			t.Fatal(err)
		}
		if p.Rank != want.Rank || len(p.Modules) != len(want.Modules) {
			t.Errorf("rank %d, %d modules", p.Rank, len(p.Modules))
		}
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "bhive-upload-") {
			t.Errorf("%s was left", e.Name())
		}
	}
}

func TestReadPEFTTarRefuses(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	config, model := plainFiles(t)
	in := func(dir string, e tarEntry) tarEntry { e.name = dir + e.name; return e }
	good := packed(t, config, model)
	for _, c := range []struct {
		name, says string
		kind       error
		data       []byte
	}{
		{"empty", "no adapter_config.json", ErrCorrupt, nil},
		{"no tar", "entry 1", ErrCorrupt, bytes.Repeat([]byte("x"), 2000)},
		{"gzip", "gzip", ErrCorrupt, []byte("\x1f\x8b\x08\x00")},
		{"no model", "no adapter_model.safetensors", ErrCorrupt, packed(t, config)},
		{"no config", "no adapter_config.json", ErrCorrupt, packed(t, model)},
		{"cut off", `"adapter_model.safetensors"`, ErrCorrupt, good[:len(good)/2]},
		{"lies about its size", `"adapter_model.safetensors"`, ErrCorrupt, packed(t, config, tarEntry{name: model.name, data: model.data, size: int64(len(model.data)) + 5000})},
		{"dots", `".."`, ErrCorrupt, packed(t, in("../", config), in("../", model))},
		{"dots inside", `".."`, ErrCorrupt, packed(t, in("a/../", config), in("a/../", model))},
		{"dots of no adapter's file", `".."`, ErrCorrupt, packed(t, config, model, tarEntry{name: "../../etc/cron.d/x", data: []byte("x")})},
		{"absolute", "absolute", ErrCorrupt, packed(t, in("/", config), in("/", model))},
		{"backslash", "backslash", ErrCorrupt, packed(t, in(`a\`, config), model)},
		{"symlink", "is a link", ErrCorrupt, packed(t, config, tarEntry{name: PEFTModelFile, kind: tar.TypeSymlink})},
		{"hard link", "is a link", ErrCorrupt, packed(t, config, tarEntry{name: PEFTModelFile, kind: tar.TypeLink})},
		{"device", "neither a file", ErrCorrupt, packed(t, config, model, tarEntry{name: "null", kind: tar.TypeChar})},
		{"twice", `"x/adapter_config.json"`, ErrCorrupt, packed(t, config, model, in("x/", config))},
		{"two directories", "different directories", ErrCorrupt, packed(t, in("x/", config), model)},
		{"bomb", "1099511627776 bytes", ErrTooLarge, packed(t, config, tarEntry{name: PEFTModelFile, size: 1 << 40})},
		{"large config", "adapter_config.json", ErrTooLarge, packed(t, tarEntry{name: PEFTConfigFile, data: make([]byte, maxPEFTConfig+1)}, model)},
		{"many entries", "more than 1000", ErrCorrupt, packed(t, append(make([]tarEntry, 0), repeated(tarEntry{name: "x"}, maxTarEntries+1)...)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadPEFTTar(bytes.NewReader(c.data), 1<<20, demo)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("want %v that says %q, got %v", c.kind, c.says, err)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := ReadPEFTTar(io.MultiReader(bytes.NewReader(good[:30000]), iotest.ErrReader(broken)), 1<<20, demo); !errors.Is(err, broken) {
		t.Errorf("a reader's error: %v", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("%d temporary files were left, %v", len(left), err)
	}
}

func repeated(e tarEntry, n int) []tarEntry {
	out := make([]tarEntry, n)
	for i := range out {
		out[i] = e
	}
	return out
}

func FuzzReadPEFTTar(f *testing.F) {
	f.Add(packed(f, tarEntry{name: PEFTConfigFile, data: []byte(`{"peft_type":"LORA","r":1,"lora_alpha":1}`)}, tarEntry{name: PEFTModelFile, data: []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}")}))
	f.Add(packed(f, tarEntry{name: "../x", kind: tar.TypeSymlink}))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ReadPEFTTar(bytes.NewReader(data), 1<<16, small)
		if err == nil && (len(p.Modules) == 0 || p.Rank < 1) {
			t.Errorf("accepted %+v", p)
		}
	})
}
