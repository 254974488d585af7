package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestTuneQuery: numbers go out as the server reads them: whole ones without an exponent, and every digit of a seed.
func TestTuneQuery(t *testing.T) {
	c := tuneCmd{Name: "x", Seed: 9007199254740993, MaxSteps: 1000000, Epochs: 2.5, Rank: 8, LearningRate: "auto"}
	q := c.query()
	for name, want := range map[string]string{"seed": "9007199254740993", "max_steps": "1000000", "epochs": "2.5", "rank": "8", "batch_size": "", "alpha": ""} {
		if got := q.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestTuneFollows: what ends a stream of events early, an error in it too, makes tune ask again for the events after the last.
func TestTuneFollows(t *testing.T) {
	var asked []string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("after"))
		switch len(asked) {
		case 1:
			fmt.Fprint(w, "data: {\"data\": {\"seq\": 7, \"message\": \"seven\"}}\n\ndata: {\"error\": {\"message\": \"the store is away\"}}\n\n")
		case 2:
			fmt.Fprint(w, "data: {\"data\": {\"seq\": 8, \"status\": \"succeeded\", \"result\": {\"adapter\": \"x\", \"version\": 1}}}\n\n")
		}
	}))
	defer web.Close()
	c := tuneCmd{remote: remote{Server: web.URL}, Name: "x"}
	end, err := c.follow(t.Context(), &tuneView{out: io.Discard})
	if err != nil || end.Result == nil || !slices.Equal(asked, []string{"0", "7"}) {
		t.Errorf("it ended with %+v, %v, and asked for what comes after %q", end, err, asked)
	}
}

// TestTuneHint: what tune shows at its end asks the server that trained, and with a key where it took one.
func TestTuneHint(t *testing.T) {
	for _, c := range []struct {
		remote
		chat, key bool
	}{
		{remote{Server: "http://127.0.0.1:8080"}, false, false},
		{remote{Server: "http://[::1]:9090/", APIKey: "sk-x"}, true, true},
	} {
		said := (&tuneCmd{remote: c.remote}).hint("it", "it's")
		if got := strings.Contains(said, " chat --server http://[::1]:9090 -m it\n"); got != c.chat {
			t.Errorf("of %s it says:\n%s", c.Server, said)
		}
		if got := strings.Contains(said, `-H "Authorization: Bearer $BHIVE_API_KEY"`); got != c.key || strings.Contains(said, "sk-x") {
			t.Errorf("with the key %q it says:\n%s", c.APIKey, said)
		}
	}
}

// TestReadyNoServer: it says where no server is, as the other verbs do.
func TestReadyNoServer(t *testing.T) {
	web := httptest.NewServer(nil)
	web.Close()
	err := (&readyCmd{remote{Server: web.URL}}).Run(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "no server answers at "+web.URL) {
		t.Errorf("it said %v", err)
	}
}
