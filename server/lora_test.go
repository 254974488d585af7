package server

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bhive/adapters"
)

func TestLoadLoRA(t *testing.T) {
	root := t.TempDir()
	put := func(dir string) {
		if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(goldenAdapters+"adapter_plain")); err != nil {
			t.Fatal(err)
		}
	}
	put("mine")
	put("deep/er")
	outside := t.TempDir()
	if err := os.CopyFS(outside, os.DirFS(goldenAdapters+"adapter_plain")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{adapters.PEFTConfigFile, adapters.PEFTModelFile} {
		if err := os.Symlink(filepath.Join(outside, name), filepath.Join(root, "files", name)); err != nil {
			t.Fatal(err)
		}
	}
	h := shared(t)
	c := h.serve(t, func(c *Config, _ *Deps) { c.LoRARoot = root })
	const load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
	wantText := func(r response, text string) {
		t.Helper()
		if r.Status != 200 || !strings.HasPrefix(string(r.Body), text) {
			t.Errorf("status %d: %s, want %q", r.Status, r.Body, text)
		}
	}
	wantText(c.post(load, object{"lora_name": "lora-a", "lora_path": "mine"}), "Success: LoRA adapter 'lora-a' added successfully.")
	wantText(c.post(load, object{"lora_name": "lora-b", "lora_path": filepath.Join(root, "deep", "er")}), "Success")
	c.complete(object{"model": "lora-a", "prompt": "The fox", "max_tokens": 2})
	c.post(load, object{"lora_name": "lora-a", "lora_path": "mine"}).wantError(400, "lora_name", "already_exists")
	wantText(c.post(load, object{"lora_name": "lora-a", "lora_path": "mine", "load_inplace": true}), "Success")
	for _, path := range []string{"", "absent", "..", "../" + filepath.Base(outside), "mine/../../x", outside, root + "/../" + filepath.Base(outside), "/etc", "link", "files", "deep", "mine/adapter_config.json", "a\x00b"} {
		message := c.post(load, object{"lora_name": "lora-bad", "lora_path": path})
		if message.Status != 400 {
			t.Errorf("%q: status %d: %s", path, message.Status, message.Body)
		}
		if bytes.Contains(message.Body, []byte("no such file or directory")) && path != "deep" {
			t.Errorf("%q: the answer tells of the machine's files: %s", path, message.Body)
		}
	}
	c.post(load, object{"lora_path": "mine"}).wantError(400, "lora_name", "")
	c.post(load, object{"lora_name": "../x", "lora_path": "mine"}).wantError(400, "lora_name", "")
	c.get("/adapters/lora-bad").wantError(404, "name", "adapter_not_found")

	wantText(c.post(unload, object{"lora_name": "lora-a"}), "Success: LoRA adapter 'lora-a' removed successfully.")
	c.get("/adapters/lora-a").wantError(404, "name", "adapter_not_found")
	c.post(unload, object{"lora_name": "lora-a"}).wantError(404, "lora_name", "adapter_not_found")
	h.publish(t, "lora-trained", 4, 1)
	c.post(unload, object{"lora_name": "lora-trained"}).wantError(409, "lora_name", "not_loaded_from_directory")
	c.complete(object{"model": "lora-trained", "prompt": "The fox", "max_tokens": 2})

	off := serve(t)
	off.post(load, object{"lora_name": "lora-c", "lora_path": "mine"}).wantError(403, "", "lora_loading_disabled")
	off.post(unload, object{"lora_name": "lora-b"}).wantError(403, "", "lora_loading_disabled")
}
