package server

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bhive/adapters"
	"bhive/server/api"

	"github.com/google/go-cmp/cmp"
)

const goldenAdapters = "../adapters/testdata/"

// tarOf is a tar of a directory's two files; edit, where not nil, changes a file's bytes, header and name.
func tarOf(t testing.TB, dir string, edit func(*tar.Header, *[]byte)) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{adapters.PEFTConfigFile, adapters.PEFTModelFile} {
		data, err := os.ReadFile(filepath.Join(goldenAdapters, dir, name))
		if err != nil {
			t.Fatal(err)
		}
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}
		if edit != nil {
			was := len(data)
			edit(h, &data)
			if len(data) != was {
				h.Size = int64(len(data))
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = w.Close() // it minds entries shorter than their headers say
	return b.String()
}

func (c *client) sendTar(path, body string) response {
	c.t.Helper()
	return c.do("POST", path, body, "Content-Type", "application/x-tar")
}

func decoded[T any](t testing.TB, r response, status int) T {
	t.Helper()
	var v T
	if r.Status != status {
		t.Fatalf("status %d, want %d: %s", r.Status, status, r.Body)
	}
	if err := json.Unmarshal(r.Body, &v); err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	return v
}

// An adapter that leaves and comes back is the same, and so is its text.
func TestExportImport(t *testing.T) {
	c, h := serve(t), shared(t)
	first := h.publish(t, "peft-out", 8, 3)
	h.publish(t, "peft-out", 8, 4)
	sent := c.get("/adapters/peft-out/export?version=1")
	if sent.Status != 200 || sent.Header.Get("Content-Type") != "application/x-tar" || !strings.Contains(sent.Header.Get("Content-Disposition"), "peft-out-1.tar") {
		t.Fatalf("status %d, %v", sent.Status, sent.Header)
	}
	in := decoded[api.AdapterImport](t, c.sendTar("/adapters/peft-back/import", string(sent.Body)), 201)
	if !in.Exact || in.Kept != 1 || in.Warning != nil || in.Version == nil || in.Version.Sha256 != first.SHA256 {
		t.Errorf("imported %+v, want the version's own bytes (%s)", in, first.SHA256)
	}
	ask := func(model string) string {
		return string(c.post("/v1/completions", object{"model": model, "prompt": "The fox", "max_tokens": 8, "temperature": 0}).Body)
	}
	text := func(body string) string { _, after, _ := strings.Cut(body, `"text":`); return after }
	if a, b := text(ask("peft-out@1")), text(ask("peft-back")); a == "" || a != b {
		t.Errorf("%s went out, %s came back", a, b)
	}
	again := decoded[api.AdapterImport](t, c.sendTar("/adapters/peft-back/import", string(sent.Body)), 201)
	if again.Version.Version != 2 || !again.Version.Live {
		t.Errorf("a second import gave %+v", again.Version)
	}
	if bytes.Equal(c.get("/adapters/peft-out/export").Body, sent.Body) {
		t.Error("the live version's export is version 1's")
	}
	c.get("/adapters/peft-out/export?version=9").wantError(404, "name", "adapter_not_found")
	c.get("/adapters/peft-out/export?version=x").wantError(400, "version", "")
	c.get("/adapters/peft-absent/export").wantError(404, "name", "adapter_not_found")
}

// A LoRA over other A's is projected, and the answer says what that cost.
func TestImportProjects(t *testing.T) {
	c, h := serve(t), shared(t)
	body := tarOf(t, "adapter_plain", nil)
	dry := decoded[api.AdapterImport](t, c.sendTar("/adapters/peft-plain/import?dry_run=true", body), 200)
	c.get("/adapters/peft-plain").wantError(404, "name", "adapter_not_found")
	in := decoded[api.AdapterImport](t, c.sendTar("/adapters/peft-plain/import", body), 201)
	if in.Exact || in.Warning == nil || !strings.Contains(*in.Warning, "lost") || in.Version.Rank != h.deps.Basis.R || in.SourceRank != 4 {
		t.Errorf("imported %+v", in)
	}
	p, err := adapters.ReadPEFT(os.DirFS(goldenAdapters+"adapter_plain"), h.deps.Basis.Geometry)
	if err != nil {
		t.Fatal(err)
	}
	_, want, err := h.deps.Basis.Project(p, h.deps.Basis.R)
	if err != nil {
		t.Fatal(err)
	}
	if in.Kept != want.Kept || dry.Kept != want.Kept || len(in.Modules) != len(want.Modules) || dry.Version != nil {
		t.Errorf("kept %v, dry %v, want %v", in.Kept, dry.Kept, want.Kept)
	}
	for i, m := range in.Modules {
		if m.Kept != want.Modules[i].Kept || string(m.Module) != want.Modules[i].Proj.String() {
			t.Errorf("module %d: %+v, want %+v", i, m, want.Modules[i])
		}
	}
	less := decoded[api.AdapterImport](t, c.sendTar("/adapters/peft-plain/import?dry_run=1&rank=4", body), 200)
	if less.Kept >= in.Kept {
		t.Errorf("4 rows keep %v, all %v", less.Kept, in.Kept)
	}
	c.complete(object{"model": "peft-plain", "prompt": "The fox", "max_tokens": 2})
}

// A directory that comes as a form is what it would be as a tar.
func TestImportForm(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "form-bystander", 4, 1)
	read := func(name string) string {
		data, err := os.ReadFile(goldenAdapters + "adapter_plain/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	config, model := read(adapters.PEFTConfigFile), read(adapters.PEFTModelFile)
	const configFile, modelFile = "a=dir/" + adapters.PEFTConfigFile, "b=dir/" + adapters.PEFTModelFile
	send := func(path string, pairs ...string) response {
		body, kind := form(t, pairs...)
		return c.do("POST", path, body, "Content-Type", kind)
	}
	tarred := decoded[api.AdapterImport](t, c.sendTar("/adapters/form-tar/import", tarOf(t, "adapter_plain", nil)), 201)
	got := decoded[api.AdapterImport](t, send("/adapters/form-in/import", "x=dir/README.md", "A LoRA.", "note", "no file", modelFile, model, configFile, config), 201)
	if got.Version.Sha256 != tarred.Version.Sha256 || got.Kept != tarred.Kept {
		t.Errorf("as a form %+v, as a tar %+v", got.Version, tarred.Version)
	}
	whole, kind := form(t, configFile, config, modelFile, model)
	for _, x := range []struct {
		name, code, says string
		status           int
		answer           response
	}{
		{"no model", "invalid_adapter", "no adapter_model.safetensors", 400, send("/adapters/form-bad/import", configFile, config)},
		{"no file", "invalid_adapter", "no adapter_config.json", 400, send("/adapters/form-bad/import", "adapter_config.json", config)},
		{"twice", "invalid_adapter", "comes twice", 400, send("/adapters/form-bad/import", configFile, config, "c=other/adapter_config.json", config, modelFile, model)},
		{"damaged", "invalid_adapter", "adapter_model.safetensors", 400, send("/adapters/form-bad/import", configFile, config, modelFile, model[:len(model)/2])},
		{"large configuration", "too_large", "adapter_config.json", 413, send("/adapters/form-bad/import", configFile, strings.Repeat(" ", 1<<20+1), modelFile, model)},
		{"many parts", "", "1000 parts", 400, send("/adapters/form-bad/import", slices.Repeat([]string{"x=x", "x"}, maxDirectory+1)...)},
		{"cut off", "unreadable_body", "", 400, c.do("POST", "/adapters/form-bad/import", whole[:len(whole)/2], "Content-Type", kind)},
		{"cut off in a header", "invalid_adapter", "no adapter_config.json", 400, c.do("POST", "/adapters/form-bad/import", whole[:100], "Content-Type", kind)},
		{"no form", "unreadable_body", "form", 400, c.do("POST", "/adapters/form-bad/import", "x", "Content-Type", "multipart/form-data")},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.answer.t = t
			if message := x.answer.wantError(x.status, "", x.code); !strings.Contains(message, x.says) {
				t.Errorf("the message does not say %q: %s", x.says, message)
			}
		})
	}
	small := shared(t).serve(t, func(c *Config, _ *Deps) { c.MaxAdapterBytes = 50000 })
	small.do("POST", "/adapters/form-bad/import", whole, "Content-Type", kind).wantError(413, "", "too_large")
	c.get("/adapters/form-bad").wantError(404, "name", "adapter_not_found")
	c.complete(object{"model": "form-bystander", "prompt": "The fox", "max_tokens": 2})
}

