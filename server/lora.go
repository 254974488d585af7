package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"bhive/adapters"
)

// loraRequest is the body of vLLM's two calls.
type loraRequest struct {
	Name    string `json:"lora_name"`
	Path    string `json:"lora_path"`
	Inplace bool   `json:"load_inplace"`
}

func (s *Server) loraRequest(w http.ResponseWriter, r *http.Request) (loraRequest, error) {
	var q loraRequest
	if s.config.LoRARoot == "" {
		return q, &apiError{Status: http.StatusForbidden, Type: "permission_error", Code: "lora_loading_disabled",
			Message: "adapters are not loaded from this machine's directories: the server was started without --lora-root"}
	}
	if err := s.decodeJSON(w, r, &q); err != nil {
		return q, err
	}
	if q.Name == "" {
		return q, badField("lora_name", "lora_name: is missing")
	}
	_, err := s.newName(q.Name, "lora_name")
	return q, err
}

// loadLoRA publishes a PEFT adapter that lies in a directory below the configured root. Symbolic links that lead out of the root do not open.
func (s *Server) loadLoRA(w http.ResponseWriter, r *http.Request) error {
	q, err := s.loraRequest(w, r)
	if err != nil {
		return err
	}
	if s.draining.Load() {
		return errDraining
	}
	ctx := r.Context()
	var o adapters.PublishOptions
	if !q.Inplace {
		o.CheckLive = true
		if _, err := s.d.Store.Get(ctx, tenant(ctx), q.Name, 0); err == nil {
			return loraExists(q.Name)
		} else if !errors.Is(err, adapters.ErrNotFound) {
			return err
		}
	}
	kept, err := s.mayKeep(ctx, q.Name, 0)
	if err != nil {
		return err
	}
	defer kept()
	leave, err := s.enterImport(ctx)
	if err != nil {
		return err
	}
	defer leave()
	p, err := s.readLoRA(q.Path)
	if err != nil {
		return err
	}
	out, err := s.adopt(ctx, q.Name, p, 0, false, o, q.Path)
	if errors.Is(err, adapters.ErrExists) {
		return loraExists(q.Name)
	}
	if err != nil {
		return err
	}
	text := fmt.Sprintf("Success: LoRA adapter '%s' added successfully.", q.Name)
	if out.Warning != nil {
		text += " Warning: " + *out.Warning + "."
	}
	writeText(w, text)
	return nil
}

func loraExists(name string) *apiError {
	return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Param: "lora_name", Code: "already_exists", Message: fmt.Sprintf("The lora adapter '%s' has already been loaded.", name)}
}

// readLoRA reads the adapter in a directory of the root, given relative to it or with it.
func (s *Server) readLoRA(path string) (*adapters.PEFT, error) {
	if path == "" {
		return nil, badField("lora_path", "lora_path: is missing")
	}
	below := path
	if filepath.IsAbs(path) {
		root, err := filepath.Abs(s.config.LoRARoot)
		if err != nil {
			return nil, err
		}
		if below, err = filepath.Rel(root, path); err != nil {
			below = ".."
		}
	}
	if !filepath.IsLocal(below) {
		return nil, badField("lora_path", "lora_path: %q is not below the server's --lora-root", path)
	}
	root, err := os.OpenRoot(s.config.LoRARoot)
	if err != nil {
		return nil, fmt.Errorf("opening the root of adapters: %w", err)
	}
	defer root.Close()
	dir, err := root.OpenRoot(below)
	if err != nil {
		return nil, badField("lora_path", "lora_path: there is no directory %q below the server's --lora-root", path)
	}
	defer dir.Close()
	if info, err := dir.Stat(adapters.PEFTModelFile); err == nil && info.Size() > s.config.MaxAdapterBytes {
		return nil, badField("lora_path", "lora_path: %s has %d bytes, at most %d are read", adapters.PEFTModelFile, info.Size(), s.config.MaxAdapterBytes)
	}
	p, err := adapters.ReadPEFT(dir.FS(), s.d.Basis.Geometry)
	var outside *fs.PathError
	if errors.As(err, &outside) && !errors.Is(err, adapters.ErrCorrupt) {
		return nil, badField("lora_path", "lora_path: %s in %q cannot be read", filepath.Base(outside.Path), path)
	}
	if err != nil {
		return nil, importError(err)
	}
	return p, nil
}

// unloadLoRA deletes an adapter that loadLoRA made. One with a version that was made in another way stays: it would be lost.
func (s *Server) unloadLoRA(w http.ResponseWriter, r *http.Request) error {
	q, err := s.loraRequest(w, r)
	if err != nil {
		return err
	}
	ctx := r.Context()
	all, err := s.d.Store.Versions(ctx, tenant(ctx), q.Name)
	if errors.Is(err, adapters.ErrNotFound) {
		return &apiError{Status: http.StatusNotFound, Type: "not_found_error", Param: "lora_name", Code: "adapter_not_found", Message: fmt.Sprintf("The lora adapter '%s' cannot be found.", q.Name)}
	}
	if err != nil {
		return err
	}
	for _, v := range all {
		var training struct{ Imported struct{ Path string } }
		if json.Unmarshal(v.Training, &training) != nil || training.Imported.Path == "" {
			return &apiError{Status: http.StatusConflict, Type: "conflict_error", Param: "lora_name", Code: "not_loaded_from_directory",
				Message: fmt.Sprintf("%s@%d was not loaded from a directory, and unloading would lose it: use DELETE /adapters/%s", v.Name, v.Number, q.Name)}
		}
	}
	if err := s.d.Registry.Delete(ctx, tenant(ctx), q.Name, 0); err != nil && !errors.Is(err, adapters.ErrNotFound) {
		return err
	}
	writeText(w, fmt.Sprintf("Success: LoRA adapter '%s' removed successfully.", q.Name))
	return nil
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text)) // a client that went away is no error of ours
}
