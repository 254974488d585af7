package server

import (
	"fmt"
	"net"
	"time"
)

// Config of a server. The zero value of a field is its default.
type Config struct {
	Addr             string        // host:port to listen on; default 127.0.0.1:8080. On an address that is not loopback every request needs an API key
	MaxBodyBytes     int64         // of a JSON body; default 8 MiB
	MaxTrainingBytes int64         // of a body with examples; default 256 MiB
	MaxAdapterBytes  int64         // of an adapter's file that is imported; default 512 MiB
	LoRARoot         string        // directory below which /v1/load_lora_adapter may read; default "": it may not
	DrainTimeout     time.Duration // how long running requests may go on at shutdown; default 30 s
	OpenMetrics      bool          // /metrics needs no API key; it names tenants and adapters. Otherwise it needs an administrator's, where there are keys
	Quotas           Quotas        // of each tenant; default: none
	DefaultMaxTokens int           // max_tokens of a completion without one; default 16, as OpenAI's

	lastWords time.Duration // how long requests that were cut off at shutdown may take to say so; default 1 s
}

func (c Config) defaults() Config {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:8080"
	}
	if c.MaxBodyBytes == 0 {
		c.MaxBodyBytes = 8 << 20
	}
	if c.MaxTrainingBytes == 0 {
		c.MaxTrainingBytes = 256 << 20
	}
	if c.MaxAdapterBytes == 0 {
		c.MaxAdapterBytes = 512 << 20
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 30 * time.Second
	}
	if c.lastWords == 0 {
		c.lastWords = time.Second
	}
	if c.DefaultMaxTokens == 0 {
		c.DefaultMaxTokens = 16
	}
	return c
}

// Validate says which field is unusable.
func (c Config) Validate() error {
	d := c.defaults()
	if _, _, err := net.SplitHostPort(d.Addr); err != nil {
		return fmt.Errorf("server configuration: Addr %q: %w", d.Addr, err)
	}
	for name, v := range map[string]int64{"MaxBodyBytes": d.MaxBodyBytes, "MaxTrainingBytes": d.MaxTrainingBytes, "MaxAdapterBytes": d.MaxAdapterBytes,
		"DrainTimeout": int64(d.DrainTimeout), "DefaultMaxTokens": int64(d.DefaultMaxTokens), "Quotas.Requests": int64(d.Quotas.Requests),
		"Quotas.TokensPerMinute": d.Quotas.TokensPerMinute, "Quotas.TrainingTokensPerDay": d.Quotas.TrainingTokensPerDay, "Quotas.Adapters": int64(d.Quotas.Adapters), "Quotas.Bytes": d.Quotas.Bytes} {
		if v < 0 {
			return fmt.Errorf("server configuration: %s = %d is negative", name, v)
		}
	}
	return nil
}

// loopback reports whether only this machine reaches the server.
func (c Config) loopback() bool {
	host, _, _ := net.SplitHostPort(c.Addr) // Validate has seen it
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
