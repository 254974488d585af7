package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// readyCmd is the health check of a container.
type readyCmd struct {
	remote
}

// Run fails with the server's reasons where it is not ready.
func (c *readyCmd) Run(ctx context.Context) error {
	q, err := http.NewRequestWithContext(ctx, "GET", strings.TrimSuffix(c.Server, "/")+"/ready", nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", c.Server, err)
	}
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		return c.unreachable(err)
	}
	defer answer.Body.Close()
	var said struct{ Reasons []struct{ Message string } }
	err = json.NewDecoder(http.MaxBytesReader(nil, answer.Body, 1<<20)).Decode(&said)
	if answer.StatusCode == http.StatusOK && err == nil {
		fmt.Println("ready")
		return nil
	}
	reasons := []string{}
	for _, r := range said.Reasons {
		reasons = append(reasons, r.Message)
	}
	if len(reasons) == 0 {
		reasons = append(reasons, "it answers "+answer.Status)
	}
	return errors.New("not ready: " + strings.Join(reasons, "; "))
}
