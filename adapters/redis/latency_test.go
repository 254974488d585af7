package redis

import (
	"bytes"
	"math/rand/v2"
	"slices"
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

func BenchmarkPublish(b *testing.B) {
	begun, _, readable := announcements(b, startServer(b, durable...).url(), max(b.N, 1))
	b.ReportMetric(float64(percentile(begun, 99).Microseconds()), "p99-seen-µs")
	b.ReportMetric(float64(percentile(readable, 99).Microseconds()), "p99-readable-µs")
}
