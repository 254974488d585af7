package adapters

import (
	"encoding/json"
	"fmt"
	"time"
)

// DefaultTenant owns what belongs to nobody in particular. A tenant of "" means this one in every call.
const DefaultTenant = "default"

// Owner is a tenant by its name: DefaultTenant where that is "".
func Owner(tenant string) string {
	if tenant == "" {
		return DefaultTenant
	}
	return tenant
}

// AllTenants in place of a tenant makes Store.List, ListJobs and ListFiles range over all of them.
const AllTenants = "*"

// Version is one immutable version of a tenant's adapter.
type Version struct {
	Tenant      string          `json:"tenant"`
	Name        string          `json:"name"`
	Number      int             `json:"number"` // 1, 2, …; never reused, not even after the name was deleted
	Rank        int             `json:"rank"`
	Alpha       float64         `json:"alpha"`
	Scaling     float64         `json:"scaling"`
	BasisDigest string          `json:"basis_digest"` // Basis.RowsDigest(Rank)
	BaseHash    string          `json:"base_hash"`
	Parent      int             `json:"parent,omitempty"`   // version that training began from; 0: none
	Training    json.RawMessage `json:"training,omitempty"` // summary of the training, finetune's
	SHA256      string          `json:"sha256"`             // of the blob, hex
	Bytes       int64           `json:"bytes"`              // of the blob
	CreatedAt   time.Time       `json:"created_at"`
}

// Adapter is a name and the versions under it.
type Adapter struct {
	Tenant    string    `json:"tenant"`
	Name      string    `json:"name"`
	Live      int       `json:"live"`     // number of the live version
	Versions  []int     `json:"versions"` // ascending
	Bytes     int64     `json:"bytes"`    // of all its versions' blobs
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Ref is the version's full name: tenant/name@number.
func (v Version) Ref() string { return fmt.Sprintf("%s/%s@%d", v.Tenant, v.Name, v.Number) }
