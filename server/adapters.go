package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sort"
	"strconv"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/server/api"

	"github.com/go-chi/chi/v5"
)

// adapterName is the path's name, checked.
func adapterName(r *http.Request) (string, error) {
	name := chi.URLParam(r, "name")
	if err := adapters.CheckName(name); err != nil {
		return "", notFound(name)
	}
	return name, nil
}

func notFound(name string) *apiError {
	return &apiError{Status: http.StatusNotFound, Type: "not_found_error", Param: "name", Code: "adapter_not_found", Message: fmt.Sprintf("there is no adapter %q", name)}
}

// adapter is what a name stands for. A name without a version, and with no job that may bring one, is a 404: what failed or was cancelled
// before its first version left a job, which can be looked at, and no adapter.
func (s *Server) adapter(ctx context.Context, name string) (api.Adapter, error) {
	a, err := s.known(ctx, name)
	return onlyAdapter(a, err)
}

func onlyAdapter(a api.Adapter, err error) (api.Adapter, error) {
	if err == nil && a.Version == nil && finetune.State(a.Job.State).Final() {
		gone := notFound(a.Name)
		gone.Message += fmt.Sprintf(": its training, job %s, has %s; see /adapters/%s/jobs", a.Job.Id, ended[finetune.State(a.Job.State)], a.Name)
		return a, gone
	}
	return a, err
}

// known gathers what is known of a name: its live version and its latest job. A name with neither is a 404.
func (s *Server) known(ctx context.Context, name string) (api.Adapter, error) {
	// The job before the version: what a job that has succeeded published is there then.
	jobs, _, err := s.d.Jobs.List(ctx, tenant(ctx), finetune.ListOptions{Adapter: name, Limit: 1})
	if err != nil {
		return api.Adapter{}, err
	}
	if len(jobs) == 0 {
		return s.knownWith(ctx, name, nil)
	}
	return s.knownWith(ctx, name, &jobs[0])
}

// knownWith is known of a name whose latest job is at hand.
func (s *Server) knownWith(ctx context.Context, name string, latest *finetune.Job) (api.Adapter, error) {
	a := api.Adapter{Name: shownID(ctx, tenant(ctx), name), Object: api.AdapterObjectAdapter, Base: &s.d.Model.Name}
	v, err := s.d.Store.Get(ctx, tenant(ctx), name, 0)
	switch {
	case err == nil:
		shown := shownVersion(v, v.Number)
		a.LiveVersion, a.Version, a.Created, a.Base = &v.Number, &shown, int(v.CreatedAt.Unix()), s.baseOf(v)
	case !errors.Is(err, adapters.ErrNotFound):
		return a, err
	}
	if latest != nil {
		job := shownJob(ctx, *latest)
		a.Job = &job
		if a.Version == nil {
			a.Created = job.Created
		}
	}
	if a.Version == nil && (a.Job == nil || latest.State == finetune.Succeeded) { // what it published was deleted
		return a, notFound(a.Name)
	}
	return a, nil
}

var ended = map[finetune.State]string{finetune.Failed: "failed", finetune.Cancelled: "been cancelled"}

func shownVersion(v adapters.Version, live int) api.Version {
	out := api.Version{Version: v.Number, Live: v.Number == live, Created: int(v.CreatedAt.Unix()), Rank: v.Rank, Alpha: float32(v.Alpha),
		Sha256: v.SHA256, Bytes: int(v.Bytes), Basis: &v.BasisDigest}
	if v.Parent > 0 {
		out.Parent = &v.Parent
	}
	var training map[string]any
	if json.Unmarshal(v.Training, &training) == nil && training != nil {
		out.Training = &training
	}
	return out
}

// named is the name of a tenant's adapter.
type named struct{ tenant, name string }

func (s *Server) listAdapters(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	// The jobs before the adapters: what a job that has succeeded published is there then.
	jobs, _, err := s.d.Jobs.List(ctx, tenant(ctx), finetune.ListOptions{Limit: math.MaxInt})
	if err != nil {
		return err
	}
	all, err := s.d.Store.List(ctx, tenant(ctx))
	if err != nil {
		return err
	}
	latest := map[named]*finetune.Job{} // nil: there is none
	for _, a := range all {
		latest[named{a.Tenant, a.Name}] = nil
	}
	for i, j := range slices.Backward(jobs) { // the newest last
		n := named{j.Tenant, j.Spec.Name}
		if _, is := latest[n]; is || !j.State.Final() {
			latest[n] = &jobs[i]
		}
	}
	list := api.AdapterList{Object: api.AdapterListObjectList, Data: []api.Adapter{}}
	for n, job := range latest {
		a, err := onlyAdapter(s.knownWith(actFor(ctx, n.tenant), n.name, job))
		var gone *apiError
		if errors.As(err, &gone) && gone.Status == http.StatusNotFound {
			continue
		}
		if err != nil {
			return err
		}
		list.Data = append(list.Data, a)
	}
	sort.Slice(list.Data, func(i, j int) bool { return list.Data[i].Name < list.Data[j].Name })
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) getAdapter(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	a, err := s.adapter(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, a)
	return nil
}

