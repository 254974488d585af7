package redis

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bhive/adapters"
)

// adapterBytes is the size of a rank-16 adapter of SmolLM2-135M over all linears, in bf16: 30 layers × 5,184 outputs × 16 × 2 bytes.
const adapterBytes = 30 * 5184 * 16 * 2

// announcements publishes n versions through one store and returns how long each took: from Publish's begin (and from its end) until
// another store's Watch knew it, and until that store had read the blob too.
func announcements(t testing.TB, url string, n int) (begun, ended, readable []time.Duration) {
	t.Helper()
	one, two := openTest(t, url, Options{}), openTest(t, url, Options{})
	content := make([]byte, adapterBytes)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	cursor, err := two.Cursor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	type seen struct{ known, read time.Time }
	follower := make(chan seen)
	failed := make(chan error, 1)
	go func() {
		for n := n; n > 0; {
			list, err := two.Watch(ctx, cursor)
			known := time.Now()
			for _, c := range list {
				cursor = c.Cursor
				if c.Kind != adapters.Published {
					continue
				}
				v, err := two.Get(ctx, "", c.Name, c.Number)
				if err == nil {
					_, err = read(two, v.SHA256)
				}
				if err != nil {
					failed <- err
					return
				}
				n--
				follower <- seen{known, time.Now()}
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	for i := range n {
		content[i]++
		b, err := one.PutBlob(ctx, "", bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := one.Publish(ctx, "", adapters.Version{Name: "a", SHA256: b.SHA256}, adapters.PublishOptions{}); err != nil {
			t.Fatal(err)
		}
		end := time.Now()
		select {
		case s := <-follower:
			begun, ended, readable = append(begun, s.known.Sub(start)), append(ended, s.known.Sub(end)), append(readable, s.read.Sub(end))
		case err := <-failed:
			t.Fatal(err)
		}
		if i%10 == 9 { // the server's memory stays small
			for k := i - 8; k <= i; k++ {
				if err := one.Delete(ctx, "", "a", k); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := one.GC(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, l := range [][]time.Duration{begun, ended, readable} {
		slices.Sort(l)
	}
	return begun, ended, readable
}

func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

// The follower needs no luck to see every publication; how soon is reported.
func TestPublishLatency(t *testing.T) {
	n := 100
	if testing.Short() {
		n = 20
	}
	begun, ended, readable := announcements(t, startServer(t).url(), n)
	for name, l := range map[string][]time.Duration{"from Publish called to seen": begun, "from Publish returned to seen": ended, "from Publish returned to 5 MB read and verified": readable} {
		t.Logf("%s: p50 %v, p99 %v, max %v", name, percentile(l, 50), percentile(l, 99), l[len(l)-1])
	}
}

// servable publishes n adapters through one server's registry and returns how long each took from the publication's return, and from the
// beginning of the whole (encode, upload, publish), until another server had followed the feed, resolved the name, and read, verified and decoded the B.
func servable(t testing.TB, url string, n int) (published, whole []time.Duration) {
	t.Helper()
	smollm2 := adapters.Geometry{Layers: 30, Hidden: 576, QDim: 576, KVDim: 192, FeedForward: 1536}
	w := adapters.NewWeights(smollm2, 16, 16)
	for i := range w.Data {
		w.Data[i] = rand.Float32() - 0.5
	}
	ctx, cancel := context.WithCancel(ctx)
	seen := make(chan int)
	one := adapters.NewRegistry(openTest(t, url, Options{}), nil)
	two := adapters.NewRegistry(openTest(t, url, Options{}), func(c adapters.Change) {
		if c.Kind == adapters.Published {
			select {
			case seen <- c.Number:
			case <-ctx.Done():
			}
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- two.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	save := func(mark float32) adapters.Version {
		t.Helper()
		w.Data[0] = mark
		v, err := one.Save(ctx, "", adapters.Version{Name: "a", BasisDigest: strings.Repeat("0", 64), BaseHash: strings.Repeat("1", 64)}, w, adapters.PublishOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for following := false; !following; { // it begins at the feed's end, some time soon
		save(-1)
		select {
		case <-seen:
			following = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	ref, err := adapters.ParseRef("a")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		begun := time.Now()
		mark := float32(i % 256) // which bfloat16 holds
		v := save(mark)
		end := time.Now()
		for number := 0; number != v.Number; {
			select {
			case number = <-seen:
			case <-time.After(20 * time.Second):
				t.Fatalf("version %d is not announced", v.Number)
			}
		}
		target, err := two.Resolve(ctx, "", ref, false)
		if err != nil || target.Parts[0].Version.Number != v.Number {
			t.Fatalf("%+v, %v; want version %d", target, err, v.Number)
		}
		got, _, err := two.Load(ctx, target.Parts[0].Version, smollm2)
		if err != nil {
			t.Fatal(err)
		}
		if got.Data[0] != mark {
			t.Fatalf("version %d begins with %v, not %v", v.Number, got.Data[0], mark)
		}
		now := time.Now()
		published, whole = append(published, now.Sub(end)), append(whole, now.Sub(begun))
		if err := one.Delete(ctx, "", "a", v.Number-1); err != nil { // the server's memory stays small
			t.Fatal(err)
		}
		if _, err := one.GC(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(published)
	slices.Sort(whole)
	return published, whole
}

// What one server has published another serves: the version, whole.
func TestServable(t *testing.T) {
	published, whole := servable(t, startServer(t).url(), 10)
	t.Logf("from its publication %v, from its beginning %v", published, whole)
}

// BenchmarkServable is what the other server needs for an adapter of rank 16 of SmolLM2-135M, until its B could go to the device.
func BenchmarkServable(b *testing.B) {
	published, whole := servable(b, startServer(b, durable...).url(), max(b.N, 1))
	b.ReportMetric(float64(percentile(published, 50).Microseconds()), "p50-µs")
	b.ReportMetric(float64(percentile(published, 99).Microseconds()), "p99-µs")
	b.ReportMetric(float64(percentile(whole, 99).Microseconds()), "p99-with-upload-µs")
}

func BenchmarkPublish(b *testing.B) {
	begun, _, readable := announcements(b, startServer(b, durable...).url(), max(b.N, 1))
	b.ReportMetric(float64(percentile(begun, 99).Microseconds()), "p99-seen-µs")
	b.ReportMetric(float64(percentile(readable, 99).Microseconds()), "p99-readable-µs")
}
