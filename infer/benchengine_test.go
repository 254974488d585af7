package infer

import (
	"testing"

	"bhive/adapters"
	"bhive/kernels"
	"bhive/kernels/devicetest"
)

// TestEngineBench runs each measurement at its smallest; times are not looked at.
func TestEngineBench(t *testing.T) {
	be := openDevice(t, kernels.BF16)
	if devicetest.OnCPU() {
		be = apart{be}
	}
	hash := RandomHash("tiny", 1)
	cc, err := RandomConfig("tiny")
	if err != nil {
		t.Fatal(err)
	}
	basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{Method: adapters.Kaiming, R: 16, Geometry: GeometryOf(cc), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	m, err := LoadRandom(t.Context(), be, "tiny", 1, basis, LoadConfig{BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	each := Footprint{Config: cc, WorkBytes: 2}.AdapterBytes(8)
	b, err := OpenEngineBench(m, newRigTokenizer(t), EngineBenchConfig{Rank: 8, Slots: 32, DeviceBytes: 24 * aligned(each), HostBytes: 24 * aligned(each), MaxTokens: 64,
		StoreBandwidth: 1e9})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.AdapterBytes() != each {
		t.Errorf("an adapter has %d bytes, predicted %d", b.AdapterBytes(), each)
	}
	s, err := b.Swaps(t.Context(), 4, 8, 60, 4, 8, 500)
	if err != nil || s.Median <= 0 || s.Worst < s.P99 || s.P99 < s.Median || s.QuietMedian <= 0 || s.PerSecond <= 0 || s.Steps < 20 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, beside := range []int{0, 2} {
		f, err := b.FirstToken(t.Context(), 10, 8, 8, beside, 100)
		if err != nil || f.Resident <= 0 || f.Host <= 0 || f.AddedP99 < f.AddedP50 {
			t.Errorf("%+v, %v", f, err)
		}
	}
	for _, n := range []int{1, 50} {
		r, err := b.SLoRA(t.Context(), SLoRAConfig{Workload: WorkloadConfig{Adapters: n, CV: 1, Alpha: 1, Popularity: Zipf, Shortest: 4, Longest: 16}, MaxSeqs: 4, Seconds: 0.3})
		if err != nil || r.Throughput <= 0 || r.Finished == 0 || r.FirstP99 < r.FirstP50 || r.FirstP50 <= 0 || r.TokenP50 <= 0 {
			t.Errorf("%+v, %v", r, err)
		}
		if (n == 50) != (r.StoreHits > 0) {
			t.Errorf("%d adapters: shares %v, %v, %v", n, r.DeviceHits, r.HostHits, r.StoreHits)
		}
	}
}