// What cannot be an adapter is refused, and nothing of it stays.
func TestBadImports(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "peft-bystander", 4, 1)
	model := func(edit func([]byte) []byte) string {
		return tarOf(t, "adapter_plain", func(h *tar.Header, data *[]byte) {
			if h.Name == adapters.PEFTModelFile {
				*data = edit(*data)
			}
		})
	}
	replaced := func(old, with string) string {
		return model(func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(with), 1) })
	}
	config := func(old, with string) string {
		return tarOf(t, "adapter_plain", func(h *tar.Header, data *[]byte) {
			if h.Name == adapters.PEFTConfigFile {
				*data = bytes.Replace(*data, []byte(old), []byte(with), 1)
			}
		})
	}
	header := func(edit func(*tar.Header)) string {
		return tarOf(t, "adapter_plain", func(h *tar.Header, data *[]byte) {
			if h.Name == adapters.PEFTModelFile {
				edit(h)
			}
		})
	}
	good := tarOf(t, "adapter_plain", nil)
	other := string(c.get("/adapters/peft-bystander/export").Body)
	for _, x := range []struct {
		name, body, code, says string
		status                 int
	}{
		{"empty", "", "invalid_adapter", "no adapter_config.json", 400},
		{"no tar", strings.Repeat("nonsense ", 200), "invalid_adapter", "entry 1", 400},
		{"cut off", good[:40000], "invalid_adapter", "adapter_model.safetensors", 400},
		{"lies about its size", header(func(h *tar.Header) { h.Size += 100000 }), "invalid_adapter", "adapter_model.safetensors", 400},
		{"dots", header(func(h *tar.Header) { h.Name = "../" + h.Name }), "invalid_adapter", "..", 400},
		{"absolute", header(func(h *tar.Header) { h.Name = "/tmp/" + h.Name }), "invalid_adapter", "absolute", 400},
		{"a link", header(func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc/passwd", 0 }), "invalid_adapter", "is a link", 400},
		{"bomb", header(func(h *tar.Header) { h.Size = 1 << 42 }), "too_large", "at most", 413},
		{"another dtype", replaced(`"dtype":"BF16"`, `"dtype":"I16"  `[:14]), "invalid_adapter", "I16", 400},
		{"another shape", replaced(`"shape":[4,256]`, `"shape":[256,4]`), "base_mismatch", "lora_A", 409},
		{"another rank", config(`"r": 4`, `"r": 8`), "invalid_adapter", "not [8, 256]", 400},
		{"an unknown tensor", replaced("self_attn.q_proj.lora_A", "self_attn.z_proj.lora_A"), "not_supported", "z_proj", 400},
		{"a missing tensor", config(`"q_proj"`, `"q_proj", "k_proj"`), "invalid_adapter", "k_proj", 400},
		{"an unused tensor", config(`"q_proj"`, `"k_proj"`), "invalid_adapter", "q_proj.lora_A.weight\" is not used", 400},
		{"DoRA", config(`"use_dora": false`, `"use_dora": true`), "not_supported", "use_dora", 400},
		{"a layer too many", replaced("layers.5.self_attn.q_proj.lora_A", "layers.6.self_attn.q_proj.lora_A"), "base_mismatch", "6 layers", 409},
		{"another base", strings.Replace(other, shared(t).deps.Basis.BaseHash[:8], "00000000", 1), "base_mismatch", "exported for the base", 409},
		{"not finite", model(func(b []byte) []byte { copy(b[len(b)-2:], "\x80\x7f"); return b }), "invalid_adapter", "Inf", 400},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := *c
			c.t = t
			if message := c.sendTar("/adapters/peft-bad/import", x.body).wantError(x.status, "", x.code); !strings.Contains(message, x.says) {
				t.Errorf("the message does not say %q: %s", x.says, message)
			}
			c.get("/adapters/peft-bad").wantError(404, "name", "adapter_not_found")
		})
	}
	lying, err := http.NewRequestWithContext(t.Context(), "POST", c.url+"/adapters/peft-bad/import", strings.NewReader(good[:1000]))
	if err != nil {
		t.Fatal(err)
	}
	lying.ContentLength = int64(len(good))
	lying.Header.Set("Content-Type", "application/x-tar")
	if a, err := http.DefaultTransport.RoundTrip(lying); err == nil { // the client may notice first
		a.Body.Close()
		if a.StatusCode != 400 {
			t.Errorf("a body shorter than its Content-Length: status %d", a.StatusCode)
		}
	}
	c.sendTar("/adapters/Peft/import", good).wantError(400, "name", "")
	c.sendTar("/adapters/demo/import", good).wantError(409, "name", "already_exists")
	c.sendTar("/adapters/peft-bad/import?rank=65", good).wantError(400, "rank", "")
	c.sendTar("/adapters/peft-bad/import?dry_run=perhaps", good).wantError(400, "dry_run", "")
	c.do("POST", "/adapters/peft-bad/import", good, "Content-Type", "application/gzip").wantError(415, "", "unsupported_media_type")
	c.do("POST", "/adapters/peft-bad/import", good, "Content-Type", "application/x-tar", "Content-Encoding", "gzip").wantError(415, "", "unsupported_media_type")
	small := shared(t).serve(t, func(c *Config, _ *Deps) { c.MaxAdapterBytes = 50000 })
	small.sendTar("/adapters/peft-bad/import", good).wantError(413, "", "too_large")
	small.sendTar("/adapters/peft-bad/import", strings.Repeat("\x00", 512)+strings.Repeat("x", 2<<20)).wantError(400, "", "invalid_adapter")
	c.get("/adapters/peft-bad").wantError(404, "name", "adapter_not_found")
	c.complete(object{"model": "peft-bystander", "prompt": "The fox", "max_tokens": 2})
}

