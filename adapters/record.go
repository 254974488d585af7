package adapters

import (
	"encoding/json"
	"fmt"
	"time"
)

// Record is one record of a store on its way to another. Exactly one field is set.
type Record struct {
	Basis   *BasisRecord
	File    *File
	Value   *ValueRecord
	Adapter *AdapterRecord
	Job     *JobRecord
}

// ValueRecord is a value with its name.
type ValueRecord struct {
	Tenant string
	Key    string
	Value  []byte
}

// AdapterRecord is an adapter with all its versions, or what is left of a deleted one: its name and the last number.
type AdapterRecord struct {
	Tenant    string
	Name      string
	Live      int // 0: deleted
	Last      int // the largest number ever given
	CreatedAt time.Time
	UpdatedAt time.Time
	Versions  []Version // ascending; none where deleted
}

// JobRecord is a job with its log.
type JobRecord struct {
	Job    Job
	Events []Event // from 1 on, without gaps
}

// Blobs returns the SHA-256s of the blobs that the record refers to, and the tenant whose they are.
func (r Record) Blobs() (tenant string, shas []string) {
	switch {
	case r.Basis != nil:
		return DefaultTenant, []string{r.Basis.SHA256}
	case r.File != nil:
		return r.File.Tenant, []string{r.File.SHA256}
	case r.Value != nil:
		return r.Value.Tenant, nil
	case r.Adapter != nil:
		for _, v := range r.Adapter.Versions {
			shas = append(shas, v.SHA256)
		}
		return r.Adapter.Tenant, shas
	case r.Job != nil:
		return r.Job.Job.Tenant, r.Job.Job.Blobs
	}
	return "", nil
}

// String names the record.
func (r Record) String() string {
	switch {
	case r.Basis != nil:
		return "the basis of " + r.Basis.BaseHash
	case r.File != nil:
		return fmt.Sprintf("file %s/%s", r.File.Tenant, r.File.ID)
	case r.Value != nil:
		return fmt.Sprintf("value %s/%s", r.Value.Tenant, r.Value.Key)
	case r.Adapter != nil:
		return fmt.Sprintf("adapter %s/%s", r.Adapter.Tenant, r.Adapter.Name)
	case r.Job != nil:
		return fmt.Sprintf("job %s/%s", r.Job.Job.Tenant, r.Job.Job.ID)
	}
	return "an empty record"
}

// Check says why a store cannot take the record (ErrInvalidName, ErrCorrupt).
func (r Record) Check() error {
	set := 0
	for _, is := range []bool{r.Basis != nil, r.File != nil, r.Value != nil, r.Adapter != nil, r.Job != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("%w: %d fields of the record are set, not one", ErrCorrupt, set)
	}
	names := []string{}
	switch {
	case r.Basis != nil && r.Basis.BaseHash == "":
		return fmt.Errorf("%w: the base hash is empty", ErrInvalidName)
	case r.File != nil:
		names = append(names, r.File.Tenant, r.File.ID)
	case r.Value != nil:
		names = append(names, r.Value.Tenant, r.Value.Key)
	case r.Adapter != nil:
		names = append(names, r.Adapter.Tenant, r.Adapter.Name)
	case r.Job != nil:
		names = append(names, r.Job.Job.Tenant, r.Job.Job.ID)
	}
	for _, n := range names {
		if err := CheckName(n); err != nil {
			return err
		}
	}
	if r.Adapter != nil {
		return r.Adapter.check()
	}
	if r.Job != nil {
		return r.Job.check()
	}
	return nil
}

func (a AdapterRecord) check() error {
	last, live := 0, a.Live == 0 && len(a.Versions) == 0
	for _, v := range a.Versions {
		if v.Tenant != a.Tenant || v.Name != a.Name || v.Number <= last {
			return fmt.Errorf("%w: version %s in the place after %d of %s/%s", ErrCorrupt, v.Ref(), last, a.Tenant, a.Name)
		}
		last = v.Number
		live = live || v.Number == a.Live
	}
	if !live || a.Last < max(last, 1) {
		return fmt.Errorf("%w: live version %d and last number %d of %d versions up to %d", ErrCorrupt, a.Live, a.Last, len(a.Versions), last)
	}
	return nil
}

func (j JobRecord) check() error {
	if j.Job.Rev < 1 {
		return fmt.Errorf("%w: a job of revision %d", ErrCorrupt, j.Job.Rev)
	}
	for i, e := range j.Events {
		if e.Seq != int64(i)+1 || !json.Valid(e.Data) {
			return fmt.Errorf("%w: event %d in place %d, or its data is not JSON", ErrCorrupt, e.Seq, i+1)
		}
	}
	return nil
}
