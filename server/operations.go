package server

import (
	"net/http"

	"bhive/server/api"
)

func (s *Server) health(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return errDraining
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	return nil
}

func (s *Server) version(w http.ResponseWriter, r *http.Request) error {
	m := s.d.Model
	writeJSON(w, http.StatusOK, api.VersionInfo{Version: m.Version, Model: &m.Name, Backend: &m.Backend, Device: &m.Device, Weights: &m.Weights})
	return nil
}

func (s *Server) openAPI(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(s.d.OpenAPI)
	return nil
}

func (s *Server) getBasis(w http.ResponseWriter, r *http.Request) error {
	b, g := s.d.Basis, s.d.Basis.Geometry
	seed := int(b.Seed)
	writeJSON(w, http.StatusOK, api.Basis{Method: api.BasisMethod(b.Method), Seed: &seed, Rows: b.R, Fingerprint: b.Fingerprint(), BaseSha256: b.BaseHash,
		Geometry: &api.Geometry{Layers: g.Layers, Hidden: g.Hidden, QDim: g.QDim, KvDim: g.KVDim, FeedForward: g.FeedForward}})
	return nil
}

// basisFile is the A's themselves, which every exported adapter holds too.
func (s *Server) basisFile(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	body := newDownload(w)
	defer body.close()
	if err := s.d.Basis.Save(body); err != nil { // the client went away, and must not take what it has for the whole
		s.log.WarnContext(r.Context(), "a basis was cut off", "request", requestID(r.Context()), "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}
