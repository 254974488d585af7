package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"bhive/adapters"
	"bhive/server/api"

	"github.com/go-chi/chi/v5"
)

const (
	fineTune    = "fine-tune" // the one purpose of files here
	maxFileName = 255         // bytes
	maxParts    = 16          // of a multipart body
	formBytes   = 1 << 20     // of a multipart body beside its file
)

func shownFile(ctx context.Context, f adapters.File) api.File {
	return api.File{Id: shownID(ctx, f.Tenant, f.ID), Object: "file", Bytes: int(f.Bytes), CreatedAt: int(f.CreatedAt.Unix()), Filename: f.Name,
		Purpose: api.FilePurpose(f.Purpose), Status: "processed"}
}

func fileNotFound(param, id string) *apiError {
	return &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Param: param, Code: "file_not_found", Message: fmt.Sprintf("No such File object: %s", id)}
}

// file is a file of the caller's tenant; param names the field that the id came from.
func (s *Server) file(ctx context.Context, param, id string) (adapters.File, error) {
	f, err := s.d.Store.GetFile(ctx, tenant(ctx), id)
	if errors.Is(err, adapters.ErrNotFound) || errors.Is(err, adapters.ErrInvalidName) {
		return f, fileNotFound(param, id)
	}
	return f, err
}

// watched remembers why its reader failed, whatever becomes of the error on its way up. Before it ends it asks whether it may.
type watched struct {
	r    io.Reader
	left int64
	end  func() error
	err  error // of r
	no   error // of end
}

var errFileTooLarge = errors.New("the file is too large")

func (w *watched) Read(p []byte) (int, error) {
	if w.no != nil {
		return 0, w.no
	}
	n, err := w.r.Read(p)
	if w.left -= int64(n); w.left < 0 {
		n, err = 0, errFileTooLarge
	}
	switch {
	case err == io.EOF && w.end != nil:
		w.no = w.end()
		if w.end = nil; w.no != nil {
			err = w.no
		}
	case err != nil && err != io.EOF:
		w.err = err
	}
	return n, err
}

// upload reads a multipart form and stores its file as it comes. The file's content ends when the rest of the form has been read and is good: of a file
// whose form is refused the store keeps nothing.
type upload struct {
	s       *Server
	form    *multipart.Reader
	parts   int
	purpose string
	name    string
	file    bool // has come
	blob    adapters.BlobInfo
	kept    func() // gives back the claim on room for it
}

func (s *Server) createFile(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return errDraining
	}
	if t := mediaType(r); t != "multipart/form-data" {
		return &apiError{Status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "unsupported_media_type",
			Message: fmt.Sprintf("the body must be multipart/form-data, not %s", t)}
	}
	room, err := s.mayKeep(r.Context(), "", 0) // before the file is sent; asked again when its size is known
	if err != nil {
		return err
	}
	room()
	body, done := limitBody(w, r, s.config.MaxTrainingBytes+formBytes)
	defer done()
	r.Body = io.NopCloser(body)
	form, err := r.MultipartReader()
	if err != nil {
		return unreadableForm(err)
	}
	u := upload{s: s, form: form, kept: func() {}}
	defer func() { u.kept() }()
	if err := u.read(r.Context()); err != nil {
		return err
	}
	id := make([]byte, 12)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("naming a file: %w", err)
	}
	f, err := s.d.Store.PutFile(r.Context(), tenant(r.Context()), adapters.File{ID: "file-" + hex.EncodeToString(id), Purpose: u.purpose, Name: u.name, SHA256: u.blob.SHA256, Bytes: u.blob.Bytes})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, shownFile(r.Context(), f))
	return nil
}

func unreadableForm(err error) error {
	var tooLarge *http.MaxBytesError
	var api *apiError
	if errors.As(err, &tooLarge) || errors.As(err, &api) && api.Code == bodyTimedOut {
		return err
	}
	return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "unreadable_body", Message: "the body is not a whole multipart form: " + err.Error()}
}

// read reads what is left of the form.
func (u *upload) read(ctx context.Context) error {
	for ; ; u.parts++ {
		part, err := u.form.NextPart()
		switch {
		case errors.Is(err, io.EOF) && u.purpose == "":
			return badField("purpose", "purpose: is missing; it must be %s", fineTune)
		case errors.Is(err, io.EOF) && !u.file:
			return badField("file", "file: is missing")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return unreadableForm(err)
		case u.parts == maxParts:
			return badField("", "the form has more than %d parts", maxParts)
		}
		switch name := part.FormName(); {
		case name == "purpose":
			b, err := io.ReadAll(io.LimitReader(part, 256))
			if err != nil {
				return unreadableForm(err)
			}
			if u.purpose = string(b); u.purpose != fineTune {
				return badField("purpose", "purpose: only %s is supported, not %q", fineTune, u.purpose)
			}
		case name == "file" && u.file:
			return badField("file", "file: there are two")
		case name == "file":
			u.file = true
			u.parts++
			return u.store(ctx, part)
		case strings.HasPrefix(name, "expires_after"):
			return badField("expires_after", "expires_after: not supported, files stay until they are deleted")
		}
	}
}

