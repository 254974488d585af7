package server

import (
	"errors"
	"net/http"

	"bhive/server/api"
	"bhive/server/keys"

	"github.com/go-chi/chi/v5"
)

func shownKey(k keys.Key) api.APIKey {
	out := api.APIKey{Id: k.ID, Object: "api_key", Tenant: k.Tenant, Role: api.APIKeyRole(k.Role), Created: int(k.Created.Unix())}
	if k.Name != "" {
		out.Name = &k.Name
	}
	return out
}

// keyError is what a client is told of a refused change.
func keyError(err error) error {
	var field *keys.FieldError
	switch {
	case errors.As(err, &field):
		return badField(field.Field, "%s", field)
	case errors.Is(err, keys.ErrUnknown):
		return &apiError{Status: http.StatusNotFound, Type: "not_found_error", Param: "id", Code: "key_not_found", Message: err.Error()}
	case errors.Is(err, keys.ErrLastAdmin):
		return &apiError{Status: http.StatusConflict, Type: "conflict_error", Param: "role", Code: "last_admin", Message: err.Error()}
	case errors.Is(err, keys.ErrFull):
		return &apiError{Status: http.StatusConflict, Type: "conflict_error", Code: "too_many_keys", Message: err.Error()}
	}
	return err
}

func (s *Server) createKey(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Tenant string    `json:"tenant"`
		Role   keys.Role `json:"role"`
		Name   string    `json:"name"`
	}
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	if q.Role == "" {
		q.Role = keys.Tenant
	}
	k, secret, err := s.keys.Create(r.Context(), q.Tenant, q.Role, q.Name)
	if err != nil {
		return keyError(err)
	}
	s.log.InfoContext(r.Context(), "API key created", "key", k.ID, "tenant", k.Tenant, "role", string(k.Role))
	out := shownKey(k)
	out.Key = &secret
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusCreated, out)
	return nil
}

func (s *Server) listKeys(w http.ResponseWriter, r *http.Request) error {
	all, err := s.keys.List(r.Context())
	if err != nil {
		return err
	}
	list := api.APIKeyList{Object: api.APIKeyListObjectList, Data: []api.APIKey{}}
	for _, k := range all {
		list.Data = append(list.Data, shownKey(k))
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) deleteKey(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "id")
	if err := s.keys.Revoke(r.Context(), id, !s.config.loopback()); err != nil {
		return keyError(err)
	}
	s.log.InfoContext(r.Context(), "API key revoked", "key", id)
	writeJSON(w, http.StatusOK, api.Deleted{Id: id, Object: "api_key", Deleted: true})
	return nil
}
