package adapters

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// Files that come one by one are what they are in a directory, and of what is refused no temporary file is left.
func TestSpoolPEFTFiles(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	config, model := plainFiles(t)
	broken := errors.New("broken")
	spool := func(limit int64, files ...tarEntry) (*PEFTUpload, error) {
		return SpoolPEFTFiles(func() (string, io.Reader, error) {
			if len(files) == 0 {
				return "", nil, io.EOF
			}
			f := files[0]
			files = files[1:]
			if f.data == nil {
				return f.name, iotest.ErrReader(broken), nil
			}
			return f.name, bytes.NewReader(f.data), nil
		}, limit)
	}
	readme := tarEntry{name: "README.md"} // it is not read
	u, err := spool(1<<20, readme, model, tarEntry{name: "dir/" + config.name, data: config.data})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 { // a process that is killed now leaves nothing
		t.Errorf("%d temporary files have names, %v", len(left), err)
	}
	got, err := u.Read(demo)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ReadPEFTTar(bytes.NewReader(packed(t, config, model)), 1<<20, demo)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("as files it is another adapter than in a tar")
	}
	u.Close()
	u.Close()
	for _, c := range []struct {
		name, says string
		kind       error
		limit      int64
		files      []tarEntry
	}{
		{"none", "no adapter_config.json", ErrCorrupt, 1 << 20, nil},
		{"no model", "no adapter_model.safetensors", ErrCorrupt, 1 << 20, []tarEntry{config}},
		{"twice", `"other/adapter_model.safetensors"`, ErrCorrupt, 1 << 20, []tarEntry{config, model, {name: "other/" + model.name, data: model.data}}},
		{"large model", `"adapter_model.safetensors"`, ErrTooLarge, int64(len(model.data)) - 1, []tarEntry{config, model}},
		{"large config", `"adapter_config.json"`, ErrTooLarge, 4 << 20, []tarEntry{{name: config.name, data: make([]byte, maxPEFTConfig+1)}, model}},
		{"breaks", "broken", broken, 1 << 20, []tarEntry{config, {name: model.name}}},
	} {
		if _, err := spool(c.limit, c.files...); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: want %v that says %q, got %v", c.name, c.kind, c.says, err)
		}
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("%d temporary files were left, %v", len(left), err)
	}
}
