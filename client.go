package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// remote are the flags of the verbs that talk to a running server.
type remote struct {
	Server string `help:"Address of the server." default:"http://127.0.0.1:8080" placeholder:"URL"`
	APIKey string `help:"API key, where the server wants one." env:"BHIVE_API_KEY" placeholder:"KEY"`
}

// send makes a request; an answer that is an error becomes one. The caller closes the body.
func (r remote) send(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(r.Server, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", r.Server, err)
	}
	if contentType != "" {
		q.Header.Set("Content-Type", contentType)
	}
	if r.APIKey != "" {
		q.Header.Set("Authorization", "Bearer "+r.APIKey)
	}
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, r.unreachable(err)
	}
	if answer.StatusCode < 400 {
		return answer, nil
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	var e struct{ Error struct{ Message string } }
	if err != nil || json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
		return nil, fmt.Errorf("%s %s: %s", method, path, answer.Status)
	}
	return nil, errors.New(e.Error.Message)
}

// unreachable says what a request came to that had no answer.
func (r remote) unreachable(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no server answers at %s; start one with: bhive serve", r.Server)
	}
	return err
}

// call sends in as JSON, where it is not nil, and reads the answer into out, where that is not nil.
func (r remote) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	kind := ""
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body, kind = bytes.NewReader(b), "application/json"
	}
	answer, err := r.send(ctx, method, path, kind, body)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(answer.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: reading the answer: %w", method, path, err)
	}
	return nil
}

// events calls f with the data of each server-sent event of an answer, until it ends or f returns an error.
func events(body io.Reader, f func(data []byte) error) error {
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			if err := f(bytes.TrimRight(data, "\r\n")); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
	}
}

// adapterPath is the path of an adapter and what lies below it.
func adapterPath(name string, below ...string) string {
	return "/adapters/" + strings.Join(append([]string{url.PathEscape(name)}, below...), "/")
}
