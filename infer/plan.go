package infer

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// DeviceProfile is what plans know of a device. Rates are what is reached, not what is printed on the box.
type DeviceProfile struct {
	Name      string
	Memory    int64   // bytes
	Bandwidth float64 // bytes a second of its memory, by a large copy
	Flops     float64 // operations a second of a large bfloat16 product
	Link      float64 // bytes a second from pinned host memory
	// PerLayer is what a layer of a decode step takes beyond its bytes: its kernels' beginnings and ends.
	PerLayer time.Duration
	Source   string // of the figures
}

const gib = 1 << 30

// deviceProfiles are the devices that plans know by name.
var deviceProfiles = []DeviceProfile{
	{"h100", 79 * gib, 3.0e12, 810e12, 53e9, 35 * time.Microsecond, "H100 80 GB HBM3: copy and product measured by bench gpu, the link PCIe 5 × 16 less a sixth"},
	{"h200", 139 * gib, 4.25e12, 795e12, 54.6e9, 35 * time.Microsecond, "H200 141 GB HBM3e: copy, product and link measured (kernels/bench-h200.json), what a layer takes beyond its bytes as on an H100"},
	{"a100", 79 * gib, 1.83e12, 256e12, 24e9, 45 * time.Microsecond, "A100 80 GB: its data sheet, times what an H100 reaches of its own; not measured"},
	{"l40s", 45 * gib, 0.77e12, 290e12, 24e9, 45 * time.Microsecond, "L40S 48 GB: its data sheet, times what an H100 reaches of its own; not measured"},
}