// A composed adapter answers as the mix does.
func TestCompose(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, nil)
	h.publish(t, "sum-a", 4, 1)
	h.publish(t, "sum-b", 8, 2)
	body := object{"parts": []object{{"model": "sum-a", "weight": 0.7}, {"model": "sum-b@1", "weight": -0.3}}}
	a := decoded[api.Adapter](t, c.post("/adapters/sum/compose", body), 201)
	if a.Version == nil || a.Version.Rank != 8 || *a.LiveVersion != 1 {
		t.Errorf("composed %+v", a)
	}
	logprobs := func(model string) []any {
		var out struct {
			Choices []struct {
				Logprobs struct {
					Token []any `json:"token_logprobs"`
				}
			}
		}
		r := c.post("/v1/completions", object{"model": model, "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "logprobs": 1})
		if err := json.Unmarshal(r.Body, &out); err != nil || len(out.Choices) != 1 {
			t.Fatalf("%s: %v: %s", model, err, r.Body)
		}
		return out.Choices[0].Logprobs.Token
	}
	if diff := cmp.Diff(logprobs("sum-a:0.7+sum-b:-0.3"), logprobs("sum")); diff != "" {
		t.Errorf("the mix and its sum (-mix +sum):\n%s", diff)
	}
	if _, err := h.deps.Store.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	c.post("/adapters/sum/compose", object{"parts": []object{{"model": "sum-a", "weight": 0.2}}}).wantError(409, "name", "already_exists")
	if left, err := h.deps.Store.GC(t.Context(), 0); err != nil || left.Blobs != 0 {
		t.Errorf("what was refused has left %d blobs, %v", left.Blobs, err)
	}
	for _, x := range []struct {
		name, param string
		status      int
		body        object
	}{
		{"none", "parts", 400, object{}},
		{"too many", "parts", 400, object{"parts": slices.Repeat([]object{{"model": "sum-a"}}, adapters.MaxMix+1)}},
		{"no model", "parts[0].model", 400, object{"parts": []object{{"weight": 1}}}},
		{"unknown", "parts[1].model", 404, object{"parts": []object{{"model": "sum-a"}, {"model": "nobody"}}}},
		{"another tenant's", "parts[0].model", 404, object{"parts": []object{{"model": "other/sum-a"}}}},
		{"a mix", "parts[0].model", 400, object{"parts": []object{{"model": "sum-a:0.5+sum-b"}}}},
		{"bad name", "parts[0].model", 400, object{"parts": []object{{"model": "../x"}}}},
		{"large weight", "parts[0].weight", 400, object{"parts": []object{{"model": "sum-a", "weight": math.MaxFloat64}}}},
		{"weight of another type", "parts.0.weight", 400, object{"parts": []object{{"model": "sum-a", "weight": "x"}}}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := *c
			c.t = t
			r := c.post("/adapters/sum-bad/compose", x.body)
			r.wantError(x.status, x.param, map[int]string{404: "model_not_found"}[x.status])
			c.get("/adapters/sum-bad").wantError(404, "name", "adapter_not_found")
		})
	}
	c.post("/adapters/demo/compose", body).wantError(409, "name", "already_exists")
}

