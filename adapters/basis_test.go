package adapters

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var small = Geometry{Layers: 2, Hidden: 24, QDim: 32, KVDim: 8, FeedForward: 40}

func mustBasis(t testing.TB, c BasisConfig) *Basis {
	t.Helper()
	b, err := NewBasis(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func digest(b *Basis) string {
	h := sha256.New()
	for _, r := range b.rows {
		h.Write(bf16Bytes(r))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// The digests pin the generators: a change of any bit of any row makes stored adapters worthless.
func TestBasisPinned(t *testing.T) {
	for _, c := range []struct {
		method Method
		seed   uint64
		want   string
	}{
		{Orthonormal, 0, "136436de93251921638c3ff54811987fd56281ee6bd3f766f3913571cbb9cba4"},
		{Orthonormal, 7, "d9c64b9f382e76ec7f683176359d552a271e01ef96c3b88adaa6f44e9abf2540"},
		{Kaiming, 0, "6b77ebecd2179090b0aa493bfc72489f132e25927e6675360d5b13eda0f7b982"},
	} {
		b := mustBasis(t, BasisConfig{Method: c.method, Seed: c.seed, R: 16, Geometry: small})
		if got := digest(b); got != c.want {
			t.Errorf("%s, seed %d: rows have SHA-256 %s, want %s", c.method, c.seed, got, c.want)
		}
	}
}

func TestBasisNested(t *testing.T) {
	x := testMoments(small)
	for _, m := range []Method{Orthonormal, Kaiming, Activations} {
		long := mustBasis(t, BasisConfig{Method: m, R: 20, Geometry: small, Cov: x})
		short := mustBasis(t, BasisConfig{Method: m, R: 6, Geometry: small, Cov: x})
		for l := range small.Layers {
			for s := AttnIn; s < NumSites; s++ {
				if d := cmp.Diff(short.A(l, s), long.A(l, s)[:6*small.In(s)]); d != "" {
					t.Fatalf("%s: layer %d %v depends on R", m, l, s)
				}
			}
		}
		if short.RowsDigest(6) != long.RowsDigest(6) || short.RowsDigest(5) == long.RowsDigest(6) {
			t.Errorf("%s: digests of rows do not follow the rows", m)
		}
		if short.Fingerprint() == long.Fingerprint() {
			t.Errorf("%s: one fingerprint for two R", m)
		}
	}
}

func TestBasisSeedsDiffer(t *testing.T) {
	seen := map[string]string{}
	for seed := range uint64(3) {
		b := mustBasis(t, BasisConfig{Seed: seed, R: 4, Geometry: small})
		for i, r := range b.rows {
			k := string(bf16Bytes(r[:8]))
			if other, ok := seen[k]; ok {
				t.Errorf("site %d of seed %d begins like %s", i, seed, other)
			}
			seen[k] = "another"
		}
	}
}

func TestOrthonormal(t *testing.T) {
	g := Geometry{Layers: 1, Hidden: 576, QDim: 576, KVDim: 192, FeedForward: 1536}
	b := mustBasis(t, BasisConfig{R: 64, Geometry: g})
	for s := AttnIn; s < NumSites; s++ {
		for _, r := range []int{1, 16, 64} {
			c := b.Correction(0, s, r)
			for i := range r {
				for j := range r {
					want := 0.0
					if i == j {
						want = 1
					}
					if d := math.Abs(float64(c[i*r+j]) - want); d > 5e-3 { // bf16 rows: 2⁻⁹ a value, averaged
						t.Fatalf("%v r %d: correction [%d, %d] = %v", s, r, i, j, c[i*r+j])
					}
				}
			}
		}
	}
}

func TestKaimingBound(t *testing.T) {
	b := mustBasis(t, BasisConfig{Method: Kaiming, R: 24, Geometry: small})
	for i, rows := range b.rows {
		bound := 1 / math.Sqrt(float64(small.In(Site(i%int(NumSites)))))
		var sum, most float64
		for _, h := range rows {
			v := float64(fromBF16(h))
			sum += v * v
			most = max(most, math.Abs(v))
		}
		if most > bound*1.01 || most < bound*0.9 {
			t.Errorf("site %d: largest element %v, bound %v", i, most, bound)
		}
		if v := sum / float64(len(rows)); v < bound*bound/3*0.8 || v > bound*bound/3*1.2 {
			t.Errorf("site %d: variance %v, want about %v", i, v, bound*bound/3)
		}
	}
}

// Correction is an inverse, not a corner of one.
func TestCorrectionInverts(t *testing.T) {
	b := mustBasis(t, BasisConfig{Method: Kaiming, R: 24, Geometry: small})
	rapid.Check(t, func(t *rapid.T) {
		l, s, r := rapid.IntRange(0, 1).Draw(t, "layer"), Site(rapid.IntRange(0, 3).Draw(t, "site")), rapid.IntRange(1, 20).Draw(t, "r")
		in := small.In(s)
		c, a := b.Correction(l, s, r), b.A(l, s)
		for i := range r {
			for j := range r {
				sum := 0.0
				for k := range r {
					g := 0.0
					for x := range in {
						g += float64(fromBF16(a[k*in+x])) * float64(fromBF16(a[j*in+x]))
					}
					sum += float64(c[i*r+k]) * g
				}
				want := 0.0
				if i == j {
					want = 1
				}
				if math.Abs(sum-want) > 1e-4 {
					t.Fatalf("C·A·Aᵀ [%d, %d] = %v", i, j, sum)
				}
			}
		}
	})
}

// testMoments are second moments with a known decay of variances in a random frame.
func testMoments(g Geometry) func(int, Site) []float64 {
	return func(layer int, s Site) []float64 {
		in := g.In(s)
		frame := orthonormalRows(99, layer, s, in, in)
		c := make([]float64, in*in)
		for k, v := range frame {
			for i := range in {
				for j := range in {
					c[i*in+j] += math.Pow(0.7, float64(k)) * v[i] * v[j]
				}
			}
		}
		return c
	}
}

func TestActivationsFindDirections(t *testing.T) {
	g := Geometry{Layers: 1, Hidden: 96, QDim: 120, KVDim: 8, FeedForward: 200}
	b := mustBasis(t, BasisConfig{Method: Activations, R: 12, Geometry: g, Cov: testMoments(g)})
	for s := AttnIn; s < NumSites; s++ {
		in := g.In(s)
		frame := orthonormalRows(99, 0, s, in, in)
		mean := 1 / (1 - 0.7) / float64(in)
		for i := range 12 {
			row := b.A(0, s)[i*in : (i+1)*in]
			var along, norm float64
			for j := range row {
				v := float64(fromBF16(row[j]))
				along += v * frame[i][j]
				norm += v * v
			}
			if share := along * along / norm; share < 0.999 {
				t.Errorf("%v row %d: %.4f of it is along direction %d", s, i, share, i)
			}
			if variance := norm * math.Pow(0.7, float64(i)); math.Abs(variance/mean-1) > 0.02 && math.Pow(0.7, float64(i)) > varianceFloor*mean {
				t.Errorf("%v row %d: z has variance %v, want %v", s, i, variance, mean)
			}
		}
	}
}

func TestBasisActivationsBeyondABlock(t *testing.T) {
	g := Geometry{Layers: 1, Hidden: 100, QDim: 100, KVDim: 8, FeedForward: 100}
	low := func(int, Site) []float64 { // rank 3 only
		c := make([]float64, 100*100)
		for i := range 3 {
			c[i*100+i] = float64(3 - i)
		}
		return c
	}
	b := mustBasis(t, BasisConfig{Method: Activations, R: 90, Geometry: g, Cov: low})
	for i := range b.R {
		for _, h := range b.A(0, AttnIn)[i*100 : (i+1)*100] {
			if !finite(fromBF16(h)) {
				t.Fatalf("row %d is not finite", i)
			}
		}
	}
	if _, err := NewBasis(context.Background(), BasisConfig{Method: Activations, R: 2, Geometry: g, Cov: func(int, Site) []float64 { return make([]float64, 100*100) }}); err == nil {
		t.Error("inputs that are all zero were accepted")
	}
}

func TestBasisFile(t *testing.T) {
	b := mustBasis(t, BasisConfig{Method: Kaiming, Seed: 1<<63 + 5, R: 9, Geometry: small, BaseHash: "abc"})
	var file bytes.Buffer
	if err := b.Save(&file); err != nil {
		t.Fatal(err)
	}
	raw := file.Bytes()
	got, err := LoadBasis(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if got.Fingerprint() != b.Fingerprint() || got.Seed != b.Seed || got.Method != b.Method || got.BaseHash != "abc" || digest(got) != digest(b) {
		t.Error("the basis came back changed")
	}
	raw[len(raw)-1] ^= 1
	if _, err := LoadBasis(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a flipped bit gives %v", err)
	}
	for n := 0; n < len(raw); n += 97 {
		if _, err := LoadBasis(bytes.NewReader(raw[:n]), int64(n)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestBasisConfigErrors(t *testing.T) {
	for _, c := range []BasisConfig{
		{Geometry: small, R: 25}, {Geometry: small, R: -1}, {R: 4}, {Geometry: small, R: 4, Method: "x"},
		{Geometry: small, R: 4, Method: Activations}, {Geometry: small, R: 4, Method: Import},
	} {
		if _, err := NewBasis(context.Background(), c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewBasis(ctx, BasisConfig{Geometry: small, R: 4}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func BenchmarkActivations1536(b *testing.B) {
	const in = 1536
	r := rand.New(rand.NewPCG(1, 2))
	c := make([]float64, in*in)
	for k := range 300 {
		v := make([]float64, in)
		for i := range v {
			v[i] = r.NormFloat64() / math.Sqrt(float64(k+1))
		}
		for i := range in {
			for j := range in {
				c[i*in+j] += v[i] * v[j]
			}
		}
	}
	for b.Loop() {
		if _, err := whitenedRows(0, 0, MLPDown, 64, in, c); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzLoadBasis(f *testing.F) {
	b, err := NewBasis(context.Background(), BasisConfig{R: 2, Geometry: Geometry{Layers: 1, Hidden: 4, QDim: 4, KVDim: 4, FeedForward: 4}, BaseHash: "base"})
	if err != nil {
		f.Fatal(err)
	}
	var file bytes.Buffer
	if err := b.Save(&file); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add(file.Bytes()[:file.Len()/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := LoadBasis(bytes.NewReader(raw), int64(len(raw)))
		if err == nil && b.Fingerprint() == "" {
			t.Error("a basis without a fingerprint")
		}
	})
}
