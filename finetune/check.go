package finetune

import (
	"context"
	"errors"
	"fmt"

	"bhive/adapters"
)

// check validates a spec against the model, the store and the parent, and fills in what they decide.
func (m *Manager) check(ctx context.Context, spec *JobSpec) error {
	if m.noTraining != nil {
		return m.noTraining
	}
	if err := spec.Validate(); err != nil {
		return err
	}
	if err := adapters.CheckName(spec.Name); err != nil {
		return fieldErrorf("name", "%v", err)
	}
	basis := m.d.Model.Basis
	if basis == nil {
		return fieldErrorf("name", "the model was loaded without a basis, so it has no adapters")
	}
	if len(spec.Examples) == 0 && spec.Training == nil {
		return fieldErrorf("examples", "are missing")
	}
	next := false // the next version of an adapter that exists
	if spec.Parent != "" {
		v, err := m.parent(ctx, spec.Tenant, spec.Parent)
		if err != nil {
			return err
		}
		next = v.Name == spec.Name
		if spec.Rank != 0 && spec.Rank != v.Rank {
			return fieldErrorf("rank", "must be that of the parent, %d, is %d", v.Rank, spec.Rank)
		}
		if spec.Alpha != 0 && spec.Alpha != v.Alpha {
			return fieldErrorf("alpha", "must be that of the parent, %g, is %g", v.Alpha, spec.Alpha)
		}
		spec.Rank, spec.Alpha = v.Rank, v.Alpha
	}
	setDefault(&spec.Rank, min(16, basis.R))
	setDefault(&spec.Alpha, 2*float64(spec.Rank))
	if spec.Rank > basis.R {
		return fmt.Errorf("%w: %w", fieldErrorf("rank", "must be at most %d, the rows of the basis, is %d", basis.R, spec.Rank), adapters.ErrRank)
	}
	if spec.MaxLength > m.longest() {
		return fieldErrorf("max_length", "must be at most %d, is %d", m.longest(), spec.MaxLength)
	}
	if !next {
		return m.free(ctx, spec.Tenant, spec.Name)
	}
	return nil
}

// longest is the most tokens that an example can have here.
func (m *Manager) longest() int { return min(m.c.Trainer.BatchTokens, m.d.Model.Positions) }

// free returns adapters.ErrExists where a name is taken.
func (m *Manager) free(ctx context.Context, tenant, name string) error {
	_, err := m.st.Get(ctx, tenant, name, 0)
	switch {
	case err == nil:
		return fmt.Errorf("%w: %w", fieldErrorf("name", "there is an adapter %q already", name), adapters.ErrExists)
	case !errors.Is(err, adapters.ErrNotFound):
		return fmt.Errorf("looking for adapter %q: %w", name, err)
	}
	return nil
}

// parent finds the version that a reference names, and checks that training can go on from it.
func (m *Manager) parent(ctx context.Context, tenant, ref string) (adapters.Version, error) {
	r, err := adapters.ParseRef(ref)
	if err != nil {
		return adapters.Version{}, fieldErrorf("parent", "%v", err)
	}
	if len(r.Parts) != 1 || r.Parts[0].Weight != 1 || r.Parts[0].Tenant != "" {
		return adapters.Version{}, fieldErrorf("parent", "must name one adapter of your own, as name or name@version")
	}
	v, err := m.st.Get(ctx, tenant, r.Parts[0].Name, r.Parts[0].Number)
	if errors.Is(err, adapters.ErrNotFound) {
		return v, fmt.Errorf("%w: %w", fieldErrorf("parent", "there is no adapter %q", ref), adapters.ErrNotFound)
	}
	if err != nil {
		return v, fmt.Errorf("looking for parent %q: %w", ref, err)
	}
	if err := adapters.CheckVersion(m.d.Model.Basis)(v); err != nil {
		return v, fmt.Errorf("%w: %w", fieldErrorf("parent", "cannot be trained here: %v", err), err)
	}
	return v, nil
}
