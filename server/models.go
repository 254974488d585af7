package server

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

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

// adapterModel is an adapter or a mix as a model: its parent the base, where it is one of it, its root what answers.
func (s *Server) adapterModel(asks, id string, t adapters.Target) api.Model {
	m := s.baseModel()
	root := refTo(asks, t)
	m.Id, m.Created, m.Root, m.Parent = id, int(t.Parts[0].Version.CreatedAt.Unix()), &root, s.baseOf(t.Parts[0].Version)
	return m
}

// baseOf is the base's name for its adapters, and nil for those that the registry holds of another.
func (s *Server) baseOf(v adapters.Version) *string {
	if v.BaseHash != s.d.Basis.BaseHash {
		return nil
	}
	return &s.d.Model.Name
}

// refTo is versions as a request of that tenant names them.
func refTo(asks string, t adapters.Target) string {
	var ref adapters.Ref
	for _, p := range t.Parts {
		part := adapters.RefPart{Name: p.Version.Name, Number: p.Version.Number, Weight: p.Weight}
		if p.Version.Tenant != asks {
			part.Tenant = p.Version.Tenant
		}
		ref.Parts = append(ref.Parts, part)
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
		v, err := s.d.Store.Get(r.Context(), a.Tenant, a.Name, a.Live)
		if errors.Is(err, adapters.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if s.baseOf(v) == nil {
			continue // nobody can ask for it here
		}
		list.Data = append(list.Data, s.adapterModel(callerOf(r.Context()).home, shownID(r.Context(), a.Tenant, a.Name), adapters.Target{Parts: []adapters.TargetPart{{Version: v, Weight: 1}}}))
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
		writeJSON(w, http.StatusOK, s.adapterModel(tenant(r.Context()), id, target))
	}
	return nil
}

// deleteModel is deleteAdapter and deleteVersion for OpenAI's clients.
func (s *Server) deleteModel(w http.ResponseWriter, r *http.Request) error {
	id, err := url.PathUnescape(chi.URLParam(r, "model"))
	if err != nil {
		return badField("model", "model: %s", err)
	}
	target, err := s.resolve(r.Context(), id)
	if err != nil {
		return err
	}
	if target.Base() || len(target.Parts) > 1 || target.Parts[0].Weight != 1 {
		return badField("model", "model: only an adapter or a version of one can be deleted, not %q", id)
	}
	v := target.Parts[0].Version
	if strings.Contains(id, "@") {
		err = s.d.Registry.Delete(r.Context(), v.Tenant, v.Name, v.Number)
	} else {
		err = s.remove(r.Context(), v.Tenant, v.Name)
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.Deleted{Id: id, Object: "model", Deleted: true})
	return nil
}
