package redis

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"bhive/adapters"
	"bhive/adapters/storetest"
)

// startCluster starts a Cluster of n masters and returns its URL.
func startCluster(t *testing.T, n int) string {
	t.Helper()
	nodes := make([]*server, n)
	url := ""
	for i := range nodes {
		bus := freePort(t)
		nodes[i] = startServer(t, "--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(bus), "--cluster-node-timeout", "2000")
		c := nodes[i].client(t)
		if err := c.ClusterAddSlotsRange(ctx, i*16384/n, (i+1)*16384/n-1).Err(); err != nil {
			t.Fatal(err)
		}
		if err := c.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := nodes[0].client(t).Do(ctx, "CLUSTER", "MEET", "127.0.0.1", nodes[i].port, bus).Err(); err != nil {
				t.Fatal(err)
			}
			url += "&addr=" + nodes[i].addr()
		}
	}
	start := time.Now()
	for _, node := range nodes {
		for c := node.client(t); ; time.Sleep(20 * time.Millisecond) {
			info, err := c.ClusterInfo(ctx).Result()
			if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", n)) {
				break
			}
			if time.Since(start) > 30*time.Second {
				t.Fatalf("the Cluster does not form: %s, %v", info, err)
			}
		}
	}
	return nodes[0].url() + "?cluster=true" + url
}

// The suite runs on a Cluster of three: all keys of a change lie in one slot, blobs lie everywhere.
func TestConformanceCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("three servers take a while")
	}
	conformance(t, storetest.RunCases, startCluster(t, 3), Options{})
}

// With Sentinel the store finds the master, and the next one when it dies.
func TestSentinel(t *testing.T) {
	t.Parallel() // it mostly waits
	master := startServer(t)
	replica := startServer(t, "--replicaof", fmt.Sprintf("127.0.0.1 %d", master.port), "--repl-diskless-sync-delay", "0")
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "sentinel monitor hive 127.0.0.1 %d 1\nsentinel down-after-milliseconds hive 300\nsentinel failover-timeout hive 2000\n", master.port), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := &server{t: t, dir: t.TempDir(), port: freePort(t)}
	sentinel.command = []string{config, "--sentinel"}
	sentinel.start()
	t.Cleanup(sentinel.kill)
	s := openTest(t, sentinel.url()+"?master=hive", Options{})
	publish(t, s, "a", "one")
	until := func(what string, done func() bool) {
		t.Helper()
		for start := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
			if time.Since(start) > 30*time.Second {
				t.Fatal("never: " + what)
			}
		}
	}
	// The sentinel must know the replica, and the replica all data, before the master dies.
	c := redis.NewSentinelClient(&redis.Options{Addr: sentinel.addr()})
	defer c.Close()
	until("the sentinel knows the replica", func() bool {
		list, err := c.Replicas(ctx, "hive").Result()
		return err == nil && len(list) == 1 && list[0]["master-link-status"] == "ok"
	})
	until("the replica has all", func() bool {
		n, err := replica.client(t).Exists(ctx, s.versionsKey("default", "a")).Result()
		return err == nil && n == 1
	})
	master.kill()
	until("a new master", func() bool {
		_, err := s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: mustBlob(s)}, adapters.PublishOptions{})
		if err != nil && !errors.Is(err, adapters.ErrStoreUnavailable) && !errors.Is(err, adapters.ErrNotFound) { // the blob went to neither
			t.Fatal(err)
		}
		return err == nil
	})
	if v, err := s.Get(ctx, "", "a", 0); err != nil || v.Number < 2 {
		t.Errorf("%+v, %v", v, err)
	}
	if got, err := read(s, mustBlob(s)); err != nil || got != "two" {
		t.Errorf("%q, %v", got, err)
	}
}

// mustBlob puts a blob, or returns the name that it would have.
func mustBlob(s *Store) string {
	_, _ = s.PutBlob(ctx, "", strings.NewReader("two"))
	return "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
}

