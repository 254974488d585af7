package infer

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func planOf8B(t testing.TB) PlanConfig {
	t.Helper()
	cc, err := RandomConfig("llama-3-8b")
	if err != nil {
		t.Fatal(err)
	}
	d, err := ProfileOf("H100")
	if err != nil {
		t.Fatal(err)
	}
	return PlanConfig{Footprint: Footprint{Config: cc, Rows: 64, WeightBits: 16, WorkBytes: 2}, Device: d, Tenants: 10000, Rank: 16, Context: 576, Batches: []int{1, 64, 128},
		MaxSeqs: 128, MaxTokens: 8192, Utilization: 0.9, AdapterBytes: 24 * gib, HostBytes: 64 * gib, Alpha: 1}
}

// TestPlan8B holds a plan against the floors of the journal and against figures worked out by hand.
func TestPlan8B(t *testing.T) {
	p, err := NewPlan(planOf8B(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		batch, distinct, rank int
		floor                 float64 // ms, of the journal
	}{{1, 0, 16, 5.06}, {64, 0, 16, 6.65}, {128, 0, 16, 8.26}, {64, 64, 16, 7.59}, {64, 64, 64, 10.40}} {
		s := p.Step(x.batch, x.distinct, x.rank, 576)
		if got := 1e3 * s.Floor.Seconds(); math.Abs(got-x.floor) > 0.02 {
			t.Errorf("B = %d, %d of rank %d: a floor of %.2f ms, the journal has %.2f", x.batch, x.distinct, x.rank, got, x.floor)
		}
		if s.Expected <= s.Floor {
			t.Errorf("%+v", s)
		}
	}
	if p.OnDevice != 24*gib/44040192 || p.OnHost != 64*gib/44040192 || p.OnDevice+p.OnHost+p.InStore != 10000 {
		t.Errorf("tiers: %d, %d, %d", p.OnDevice, p.OnHost, p.InStore)
	}
	harmonic := func(n int) (h float64) {
		for i := 1; i <= n; i++ {
			h += 1 / float64(i)
		}
		return h
	}
	if want := harmonic(p.OnDevice) / harmonic(10000); math.Abs(p.DeviceShare-want) > 1e-9 {
		t.Errorf("share of the device %.4f, want %.4f", p.DeviceShare, want)
	}
	if total := p.Weights + p.A + p.State + p.Adapters + p.Headroom + p.KV; total != p.Config.Device.Memory {
		t.Errorf("the parts add up to %d of %d bytes", total, p.Config.Device.Memory)
	}
	if len(p.Steps) != 8 { // a batch of one has no kind of its own for all distinct
		t.Errorf("%d steps: %+v", len(p.Steps), p.Steps)
	}
	if p.PrefillFloor < 50e3 || p.PrefillFloor > 62e3 {
		t.Errorf("prefill of %.0f tokens a second at most", p.PrefillFloor)
	}
}

// TestPlanLaws: more of anything takes no less, and tiers hold all tenants.
func TestPlanLaws(t *testing.T) {
	base := planOf8B(t)
	rapid.Check(t, func(t *rapid.T) {
		c := base
		c.Tenants = rapid.IntRange(0, 5000).Draw(t, "tenants")
		c.Rank = rapid.IntRange(1, 64).Draw(t, "rank")
		c.Context = rapid.IntRange(1, 8192).Draw(t, "context")
		c.AdapterBytes = rapid.Int64Range(0, 60*gib).Draw(t, "adapters")
		c.HostBytes = rapid.Int64Range(0, 600*gib).Draw(t, "host")
		c.Alpha = rapid.Float64Range(0, 3).Draw(t, "alpha")
		p, err := NewPlan(c)
		if err != nil {
			t.Fatal(err)
		}
		if p.OnDevice < 0 || p.OnHost < 0 || p.InStore < 0 || p.OnDevice+p.OnHost+p.InStore != c.Tenants {
			t.Fatalf("tiers: %+v", p)
		}
		if sum := p.DeviceShare + p.HostShare + p.StoreShare; c.Tenants > 0 && math.Abs(sum-1) > 1e-6 {
			t.Fatalf("shares add up to %v", sum)
		}
		if int64(p.OnDevice)*p.AdapterBytes > p.Adapters || int64(p.OnHost)*p.AdapterBytes > c.HostBytes {
			t.Fatalf("a tier overflows: %+v", p)
		}
		a, b := p.Step(3, 2, c.Rank, c.Context), p.Step(4, 3, c.Rank, c.Context+1)
		if b.Bytes <= a.Bytes || b.Floor < a.Floor || a.Expected < a.Floor+32*35*time.Microsecond {
			t.Fatalf("%+v, %+v", a, b)
		}
	})
}

func TestPlanErrors(t *testing.T) {
	for name, change := range map[string]func(*PlanConfig){
		"tenants":      func(c *PlanConfig) { c.Tenants = -1 },
		"more than 50": func(c *PlanConfig) { c.Tenants = math.MaxInt / 2 },
		"rank":         func(c *PlanConfig) { c.Rank = 65 },
		"context":      func(c *PlanConfig) { c.Context = 0 },
		"sequences":    func(c *PlanConfig) { c.MaxSeqs = 0 },
		"utilization":  func(c *PlanConfig) { c.Utilization = math.NaN() },
		"memory":       func(c *PlanConfig) { c.HostBytes = -1 },
		"exponent":     func(c *PlanConfig) { c.Alpha = math.NaN() },
		"batches":      func(c *PlanConfig) { c.Batches = []int{0} },
		"lacks a figu": func(c *PlanConfig) { c.Device.Link = 0 },
	} {
		c := planOf8B(t)
		change(&c)
		if _, err := NewPlan(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ProfileOf("abacus"); err == nil || !strings.Contains(err.Error(), "h100") {
		t.Error(err)
	}
}
