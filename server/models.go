package server

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"bhive/adapters"
	"bhive/server/api"

	"github.com/go-chi/chi/v5"
)

// ownedBy is the owner of every model here.
const ownedBy = "bhive"

func (s *Server) baseModel() api.Model {
	length := s.d.Engine.Config().MaxContext
	return api.Model{Id: s.d.Model.Name, Object: api.ModelObjectModel, Created: int(s.d.Model.Created.Unix()), OwnedBy: ownedBy, Root: &s.d.Model.Name, MaxModelLen: &length}
}

// adapterModel is an adapter as a model: its parent the base, its root the version that answers.
func (s *Server) adapterModel(id string, v adapters.Version) api.Model {
	m := s.baseModel()
	root := versionName(v)
	m.Id, m.Created, m.Root, m.Parent = id, int(v.CreatedAt.Unix()), &root, &s.d.Model.Name
	return m
}

// versionName is a version as a request of its tenant names it.
func versionName(v adapters.Version) string { return v.Name + "@" + strconv.Itoa(v.Number) }

// mixName is a mix of versions as a request of its tenant names it.
func mixName(t adapters.Target) string {
	var ref adapters.Ref
	for _, p := range t.Parts {
		ref.Parts = append(ref.Parts, adapters.RefPart{Name: p.Version.Name, Number: p.Version.Number, Weight: p.Weight})
	}
	return ref.String()
}

func (s *Server) listModels(w http.ResponseWriter, r *http.Request) error {
	list := api.ModelList{Object: api.ModelListObjectList, Data: []api.Model{s.baseModel()}}
	all, err := s.d.Store.List(r.Context(), tenant(r.Context()))
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.Live == 0 {
			continue
		}
		v, err := s.d.Store.Get(r.Context(), tenant(r.Context()), a.Name, a.Live)
		if errors.Is(err, adapters.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		list.Data = append(list.Data, s.adapterModel(a.Name, v))
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) retrieveModel(w http.ResponseWriter, r *http.Request) error {
	id, err := url.PathUnescape(chi.URLParam(r, "model"))
	if err != nil {
		return badField("model", "model: %s", err)
	}
	target, err := s.resolve(r.Context(), id)
	switch {
	case err != nil:
		return err
	case target.Base():
		writeJSON(w, http.StatusOK, s.baseModel())
	default:
		m := s.adapterModel(id, target.Parts[0].Version)
		if len(target.Parts) > 1 {
			root := mixName(target)
			m.Root = &root
		}
		writeJSON(w, http.StatusOK, m)
	}
	return nil
}