// corruptStore finds what it is given damaged once it has it.
type corruptStore struct{ adapters.Store }

func (corruptStore) PutBlob(context.Context, string, io.Reader) (adapters.BlobInfo, error) {
	return adapters.BlobInfo{}, fmt.Errorf("storing: %w", adapters.ErrCorrupt)
}

// Damage in the store is not the client's error.
func TestStoreDamaged(t *testing.T) {
	h := shared(t)
	h.publish(t, "whole", 4, 1)
	c := h.serve(t, func(_ *Config, d *Deps) {
		d.Store = corruptStore{h.deps.Store}
		d.Registry = adapters.NewRegistry(d.Store, nil)
	})
	c.sendTar("/adapters/damaged/import", tarOf(t, "adapter_plain", nil)).wantError(500, "", "corrupt_adapter")
	c.post("/adapters/damaged/compose", object{"parts": []object{{"model": "whole"}}}).wantError(500, "", "corrupt_adapter")
}

// The client's own reading of an export.
func TestExportIsATar(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "peft-tar", 4, 1)
	r := tar.NewReader(bytes.NewReader(c.get("/adapters/peft-tar/export").Body))
	var names []string
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if diff := cmp.Diff([]string{adapters.PEFTConfigFile, adapters.PEFTModelFile}, names); diff != "" {
		t.Error(diff)
	}
}

// TestLossWarning: what two decimals of a percentage show as nothing is no loss to warn of.
func TestLossWarning(t *testing.T) {
	for kept, want := range map[float64]bool{1: false, 1 - 1e-5: false, 1 - 1e-4: true, 0.2: true} {
		if said := lossWarning(adapters.Projection{Kept: kept, Modules: []adapters.ModuleKept{{Kept: kept}}}, 64); (said != "") != want {
			t.Errorf("with %v kept it says %q", kept, said)
		}
	}
}