// certificate writes a self-signed certificate of 127.0.0.1 and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TLS with certificates of both sides, and a user's password.
func TestTLSAndPassword(t *testing.T) {
	cert, key := certificate(t)
	tlsPort := freePort(t)
	startServer(t, "--tls-port", fmt.Sprint(tlsPort), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert,
		"--user", "hive", "on", ">se?cret", "~*", "&*", "+@all", "--user", "default", "off")
	url := func(user, options string) string {
		return fmt.Sprintf("rediss://%s@127.0.0.1:%d%s", user, tlsPort, options)
	}
	mutual := "?ca=" + cert + "&cert=" + cert + "&key=" + key
	s := openTest(t, url("hive:se%3Fcret", mutual), Options{})
	publish(t, s, "a", "one")
	for name, bad := range map[string]string{
		"wrong password": url("hive:secret", mutual), "no client certificate": url("hive:se%3Fcret", "?ca="+cert),
		"unknown authority": url("hive:se%3Fcret", "?cert="+cert+"&key="+key),
	} {
		_, err := Open(ctx, bad, Options{Timeout: time.Second})
		if !errors.Is(err, adapters.ErrStoreUnavailable) || strings.Contains(err.Error(), "se") && strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The rights that docs/redis.md asks for are enough for every call.
func TestRights(t *testing.T) {
	srv := startServer(t, "--user", "hive", "on", ">x", "~{test*}:*", "~test*:blob:*", "+@read", "+@write", "+@scripting", "+@connection", "+time", "+info", "+config|get")
	conformance(t, storetest.RunCases, "redis://hive:x@"+srv.addr(), Options{})
}

// Open warns of settings under which Redis forgets.
func TestWarnings(t *testing.T) {
	srv := startServer(t, "--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
	var text bytes.Buffer
	openTest(t, srv.url(), Options{Log: slog.New(slog.NewTextHandler(&text, nil))})
	if got := text.String(); !strings.Contains(got, "appendonly yes") || !strings.Contains(got, "noeviction") {
		t.Errorf("warnings: %s", got)
	}
	text.Reset()
	good := startServer(t, durable...)
	openTest(t, good.url(), Options{Log: slog.New(slog.NewTextHandler(&text, nil))})
	if text.Len() > 0 {
		t.Errorf("warnings of good settings: %s", text.String())
	}
}

func TestParseURL(t *testing.T) {
	for url, want := range map[string]string{
		"redis://localhost":                                        "redis://localhost:6379",
		"redis://:secret@10.0.0.1:7000/3?prefix=x":                 "redis://10.0.0.1:7000/3",
		"rediss://u:secret@[::1]:7000?insecure=true":               "rediss://[::1]:7000",
		"redis://s1?master=hive&addr=s2:26380&sentinel_password=x": "redis://s1:26379,s2:26380",
		"redis://n1:1?addr=n2:2&addr=n3:3":                         "redis://n1:1,n2:2,n3:3",
	} {
		a, err := ParseURL(url)
		if err != nil || a.String() != want {
			t.Errorf("%s: %v, %v", url, a, err)
		}
	}
	for url, says := range map[string]string{
		"":                                  "scheme",
		"http://x":                          "scheme",
		"redis:x":                           "not of the form",
		"redis://":                          "address",
		"redis://h:0":                       "address",
		"redis://h:99999":                   "address",
		"redis://h:x":                       "port",
		"redis://u:se cret@h\x7f":           "not well formed",
		"redis://u:secret@h:x":              "not well formed",
		"redis://h/x":                       "database",
		"redis://h/-1":                      "database",
		"redis://h#x":                       "not of the form",
		"redis://h?master=":                 "option master",
		"redis://h?addr=":                   "address",
		"redis://h?addr=g:1?prefix=x":       "address",
		"redis://h?prefix={x}":              "option prefix",
		"redis://h?prefix=":                 "option prefix",
		"redis://h?cluster=maybe":           "option cluster",
		"redis://h?timeout=3":               `option "timeout"`,
		"redis://h?prefix=a&prefix=b":       "2 times",
		"redis://h?ca=x":                    "rediss",
		"redis://h?insecure=true":           "rediss",
		"rediss://h?ca=/does/not/exist":     "option ca",
		"rediss://h?cert=/does/not/exist":   "options cert and key",
		"redis://h/1?cluster=true":          "Cluster",
		"redis://h?master=x&cluster=true":   "Cluster",
		"redis://h?%zz":                     "options",
		"redis://h?master=x&addr=h:1&addr=": "address",
	} {
		if _, err := ParseURL(url); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: want an error about %q, got %v", url, says, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, url := range []string{"redis://u:p@h:1/2?prefix=x", "rediss://h?insecure=1&addr=[::1]:5", "redis://h?master=m&cluster=0", "redis:", "redis://%", "redis://h?a;b"} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		if strings.Contains(url, "ca") || strings.Contains(url, "cert") || strings.Contains(url, "%") {
			return // no files are read here
		}
		a, err := ParseURL(url)
		if err != nil {
			return
		}
		again, err := ParseURL(a.String() + "?prefix=" + a.prefix)
		if len(a.options.Addrs) == 1 && (err != nil || again.options.Addrs[0] != a.options.Addrs[0] || again.options.DB != a.options.DB || again.prefix != a.prefix) {
			t.Errorf("%q: %v, %v", url, a, err)
		}
	})
}

func FuzzCursor(f *testing.F) {
	for _, text := range []string{"", "0-0", "1-1700000000000000", "01-2", "-", "9223372036854775808-1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if c, ok := parseCursor(text); ok && c.String() != text {
			t.Errorf("%q was taken as %v", text, c)
		}
	})
}

func FuzzRecords(f *testing.F) {
	for _, raw := range []string{`{"id":"x","bytes":5,"chunk":2}`, `{"id":"x","bytes":-1,"chunk":1}`, `{"chunk":0}`, "[]", "\x00\x00\x00\x00\x00\x00\x00\x01v"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if c, err := decodeContent(raw); err == nil {
			if n := c.chunks(); n < 0 || (n-1)*c.Chunk >= c.Bytes && c.Bytes > 0 {
				t.Errorf("%+v has %d chunks", c, n)
			}
		} else if !errors.Is(err, adapters.ErrCorrupt) {
			t.Error(err)
		}
		if n, err := decode[nameRecord]("a name", raw); err == nil {
			n.find(1)
		}
		if _, value, err := splitValue(raw); err == nil && len(value) != len(raw)-8 {
			t.Errorf("%q lost bytes", raw)
		}
	})
}
