package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"bhive/adapters"
	"bhive/server/api"
)

// maxDirectory is how many files of an uploaded directory are looked at.
const maxDirectory = 1000

// exportAdapter streams a version as a tar of PEFT's two files.
func (s *Server) exportAdapter(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	number := 0
	if q := r.URL.Query().Get("version"); q != "" {
		if number, err = strconv.Atoi(q); err != nil || number < 1 {
			return badField("version", "version: must be a whole number from 1, is %q", q)
		}
	}
	ctx := r.Context()
	v, err := s.d.Store.Get(ctx, tenant(ctx), name, number)
	if err != nil {
		if number > 0 {
			name = fmt.Sprintf("%s@%d", name, number)
		}
		return versionError(err, name)
	}
	leave, err := s.enterExport(ctx)
	if err != nil {
		return err
	}
	defer leave()
	weights, err := s.load(ctx, v)
	if err != nil {
		return err
	}
	x, err := s.d.Basis.Export(weights, s.d.Model.Name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s-%d.tar"`, v.Name, v.Number))
	body := newDownload(w)
	defer body.close()
	if err := x.WriteTar(body, v.CreatedAt); err != nil { // the client went away, and must not take what it has for the whole
		s.log.WarnContext(ctx, "an export was cut off", "request", requestID(ctx), "adapter", v.Name, "version", v.Number, "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// enterExport waits for a turn among those that one tenant's clients have: an export holds a whole adapter in memory for as long as it is read.
func (s *Server) enterExport(ctx context.Context) (leave func(), err error) {
	turns, _ := s.exports.LoadOrStore(callerOf(ctx).home, make(chan struct{}, maxExports))
	return takeTurn(ctx, turns.(chan struct{}))
}

// load reads a version's B, which must be of the basis in use.
func (s *Server) load(ctx context.Context, v adapters.Version) (*adapters.Weights, error) {
	if err := adapters.CheckVersion(s.d.Basis)(v); err != nil {
		return nil, err
	}
	weights, _, err := s.d.Registry.Load(ctx, v, s.d.Basis.Geometry)
	return weights, err
}

// newName is the path's name for an adapter that may be made under it.
func (s *Server) newName(name, param string) (string, error) {
	if err := adapters.CheckName(name); err != nil {
		return "", badField(param, "%s: %s", param, err)
	}
	if name == s.d.Model.Name {
		return "", &apiError{Status: http.StatusConflict, Type: "conflict_error", Param: param, Code: "already_exists", Message: fmt.Sprintf("%s: %q is the base model", param, name)}
	}
	return name, nil
}

// importAdapter reads an uploaded PEFT adapter and publishes it as the next version of the name.
func (s *Server) importAdapter(w http.ResponseWriter, r *http.Request) error {
	name, err := s.newName(pathName(r), "name")
	if err != nil {
		return err
	}
	form := false
	switch t := mediaType(r); t {
	case "application/x-tar", "application/tar", "application/octet-stream":
	case "multipart/form-data":
		form = true
	default:
		return &apiError{Status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "unsupported_media_type",
			Message: fmt.Sprintf("the body must be application/x-tar or multipart/form-data, not %s", t)}
	}
	if r.Header.Get("Content-Encoding") != "" {
		return &apiError{Status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "unsupported_media_type", Message: "the body must be plain, without Content-Encoding"}
	}
	rank, dry := 0, false
	if q := r.URL.Query().Get("rank"); q != "" {
		if rank, err = strconv.Atoi(q); err != nil || rank < 1 || rank > s.d.Basis.R {
			return badField("rank", "rank: must be in 1 … %d, is %q", s.d.Basis.R, q)
		}
	}
	if q := r.URL.Query().Get("dry_run"); q != "" {
		if dry, err = strconv.ParseBool(q); err != nil {
			return badField("dry_run", "dry_run: must be true or false, is %q", q)
		}
	}
	if s.draining.Load() {
		return errDraining
	}
	if !dry {
		kept, err := s.mayKeep(r.Context(), name, 0)
		if err != nil {
			return err
		}
		defer kept()
	}
	body, done := limitBody(w, r, s.config.MaxAdapterBytes+(1<<20))
	defer done()
	var upload *adapters.PEFTUpload
	if form {
		upload, err = s.spoolForm(r, body)
	} else {
		upload, err = adapters.SpoolPEFTTar(body, s.config.MaxAdapterBytes)
	}
	if err != nil {
		return importError(err)
	}
	defer upload.Close()
	done() // the upload has ended in time; its turn may come later
	leave, err := s.enterImport(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	p, err := upload.Read(s.d.Basis.Geometry)
	if err != nil {
		return importError(err)
	}
	out, err := s.adopt(r.Context(), name, p, rank, dry, adapters.PublishOptions{}, "")
	if err != nil {
		return err
	}
	if dry {
		writeJSON(w, http.StatusOK, out)
		return nil
	}
	w.Header().Set("Location", "/adapters/"+url.PathEscape(out.Name))
	writeJSON(w, http.StatusCreated, out)
	return nil
}

// spoolForm spools the files of an adapter's directory that a form uploads.
func (s *Server) spoolForm(r *http.Request, body io.Reader) (*adapters.PEFTUpload, error) {
	r.Body = io.NopCloser(body)
	form, err := r.MultipartReader()
	if err != nil {
		return nil, unreadableForm(err)
	}
	files := 0
	return adapters.SpoolPEFTFiles(func() (string, io.Reader, error) {
		for {
			part, err := form.NextPart()
			switch {
			case errors.Is(err, io.EOF): // also where a header is cut: what came before is whole, or SpoolPEFTFiles misses it
				return "", nil, err
			case err != nil:
				return "", nil, unreadableForm(err)
			case files == maxDirectory:
				return "", nil, badField("", "the form has more than %d parts", maxDirectory)
			}
			files++
			if name := part.FileName(); name != "" {
				return name, formPart{part}, nil
			}
		}
	}, s.config.MaxAdapterBytes)
}

// formPart makes a part that breaks off the client's error.
type formPart struct{ r io.Reader }

func (p formPart) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if err != nil && err != io.EOF {
		err = unreadableForm(err)
	}
	return n, err
}

// enterImport waits for its turn: imports hold whole adapters in memory.
func (s *Server) enterImport(ctx context.Context) (leave func(), err error) {
	return takeTurn(ctx, s.imports)
}

// takeTurn waits for a place among those at work.
func takeTurn(ctx context.Context, turns chan struct{}) (leave func(), err error) {
	select {
	case turns <- struct{}{}:
		return func() { <-turns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// adopt fits an adapter to the basis and, unless dry, publishes it. rank 0: what fits best. from is the path that a client named.
func (s *Server) adopt(ctx context.Context, name string, p *adapters.PEFT, rank int, dry bool, o adapters.PublishOptions, from string) (api.AdapterImport, error) {
	out := api.AdapterImport{Name: shownID(ctx, tenant(ctx), name), Object: api.AdapterImportObjectAdapterImport, SourceRank: p.Rank, SourceBytes: int(p.Bytes)}
	fit := s.d.Basis.Adopt
	if rank > 0 {
		fit = func(p *adapters.PEFT) (*adapters.Weights, adapters.Projection, error) {
			return s.d.Basis.Project(p, rank)
		}
	}
	weights, report, err := fit(p)
	if err != nil {
		return out, importError(err)
	}
	out.Exact, out.Kept = report.Exact, report.Kept
	for _, m := range report.Modules {
		out.Modules = append(out.Modules, api.KeptModule{Layer: m.Layer, Module: api.KeptModuleModule(m.Proj.String()), Kept: m.Kept, Norm: m.Norm})
	}
	if text := lossWarning(report, weights.Rank); text != "" {
		out.Warning = &text
	}
	if dry {
		return out, nil
	}
	type source struct {
		Kept  float64 `json:"kept"`
		Exact bool    `json:"exact"`
		Rank  int     `json:"rank"`
		Path  string  `json:"path,omitempty"`
	}
	training := mustJSON(map[string]source{"imported": {report.Kept, report.Exact, p.Rank, from}})
	v, err := s.publish(ctx, name, weights, training, o)
	if err != nil {
		return out, err
	}
	shown := shownVersion(v, v.Number)
	out.Version = &shown
	return out, nil
}

// publish saves weights over the basis in use as the next version of a name.
func (s *Server) publish(ctx context.Context, name string, w *adapters.Weights, training []byte, o adapters.PublishOptions) (adapters.Version, error) {
	return s.d.Registry.Save(ctx, tenant(ctx), adapters.Version{Name: name, BasisDigest: s.d.Basis.RowsDigest(w.Rank), BaseHash: s.d.Basis.BaseHash, Training: training}, w, o)
}

// lossWarning says what a projection lost; "" where that is nothing.
func lossWarning(p adapters.Projection, rank int) string {
	const negligible = 5e-5 // what two decimals of a percentage show as nothing; bfloat16's rounding loses about 1e-5
	if p.Exact || 1-p.Kept < negligible {
		return ""
	}
	least := p.Modules[0]
	for _, m := range p.Modules {
		if m.Kept < least.Kept {
			least = m
		}
	}
	return fmt.Sprintf("%.2f %% of the adapter's change of the weights is lost (%.2f %% kept, by squared norm): its lora_A's are not rows of this server's basis, and what lies outside "+
		"the %d rows used cannot be held; least is kept of layers.%d.%v, %.2f %%", 100*(1-p.Kept), 100*p.Kept, rank, least.Layer, least.Proj, 100*least.Kept)
}

// importError makes damage in what a client sent the client's error, not the server's.
func importError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return err
	case errors.Is(err, adapters.ErrTooLarge):
		return &apiError{Status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Code: "too_large", Message: err.Error()}
	case errors.Is(err, adapters.ErrCorrupt):
		return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "invalid_adapter", Message: err.Error()}
	}
	return err
}
