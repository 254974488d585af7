package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"bhive/adapters"
)

// Role is what a key may do.
type Role string

// The roles.
const (
	Admin  Role = "admin"  // manages keys, reads metrics and reaches every tenant's adapters as tenant/name
	Tenant Role = "tenant" // its own tenant's adapters, files and jobs
)

// SystemTenant owns the registry's own values; no key belongs to it.
const SystemTenant = "bhive-system"

// Key is a key as it is kept.
type Key struct {
	ID      string    `json:"id"` // key-…, the public part of the secret
	SHA256  string    `json:"sha256"`
	Tenant  string    `json:"tenant"`
	Role    Role      `json:"role"`
	Name    string    `json:"name,omitempty"` // a note for whoever lists keys
	Created time.Time `json:"created_at"`
}

// prefix begins every secret: sk-bhive-, 16 hex digits that name the key, a hyphen and 64 hex digits.
const prefix = "sk-bhive-"

// maxName is the longest note, in bytes.
const maxName = 128

// newKey draws a key.
func newKey(tenant string, role Role, name string) (Key, string, error) {
	var b [40]byte
	if _, err := rand.Read(b[:]); err != nil {
		return Key{}, "", fmt.Errorf("drawing an API key: %w", err)
	}
	id := hex.EncodeToString(b[:8])
	secret := prefix + id + "-" + hex.EncodeToString(b[8:])
	sum := sha256.Sum256([]byte(secret))
	return Key{ID: "key-" + id, SHA256: hex.EncodeToString(sum[:]), Tenant: tenant, Role: role, Name: name, Created: time.Now().UTC().Truncate(time.Second)}, secret, nil
}

// idOf is the id that a secret names, or "".
func idOf(secret string) string {
	rest, ok := strings.CutPrefix(secret, prefix)
	id, _, cut := strings.Cut(rest, "-")
	if !ok || !cut {
		return ""
	}
	return "key-" + id
}

// check says what of a new key is unusable.
func check(tenant string, role Role, name string) error {
	if role != Admin && role != Tenant {
		return &FieldError{"role", fmt.Sprintf("must be admin or tenant, is %q", role)}
	}
	if err := adapters.CheckName(tenant); err != nil {
		return &FieldError{"tenant", err.Error()}
	}
	if tenant == SystemTenant {
		return &FieldError{"tenant", fmt.Sprintf("%q is reserved", tenant)}
	}
	if len(name) > maxName {
		return &FieldError{"name", fmt.Sprintf("has %d bytes, at most %d are allowed", len(name), maxName)}
	}
	return nil
}
