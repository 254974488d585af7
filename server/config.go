package server

import (
	"fmt"
	"net"
	"time"
)

// Config of a server. The zero value of a field is its default.
type Config struct {
	Addr             string        // host:port to listen on; default 127.0.0.1:8080. Without API keys the host must be loopback
	MaxBodyBytes     int64         // of a JSON body; default 8 MiB
	MaxTrainingBytes int64         // of a body with examples; default 256 MiB
	MaxAdapterBytes  int64         // of an adapter's file that is imported; default 512 MiB
	LoRARoot         string        // directory below which /v1/load_lora_adapter may read; default "": it may not
	DrainTimeout     time.Duration // how long running requests may go on at shutdown; default 30 s
	DefaultMaxTokens int           // max_tokens of a completion without one; default 16, as OpenAI's
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
	if c.DefaultMaxTokens == 0 {
		c.DefaultMaxTokens = 16
	}
	return c
}

// Validate says which field is unusable.
func (c Config) Validate() error {
	d := c.defaults()
	host, _, err := net.SplitHostPort(d.Addr)
	if err != nil {
		return fmt.Errorf("server configuration: Addr %q: %w", d.Addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("server configuration: Addr %q is not a loopback address, and there are no API keys to protect it", d.Addr)
	}
	for name, v := range map[string]int64{"MaxBodyBytes": d.MaxBodyBytes, "MaxTrainingBytes": d.MaxTrainingBytes, "MaxAdapterBytes": d.MaxAdapterBytes,
		"DrainTimeout": int64(d.DrainTimeout), "DefaultMaxTokens": int64(d.DefaultMaxTokens)} {
		if v < 0 {
			return fmt.Errorf("server configuration: %s = %d is negative", name, v)
		}
	}
	return nil
}
