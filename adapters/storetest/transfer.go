package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bhive/adapters"
)

func exported(t testing.TB, s adapters.Store) (list []adapters.Record) {
	t.Helper()
	if err := s.Export(ctx, func(r adapters.Record) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b adapters.Record) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// fill puts something of every kind into a store.
func fill(t testing.TB, s adapters.Store) {
	t.Helper()
	publish(t, s, "", "a", "1")
	publish(t, s, "", "a", "2")
	publish(t, s, "", "a", "3")
	must(s.SetLive(ctx, "", "a", 1))
	want(t, s.Delete(ctx, "", "a", 2), nil, "delete")
	publish(t, s, "t", "a", "1")
	publish(t, s, "t", "gone", "4")
	want(t, s.Delete(ctx, "t", "gone", 0), nil, "delete")
	j := must(s.CreateJob(ctx, "t", adapters.Job{ID: "j", Kind: "train", State: "running", Blobs: []string{putBlob(t, s, "t", "examples")}, Data: json.RawMessage(`{"n":1}`)},
		json.RawMessage(`"created"`)))
	j.State, j.Worker, j.Heartbeat = "succeeded", "w", time.Now().UTC()
	must(s.UpdateJob(ctx, "t", j, json.RawMessage(`{"x":1}`), json.RawMessage(`"done"`)))
	must(s.CreateJob(ctx, "", adapters.Job{ID: "j", State: "queued"}))
	must(s.PutFile(ctx, "t", adapters.File{ID: "f", Purpose: "fine-tune", Name: "x.jsonl", SHA256: putBlob(t, s, "t", "file")}))
	must(s.PutValue(ctx, "t", "k", []byte("value\x00\xff"), 0))
	must(s.PutValue(ctx, "", "k", nil, 0))
	must(s.PutBasis(ctx, adapters.BasisRecord{BaseHash: "base", Fingerprint: "f", Method: adapters.Orthonormal, Seed: 1 << 63, R: 64, SHA256: putBlob(t, s, "", "basis")}, ""))
}

// testTransfer moves a store's records to another store of its kind.
func testTransfer(t *testing.T, open func(testing.TB) adapters.Store) {
	src, dst := open(t), open(t)
	fill(t, src)
	records := exported(t, src)
	if len(records) != 9 {
		t.Errorf("%d records: %v", len(records), records)
	}
	for _, r := range records {
		tenant, shas := r.Blobs()
		if len(shas) > 0 {
			want(t, dst.Import(ctx, r), adapters.ErrNotFound, "importing without blobs: "+r.String())
		}
		for _, sha := range shas {
			putBlob(t, dst, tenant, must(readBlob(src, tenant, sha)))
		}
		want(t, dst.Import(ctx, r), nil, r.String())
		want(t, dst.Import(ctx, r), adapters.ErrExists, "again: "+r.String())
	}
	if d := cmp.Diff(records, exported(t, dst)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(must(src.List(ctx, adapters.AllTenants)), must(dst.List(ctx, adapters.AllTenants))); d != "" {
		t.Error(d)
	}
	// Live adapters were announced.
	var announced []string
	for _, c := range must(dst.Watch(ctx, "")) {
		announced = append(announced, c.Tenant+"/"+c.Name)
		if c.Kind != adapters.Published || c.Number != 1 {
			t.Errorf("%+v", c)
		}
	}
	slices.Sort(announced)
	if !slices.Equal(announced, []string{"default/a", "t/a"}) {
		t.Errorf("announced: %v", announced)
	}
	// Everything goes on from where it was.
	if r := must(dst.GC(ctx, 0)); r.Blobs != 0 {
		t.Errorf("GC took blobs that are in use: %+v", r)
	}
	if v := publish(t, dst, "", "a", "next"); v.Number != 4 {
		t.Errorf("the next version of a: %d", v.Number)
	}
	if v := publish(t, dst, "t", "gone", "next"); v.Number != 2 {
		t.Errorf("a number of a deleted adapter was reused: %d", v.Number)
	}
	if n := must(dst.AppendEvents(ctx, "t", "j", json.RawMessage(`1`))); n != 4 {
		t.Errorf("the next event: %d", n)
	}
	j := must(dst.GetJob(ctx, "t", "j"))
	if next := must(dst.UpdateJob(ctx, "t", j)); next.Rev != j.Rev+1 {
		t.Errorf("revision %d after %d", next.Rev, j.Rev)
	}
	value, rev, err := dst.GetValue(ctx, "t", "k")
	want(t, err, nil, "GetValue")
	must(dst.PutValue(ctx, "t", "k", value, rev))
	// All references count: what is deleted is collected.
	want(t, dst.DeleteFile(ctx, "t", "f"), nil, "delete")
	want(t, dst.DeleteJob(ctx, "t", "j"), nil, "delete")
	want(t, dst.Delete(ctx, "t", "a", 0), nil, "delete")
	if r := must(dst.GC(ctx, 0)); r.Blobs != 2 { // "1" is also default's
		t.Errorf("after deletions: %+v", r)
	}
	stop := errors.New("stop")
	n := 0
	want(t, dst.Export(ctx, func(adapters.Record) error { n++; return stop }), stop, "an export that is stopped")
	if n != 1 {
		t.Errorf("the export went on for %d records", n)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	want(t, dst.Export(gone, func(adapters.Record) error { return nil }), context.Canceled, "Export")
	want(t, dst.Import(gone, records[0]), context.Canceled, "Import")
}

func testBadRecords(t *testing.T, s adapters.Store) {
	sha := putBlob(t, s, "", "x")
	version := func(n int) adapters.Version {
		return adapters.Version{Tenant: "default", Name: "a", Number: n, SHA256: sha}
	}
	adapter := func(live, last int, versions ...adapters.Version) adapters.Record {
		return adapters.Record{Adapter: &adapters.AdapterRecord{Tenant: "default", Name: "a", Live: live, Last: last, Versions: versions}}
	}
	foreign := version(1)
	foreign.Tenant = "other"
	job := adapters.Job{Tenant: "default", ID: "j", Rev: 1}
	for name, c := range map[string]struct {
		r    adapters.Record
		want error
	}{
		"empty":           {adapters.Record{}, adapters.ErrCorrupt},
		"two kinds":       {adapters.Record{File: &adapters.File{}, Value: &adapters.ValueRecord{}}, adapters.ErrCorrupt},
		"no base hash":    {adapters.Record{Basis: &adapters.BasisRecord{SHA256: sha}}, adapters.ErrInvalidName},
		"no tenant":       {adapters.Record{Value: &adapters.ValueRecord{Key: "k"}}, adapters.ErrInvalidName},
		"bad id":          {adapters.Record{File: &adapters.File{Tenant: "default", ID: "../f", SHA256: sha}}, adapters.ErrInvalidName},
		"bad name":        {adapters.Record{Adapter: &adapters.AdapterRecord{Tenant: "default", Name: "A", Last: 1}}, adapters.ErrInvalidName},
		"bad sha":         {adapters.Record{File: &adapters.File{Tenant: "default", ID: "f", SHA256: "x"}}, adapters.ErrInvalidName},
		"live is missing": {adapter(2, 2, version(1)), adapters.ErrCorrupt},
		"none is live":    {adapter(0, 1, version(1)), adapters.ErrCorrupt},
		"last too low":    {adapter(1, 1, version(1), version(2)), adapters.ErrCorrupt},
		"order":           {adapter(1, 2, version(2), version(1)), adapters.ErrCorrupt},
		"twice":           {adapter(1, 1, version(1), version(1)), adapters.ErrCorrupt},
		"number 0":        {adapter(0, 1, version(0)), adapters.ErrCorrupt},
		"never published": {adapter(0, 0), adapters.ErrCorrupt},
		"foreign version": {adapter(1, 1, foreign), adapters.ErrCorrupt},
		"job revision":    {adapters.Record{Job: &adapters.JobRecord{Job: adapters.Job{Tenant: "default", ID: "j"}}}, adapters.ErrCorrupt},
		"job events":      {adapters.Record{Job: &adapters.JobRecord{Job: job, Events: []adapters.Event{{Seq: 2, Data: json.RawMessage("1")}}}}, adapters.ErrCorrupt},
		"event data":      {adapters.Record{Job: &adapters.JobRecord{Job: job, Events: []adapters.Event{{Seq: 1, Data: json.RawMessage("{")}}}}, adapters.ErrCorrupt},
		"one blob absent": {adapter(2, 2, version(1), adapters.Version{Tenant: "default", Name: "a", Number: 2, SHA256: strings.Repeat("0", 64)}), adapters.ErrNotFound},
	} {
		want(t, s.Import(ctx, c.r), c.want, name)
	}
	if left := exported(t, s); len(left) != 0 {
		t.Errorf("something was registered: %v", left)
	}
}
