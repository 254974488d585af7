package server

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"

	"bhive/adapters"
	"bhive/server/api"

	"github.com/go-chi/chi/v5"
)

// pathName is the path's name, unchecked.
func pathName(r *http.Request) string { return chi.URLParam(r, "name") }

// maxWeight bounds a part's weight in a sum, as in a mix.
const maxWeight = 1e6

// composeAdapter makes a new adapter of the weighted sum of versions: what the mix of them computes, at the largest of their ranks.
func (s *Server) composeAdapter(w http.ResponseWriter, r *http.Request) error {
	name, err := s.newName(pathName(r), "name")
	if err != nil {
		return err
	}
	var q struct {
		Parts []struct {
			Model  *string  `json:"model"`
			Weight *float64 `json:"weight"`
		} `json:"parts"`
	}
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	if n := len(q.Parts); n < 1 || n > adapters.MaxMix {
		return badField("parts", "parts: must be 1 … %d, are %d", adapters.MaxMix, n)
	}
	if s.draining.Load() {
		return errDraining
	}
	ctx := r.Context()
	kept, err := s.mayKeep(ctx, name, 0)
	if err != nil {
		return err
	}
	defer kept()
	if _, err := s.d.Store.Get(ctx, tenant(ctx), name, 0); err == nil { // before anything is summed and stored
		return fmt.Errorf("%w: %q", adapters.ErrExists, name)
	} else if !errors.Is(err, adapters.ErrNotFound) {
		return err
	}
	var ref adapters.Ref
	for i, p := range q.Parts {
		field := fmt.Sprintf("parts[%d]", i)
		if p.Model == nil {
			return badField(field+".model", "%s.model: is missing", field)
		}
		one, err := adapters.ParseRef(*p.Model)
		if err != nil {
			return badField(field+".model", "%s.model: %s", field, err)
		}
		if len(one.Parts) != 1 || one.Parts[0].Weight != 1 {
			return badField(field+".model", "%s.model: must be one adapter without a weight, is %q", field, *p.Model)
		}
		if p.Weight != nil {
			one.Parts[0].Weight = *p.Weight
		}
		if weight := one.Parts[0].Weight; math.Abs(weight) > maxWeight {
			return badField(field+".weight", "%s.weight: must be in −%g … %g, is %g", field, maxWeight, maxWeight, weight)
		}
		if _, err := s.d.Registry.Resolve(ctx, tenant(ctx), one, callerOf(ctx).admin); errors.Is(err, adapters.ErrNotFound) {
			e := modelNotFound(*p.Model)
			e.Param = field + ".model"
			return e
		} else if err != nil {
			return err
		}
		ref.Parts = append(ref.Parts, one.Parts[0])
	}
	leave, err := s.enterImport(ctx)
	if err != nil {
		return err
	}
	defer leave()
	target, err := s.d.Registry.Resolve(ctx, tenant(ctx), ref, callerOf(ctx).admin)
	if err != nil {
		return err
	}
	parts, weights := make([]*adapters.Weights, len(target.Parts)), make([]float64, len(target.Parts))
	for i, p := range target.Parts {
		if parts[i], err = s.load(ctx, p.Version); err != nil {
			return err
		}
		weights[i] = p.Weight
	}
	training := mustJSON(map[string]string{"composed": refTo(tenant(ctx), target)})
	sum := adapters.Mix(parts, weights)
	if err := sum.Storable(); err != nil {
		return badField("parts", "parts: the sum has numbers that are not finite: %s", err)
	}
	v, err := s.publish(ctx, name, sum, training, adapters.PublishOptions{CheckLive: true})
	if err != nil {
		return err
	}
	shown := shownVersion(v, v.Number)
	w.Header().Set("Location", "/adapters/"+url.PathEscape(shownID(ctx, tenant(ctx), name)))
	writeJSON(w, http.StatusCreated, api.Adapter{Name: shownID(ctx, tenant(ctx), name), Object: api.AdapterObjectAdapter, Base: &s.d.Model.Name, Created: int(v.CreatedAt.Unix()), LiveVersion: &v.Number, Version: &shown})
	return nil
}
