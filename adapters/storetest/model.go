package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"bhive/adapters"
)

type modelName struct {
	live, last int
	versions   map[int]string // number → content
}

// testModel compares random sequences of publications, rollbacks, deletions and collections with a map.
func testModel(t *testing.T, open func(testing.TB) adapters.Store) {
	s := open(t)
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		// One store serves all runs: each has a tenant of its own.
		runs++
		tenants := []string{fmt.Sprintf("t%d", runs), fmt.Sprintf("u%d", runs)}
		model := map[string]*modelName{}
		draw := func(t *rapid.T) (string, string, string, *modelName) {
			tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
			name := rapid.SampledFrom([]string{"a", "a.b", "b"}).Draw(t, "name")
			k := tenant + "/" + name
			if model[k] == nil {
				model[k] = &modelName{versions: map[int]string{}}
			}
			return tenant, name, k, model[k]
		}
		number := func(t *rapid.T) int { return rapid.IntRange(1, 4).Draw(t, "number") }
		agree := func(t *rapid.T, what string, err, want error) {
			if !errors.Is(err, want) || (want == nil && err != nil) {
				t.Fatalf("%s: want %v, got %v", what, want, err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				tenant, name, k, m := draw(t)
				content := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "content")
				expect := rapid.IntRange(-1, 3).Draw(t, "expect")
				b, err := s.PutBlob(ctx, tenant, strings.NewReader(content))
				agree(t, "blob", err, nil)
				o := adapters.PublishOptions{CheckLive: expect >= 0, ExpectLive: max(expect, 0)}
				v, err := s.Publish(ctx, tenant, adapters.Version{Name: name, SHA256: b.SHA256}, o)
				switch {
				case expect == 0 && m.live != 0:
					agree(t, k, err, adapters.ErrExists)
				case expect > 0 && m.live != expect:
					agree(t, k, err, adapters.ErrConflict)
				default:
					agree(t, k, err, nil)
					m.last++
					m.live, m.versions[m.last] = m.last, content
					if v.Number != m.last {
						t.Fatalf("%s: number %d, want %d", k, v.Number, m.last)
					}
				}
			},
			"setlive": func(t *rapid.T) {
				tenant, name, k, m := draw(t)
				n := number(t)
				_, err := s.SetLive(ctx, tenant, name, n)
				if _, ok := m.versions[n]; !ok {
					agree(t, k, err, adapters.ErrNotFound)
					return
				}
				agree(t, k, err, nil)
				m.live = n
			},
			"delete": func(t *rapid.T) {
				tenant, name, k, m := draw(t)
				n := number(t)
				err := s.Delete(ctx, tenant, name, n)
				switch _, ok := m.versions[n]; {
				case !ok:
					agree(t, k, err, adapters.ErrNotFound)
				case len(m.versions) > 1 && n == m.live:
					agree(t, k, err, adapters.ErrConflict)
				default:
					agree(t, k, err, nil)
					delete(m.versions, n)
					if len(m.versions) == 0 {
						m.live = 0
					}
				}
			},
			"deletename": func(t *rapid.T) {
				tenant, name, k, m := draw(t)
				err := s.Delete(ctx, tenant, name, 0)
				if m.live == 0 {
					agree(t, k, err, adapters.ErrNotFound)
					return
				}
				agree(t, k, err, nil)
				m.live = 0
				clear(m.versions)
			},
			"gc": func(t *rapid.T) { _, err := s.GC(ctx, 0); agree(t, "gc", err, nil) },
			"": func(t *rapid.T) {
				got := map[string][]int{}
				for _, tenant := range tenants {
					list, err := s.List(ctx, tenant)
					agree(t, "list", err, nil)
					for _, a := range list {
						k := a.Tenant + "/" + a.Name
						got[k] = a.Versions
						if m := model[k]; m == nil || m.live != a.Live {
							t.Fatalf("%s: live %d, want %+v", k, a.Live, m)
						}
						v, err := s.Get(ctx, tenant, a.Name, 0)
						agree(t, k, err, nil)
						if c, err := readBlob(s, tenant, v.SHA256); err != nil || c != model[k].versions[a.Live] {
							t.Fatalf("%s: content %q, %v", k, c, err)
						}
					}
				}
				want := map[string][]int{}
				for k, m := range model {
					for n := range m.versions {
						want[k] = append(want[k], n)
					}
					slices.Sort(want[k])
				}
				for k, v := range want {
					if len(v) == 0 {
						delete(want, k)
					}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatal(d)
				}
			},
		})
	})
}