// deleteAdapter cancels what trains it and deletes all its versions. Requests that run keep the version they hold.
func (s *Server) deleteAdapter(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	if err := s.remove(r.Context(), tenant(r.Context()), name); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.Deleted{Id: shownID(r.Context(), tenant(r.Context()), name), Object: "adapter", Deleted: true})
	return nil
}

// remove ends an adapter and its jobs.
func (s *Server) remove(ctx context.Context, owner, name string) error {
	jobs, err := s.d.Store.ListJobs(ctx, owner, unfinished...)
	if err != nil {
		return err
	}
	cancelled := false
	for _, record := range jobs {
		j, err := s.d.Jobs.Get(ctx, owner, record.ID)
		if errors.Is(err, finetune.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if j.Spec.Name != name || j.State.Final() {
			continue
		}
		if _, err := s.d.Jobs.Cancel(ctx, owner, j.ID); err != nil {
			if j, gone := s.d.Jobs.Get(ctx, owner, j.ID); gone != nil || !j.State.Final() { // it would publish the adapter again
				return err
			}
		}
		cancelled = true
	}
	err = s.d.Registry.Delete(ctx, owner, name, 0)
	if errors.Is(err, adapters.ErrNotFound) {
		if !cancelled {
			return notFound(name)
		}
		err = nil
	}
	return err
}

func (s *Server) listVersions(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	live, err := s.d.Store.Get(r.Context(), tenant(r.Context()), name, 0)
	if err != nil {
		return versionError(err, name)
	}
	all, err := s.d.Store.Versions(r.Context(), tenant(r.Context()), name)
	if err != nil {
		return versionError(err, name)
	}
	list := api.VersionList{Object: api.VersionListObjectList, Data: []api.Version{}}
	for i := len(all) - 1; i >= 0; i-- {
		list.Data = append(list.Data, shownVersion(all[i], live.Number))
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func versionError(err error, name string) error {
	if errors.Is(err, adapters.ErrNotFound) {
		return notFound(name)
	}
	return err
}

// versionNumber is the path's version.
func versionNumber(r *http.Request) (int, error) {
	n, err := strconv.Atoi(chi.URLParam(r, "version"))
	if err != nil || n < 1 {
		return 0, badField("version", "version: must be a whole number from 1, is %q", chi.URLParam(r, "version"))
	}
	return n, nil
}

func (s *Server) getVersion(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	n, err := versionNumber(r)
	if err != nil {
		return err
	}
	live, err := s.d.Store.Get(r.Context(), tenant(r.Context()), name, 0)
	if err != nil {
		return versionError(err, name)
	}
	v, err := s.d.Store.Get(r.Context(), tenant(r.Context()), name, n)
	if err != nil {
		return versionError(err, fmt.Sprintf("%s@%d", name, n))
	}
	writeJSON(w, http.StatusOK, shownVersion(v, live.Number))
	return nil
}

func (s *Server) deleteVersion(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	n, err := versionNumber(r)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s@%d", name, n)
	if err := s.d.Registry.Delete(r.Context(), tenant(r.Context()), name, n); err != nil {
		return versionError(err, id)
	}
	writeJSON(w, http.StatusOK, api.Deleted{Id: shownID(r.Context(), tenant(r.Context()), id), Object: "adapter.version", Deleted: true})
	return nil
}

// rollback moves the live pointer; requests that run keep the version they hold.
func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	name, err := adapterName(r)
	if err != nil {
		return err
	}
	var q struct {
		Version *int `json:"version"`
	}
	b, err := readBody(w, r, s.config.MaxBodyBytes)
	if err != nil {
		return err
	}
	if len(b) > 0 {
		if err := unmarshal(b, &q); err != nil {
			return err
		}
	}
	ctx := r.Context()
	all, err := s.d.Store.Versions(ctx, tenant(ctx), name)
	if err != nil {
		return versionError(err, name)
	}
	live, err := s.d.Store.Get(ctx, tenant(ctx), name, 0)
	if err != nil {
		return versionError(err, name)
	}
	var to *adapters.Version
	for i := range all {
		if q.Version == nil && all[i].Number < live.Number || q.Version != nil && all[i].Number == *q.Version {
			to = &all[i] // the last one that fits: versions are oldest first
		}
	}
	switch {
	case to == nil && q.Version == nil:
		return &apiError{Status: http.StatusConflict, Type: "conflict_error", Param: "version", Code: "no_earlier_version", Message: fmt.Sprintf("version: %s@%d has no version before it", name, live.Number)}
	case to == nil:
		return notFound(fmt.Sprintf("%s@%d", name, *q.Version))
	}
	if err := adapters.CheckVersion(s.d.Basis)(*to); err != nil {
		return err
	}
	if _, err := s.d.Registry.SetLive(ctx, tenant(ctx), name, to.Number); err != nil {
		return versionError(err, name)
	}
	a, err := s.adapter(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, a)
	return nil
}