// store reads the file and then what is left of the form.
func (u *upload) store(ctx context.Context, part *multipart.Part) error {
	u.name = part.FileName()
	if len(u.name) > maxFileName || !utf8.ValidString(u.name) || strings.IndexFunc(u.name, unicode.IsControl) >= 0 {
		return badField("file", "file: its name must be at most %d bytes of printable UTF-8", maxFileName)
	}
	most := u.s.config.MaxTrainingBytes
	content := &watched{r: part, left: most}
	content.end = func() error {
		if content.left == most {
			return badField("file", "file: is empty")
		}
		if err := u.read(ctx); err != nil {
			return err
		}
		kept, err := u.s.mayKeep(ctx, "", most-content.left)
		if err == nil {
			u.kept = kept
		}
		return err
	}
	blob, err := u.s.d.Store.PutBlob(ctx, tenant(ctx), content)
	switch {
	case errors.Is(content.err, errFileTooLarge):
		return &http.MaxBytesError{Limit: most}
	case content.err != nil:
		return unreadableForm(content.err)
	case content.no != nil:
		return content.no
	}
	u.blob = blob
	return err
}

// pageLimit reads the query's limit.
func pageLimit(r *http.Request, preset, most int) (int, error) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return preset, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, badField("limit", "limit: must be a whole number in [1, %d], is %q", most, text)
	}
	return n, nil
}

// page is the part of a list that begins behind the item with the id after.
func page[T any](all []T, id func(T) string, after string, limit int) (part []T, more bool) {
	if after != "" {
		i := slices.IndexFunc(all, func(v T) bool { return id(v) == after })
		if i < 0 {
			return nil, false
		}
		all = all[i+1:]
	}
	if len(all) > limit {
		return all[:limit], true
	}
	return all, false
}

func (s *Server) listFiles(w http.ResponseWriter, r *http.Request) error {
	limit, err := pageLimit(r, 10000, 10000)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	all, err := s.d.Store.ListFiles(r.Context(), tenant(r.Context()))
	if err != nil {
		return err
	}
	if purpose := query.Get("purpose"); purpose != "" {
		all = slices.DeleteFunc(all, func(f adapters.File) bool { return f.Purpose != purpose })
	}
	switch order := query.Get("order"); order {
	case "", "desc":
		slices.Reverse(all)
	case "asc":
	default:
		return badField("order", "order: must be asc or desc, is %q", order)
	}
	part, more := page(all, func(f adapters.File) string { return f.ID }, bareID(query.Get("after")), limit)
	list := api.FileList{Object: "list", Data: []api.File{}, HasMore: more}
	for _, f := range part {
		list.Data = append(list.Data, shownFile(r.Context(), f))
	}
	if n := len(list.Data); n > 0 {
		list.FirstId, list.LastId = &list.Data[0].Id, &list.Data[n-1].Id
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) retrieveFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.file(r.Context(), "id", chi.URLParam(r, "file"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, shownFile(r.Context(), f))
	return nil
}

func (s *Server) fileContent(w http.ResponseWriter, r *http.Request) error {
	f, err := s.file(r.Context(), "id", chi.URLParam(r, "file"))
	if err != nil {
		return err
	}
	blob, err := s.d.Store.OpenBlob(r.Context(), tenant(r.Context()), f.SHA256)
	if err != nil {
		return err
	}
	defer blob.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(blob.Size(), 10))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	body := newDownload(w)
	defer body.close()
	if _, err := io.Copy(body, io.NewSectionReader(blob, 0, blob.Size())); err != nil && r.Context().Err() == nil {
		s.log.WarnContext(r.Context(), "a file was not sent whole", "request", requestID(r.Context()), "file", f.ID, "error", err)
	}
	return nil
}

// deleteFile removes a file; jobs that were made of it keep its content.
func (s *Server) deleteFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.file(r.Context(), "id", chi.URLParam(r, "file"))
	if err != nil {
		return err
	}
	if err := s.d.Store.DeleteFile(r.Context(), tenant(r.Context()), f.ID); errors.Is(err, adapters.ErrNotFound) {
		return fileNotFound("id", f.ID)
	} else if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.Deleted{Id: shownID(r.Context(), f.Tenant, f.ID), Object: "file", Deleted: true})
	return nil
}