// ProfileOf is a device that plans know.
func ProfileOf(name string) (DeviceProfile, error) {
	var names []string
	for _, d := range deviceProfiles {
		if d.Name == strings.ToLower(name) {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return DeviceProfile{}, fmt.Errorf("no device %q is known; there are %s", name, strings.Join(names, ", "))
}

// PlanConfig is what a plan is asked for.
type PlanConfig struct {
	Footprint    Footprint
	Device       DeviceProfile
	Tenants      int // adapters
	Rank         int
	Context      int     // tokens that a sequence has on average
	Batches      []int   // of decode steps
	MaxSeqs      int     // sequences that run at once
	MaxTokens    int     // token budget of a step
	Utilization  float64 // share of the device's memory that is used
	AdapterBytes int64   // device memory for B's; 0: a tenth of the device's
	HostBytes    int64   // host memory for B's
	Alpha        float64 // of the tenants' popularity (Zipf)
}

// maxTenants bounds what a plan adds up, one by one.
const maxTenants = 50_000_000

// Validate says which field is out of range.
func (c PlanConfig) Validate() error {
	switch {
	case c.Tenants < 0:
		return fmt.Errorf("plan: %d tenants", c.Tenants)
	case c.Tenants > maxTenants:
		return fmt.Errorf("plan: %d tenants are more than %d", c.Tenants, maxTenants)
	case c.Rank < 1 || c.Rank > max(c.Footprint.Rows, 1):
		return fmt.Errorf("plan: rank %d is not from 1 to the %d rows of A", c.Rank, c.Footprint.Rows)
	case c.Context < 1:
		return fmt.Errorf("plan: a context of %d tokens", c.Context)
	case c.MaxSeqs < 1 || c.MaxTokens < c.MaxSeqs:
		return fmt.Errorf("plan: %d sequences in steps of %d tokens", c.MaxSeqs, c.MaxTokens)
	case !(c.Utilization > 0 && c.Utilization <= 1):
		return fmt.Errorf("plan: a utilization of %v is not in (0, 1]", c.Utilization)
	case c.AdapterBytes < 0 || c.HostBytes < 0:
		return fmt.Errorf("plan: negative memory for adapters")
	case !(c.Alpha >= 0):
		return fmt.Errorf("plan: a popularity of exponent %v", c.Alpha)
	case slices.ContainsFunc(c.Batches, func(n int) bool { return n < 1 }):
		return fmt.Errorf("plan: batches %v", c.Batches)
	case c.Device.Memory <= 0 || !(c.Device.Bandwidth > 0) || !(c.Device.Flops > 0) || !(c.Device.Link > 0):
		return fmt.Errorf("plan: device %q lacks a figure", c.Device.Name)
	}
	return nil
}

// Plan predicts what a server will hold and how fast it will be. Bytes and tokens are exact by the model's shape; times are bytes over
// bandwidth and operations over their rate, and Expected adds Device.PerLayer.
type Plan struct {
	Config PlanConfig

	// Device memory, bytes. KV is negative where the rest does not fit.
	Weights, A, State, Adapters, Headroom, KV int64
	KVTokens, Sequences                       int // of Context tokens

	// Adapters by tier: how many, and the share of requests for them.
	AdapterBytes                       int64
	OnDevice, OnHost, InStore          int
	DeviceShare, HostShare, StoreShare float64
	StoreBytes                         int64         // of all adapters
	SwapTime                           time.Duration // of one adapter over the link
	SwapsPerSecond                     float64       // at most
	RequestsPerSecondByLink            float64       // at which the link is full of adapters that are not on the device; 0: no bound
	Steps                              []PlannedStep // by batch: the base, one adapter, all distinct
	PrefillFloor                       float64       // tokens a second, at most
}

// PlannedStep is a decode step.
type PlannedStep struct {
	Batch, Distinct, Rank, Context int
	Bytes                          int64
	Floor, Expected                time.Duration
	TokensPerSecond                float64 // by Expected
}

// NewPlan makes a plan.
func NewPlan(c PlanConfig) (*Plan, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	f, d := c.Footprint, c.Device
	p := &Plan{Config: c, A: f.ABytes(), AdapterBytes: f.AdapterBytes(c.Rank)}
	p.Weights = f.Bytes() - p.A
	p.State = f.StateBytes(c.MaxTokens, c.MaxSeqs)
	if p.Adapters = c.AdapterBytes; p.Adapters == 0 {
		p.Adapters = d.Memory / 10
	}
	p.Headroom = d.Memory - int64(c.Utilization*float64(d.Memory))
	p.KV = d.Memory - p.Weights - p.A - p.State - p.Adapters - p.Headroom
	p.KVTokens = int(max(p.KV, 0) / f.KVTokenBytes())
	p.Sequences = p.KVTokens / c.Context

	p.StoreBytes = int64(c.Tenants) * p.AdapterBytes
	p.OnDevice = min(c.Tenants, int(p.Adapters/p.AdapterBytes))
	p.OnHost = min(c.Tenants-p.OnDevice, int(c.HostBytes/p.AdapterBytes))
	p.InStore = c.Tenants - p.OnDevice - p.OnHost
	if c.Tenants > 0 {
		mass := append([]float64{0}, zipfMass(c.Tenants, c.Alpha)...)
		p.DeviceShare = mass[p.OnDevice]
		p.HostShare = mass[p.OnDevice+p.OnHost] - p.DeviceShare
		p.StoreShare = max(0, 1-p.DeviceShare-p.HostShare)
	}
	p.SwapTime = seconds(float64(p.AdapterBytes) / d.Link)
	p.SwapsPerSecond = d.Link / float64(p.AdapterBytes)
	if misses := p.HostShare + p.StoreShare; misses > 1e-12 {
		p.RequestsPerSecondByLink = p.SwapsPerSecond / misses
	}
	for _, n := range c.Batches {
		kinds := []int{0}
		if c.Tenants > 0 && f.Rows > 0 {
			kinds = append(kinds, 1, min(n, c.Tenants))
		}
		for _, distinct := range slices.Compact(kinds) {
			p.Steps = append(p.Steps, p.Step(n, distinct, c.Rank, c.Context))
		}
	}
	p.PrefillFloor = d.Flops / f.TokenFlops(false)
	return p, nil
}

// Step predicts a decode step.
func (p *Plan) Step(batch, distinct, rank, context int) PlannedStep {
	f, d := p.Config.Footprint, p.Config.Device
	s := PlannedStep{Batch: batch, Distinct: distinct, Rank: rank, Context: context, Bytes: f.StepBytes(batch, distinct, rank, context)}
	if distinct == 0 {
		s.Rank = 0
	}
	s.Floor = seconds(max(float64(s.Bytes)/d.Bandwidth, float64(batch)*f.TokenFlops(true)/d.Flops))
	s.Expected = s.Floor + time.Duration(f.Config.Layers)*d.PerLayer
	s.TokensPerSecond = float64(batch) / s.Expected.Seconds()
	return s
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
