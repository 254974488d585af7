package adapters

import (
	"context"
	"encoding/json"
	"io"
	"time"
)

// Store keeps everything that outlives the process: blobs, versions and their live pointers, jobs, files, values and the
// basis. Two kinds exist: adapters/local and adapters/redis; adapters/storetest holds both to this contract.
//
// Every method is atomic: it happens as a whole or not at all, also across a crash, and is safe for concurrent use. Every record is
// owned by a tenant ("" is DefaultTenant); another tenant's record is ErrNotFound. Any method may return
// ErrStoreUnavailable, ErrClosed, ErrInvalidName (tenant, name or id) or the context's error.
type Store interface {
	// PutBlob stores what r yields. A blob that no version, file, job or basis refers to is garbage; GC's grace keeps
	// it for the call that is about to refer to it.
	PutBlob(ctx context.Context, tenant string, r io.Reader) (BlobInfo, error)
	// OpenBlob opens a blob that the tenant has put. Its content was checked when it was written; VerifyBlob checks again.
	OpenBlob(ctx context.Context, tenant, sha string) (BlobReader, error)

	// Publish registers v under the next number of (tenant, v.Name), moves the live pointer to it and announces it. Tenant, Number, Bytes and
	// CreatedAt are the store's to fill. The blob v.SHA256 must be the tenant's (ErrNotFound).
	Publish(ctx context.Context, tenant string, v Version, o PublishOptions) (Version, error)
	// Get returns a version; number 0 is the live one.
	Get(ctx context.Context, tenant, name string, number int) (Version, error)
	// List returns the tenant's (or AllTenants') adapters by tenant and name.
	List(ctx context.Context, tenant string) ([]Adapter, error)
	// Versions returns all versions of a name, oldest first.
	Versions(ctx context.Context, tenant, name string) ([]Version, error)
	// SetLive moves the live pointer (rollback) and returns the version now live.
	SetLive(ctx context.Context, tenant, name string, number int) (Version, error)
	// Delete removes one version, or with number 0 the name and all its versions. The live version alone cannot be
	// deleted while others remain (ErrConflict); deleting the only version deletes the name.
	Delete(ctx context.Context, tenant, name string, number int) error

	// Cursor is the present end of the change feed.
	Cursor(ctx context.Context) (string, error)
	// Watch returns the changes after cursor, oldest first, waiting for at least one; "" is the feed's beginning. The
	// feed spans all tenants: it is the engine's. A feed that was cut off beyond cursor gives ErrCursorLost.
	Watch(ctx context.Context, cursor string) ([]Change, error)

	// CreateJob adds a job (ErrExists). Rev and the times are the store's to fill.
	CreateJob(ctx context.Context, tenant string, j Job, events ...json.RawMessage) (Job, error)
	GetJob(ctx context.Context, tenant, id string) (Job, error)
	// ListJobs returns the tenant's (or AllTenants') jobs in the given states (none: all), oldest first.
	ListJobs(ctx context.Context, tenant string, states ...string) ([]Job, error)
	// UpdateJob replaces the job whose Rev is still j.Rev (else ErrConflict) and appends events, in one.
	UpdateJob(ctx context.Context, tenant string, j Job, events ...json.RawMessage) (Job, error)
	// DeleteJob removes a job and its events.
	DeleteJob(ctx context.Context, tenant, id string) error
	// AppendEvents adds to the job's log and returns the sequence number of the last event.
	AppendEvents(ctx context.Context, tenant, id string, events ...json.RawMessage) (int64, error)
	// Events returns at most limit (0: all) events with Seq > after, oldest first; it does not wait.
	Events(ctx context.Context, tenant, id string, after int64, limit int) ([]Event, error)
	// LastEvent is the sequence number of the job's last event, 0 where it has none.
	LastEvent(ctx context.Context, tenant, id string) (int64, error)

	// PutFile adds a file record (ErrExists) whose blob is the tenant's (ErrNotFound).
	PutFile(ctx context.Context, tenant string, f File) (File, error)
	GetFile(ctx context.Context, tenant, id string) (File, error)
	// ListFiles returns the tenant's (or AllTenants') files, oldest first.
	ListFiles(ctx context.Context, tenant string) ([]File, error)
	DeleteFile(ctx context.Context, tenant, id string) error

	// PutValue sets a small value and returns its new revision. rev is the revision it must have now: 0 absent (ErrExists),
	// AnyRev whatever, else that one (ErrConflict).
	PutValue(ctx context.Context, tenant, key string, value []byte, rev int64) (int64, error)
	// GetValue returns a value and its revision.
	GetValue(ctx context.Context, tenant, key string) ([]byte, int64, error)
	DeleteValue(ctx context.Context, tenant, key string) error

	// PutBasis records the basis of a base model, whose blob is DefaultTenant's. With replaces "" the first record stays and is
	// returned; otherwise it replaces the record with that fingerprint (ErrConflict).
	PutBasis(ctx context.Context, b BasisRecord, replaces string) (BasisRecord, error)
	GetBasis(ctx context.Context, baseHash string) (BasisRecord, error)

	// Export calls fn with every record of all tenants: bases, files, values, adapters, jobs. Each is as it was at one moment, not all of
	// them at the same. fn's error ends it and is returned.
	Export(ctx context.Context, fn func(Record) error) error
	// Import adds a record as another store had it, with its numbers, revision and times (ErrExists); a live adapter is announced as
	// published. Blobs that it refers to must be its tenant's (ErrNotFound). A value gets a new revision.
	Import(ctx context.Context, r Record) error

	// GC removes blobs that nothing refers to and that were put longer than grace ago.
	GC(ctx context.Context, grace time.Duration) (GCReport, error)
	// Ping says whether the store can serve.
	Ping(ctx context.Context) error
	// Close is idempotent.
	Close() error
}

// BlobPublisher is what a Store may offer besides: PutBlob and then Publish of that blob, in one transaction.
type BlobPublisher interface {
	// PublishBlob fills in the version's SHA256 too.
	PublishBlob(ctx context.Context, tenant string, r io.Reader, v Version, o PublishOptions) (Version, error)
}

// AnyRev makes PutValue overwrite.
const AnyRev = -1

// BlobInfo names a stored blob.
type BlobInfo struct {
	SHA256 string // hex
	Bytes  int64
}

// BlobReader is an open blob. It stays readable after the blob was collected.
type BlobReader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// PublishOptions are Publish's conditions and companions.
type PublishOptions struct {
	// CheckLive demands that the live version is ExpectLive; 0: that the name is free (ErrExists). Else ErrConflict.
	CheckLive  bool
	ExpectLive int
	// Job, where set, is updated in the same transaction as by UpdateJob, its Published set to "name@number".
	Job    *Job
	Events []json.RawMessage
}

// ChangeKind says what happened to an adapter.
type ChangeKind string

// The kinds of changes.
const (
	Published      ChangeKind = "published"       // version Number was added and is live
	LiveMoved      ChangeKind = "live_moved"      // version Number is live
	VersionDeleted ChangeKind = "version_deleted" // version Number is gone
	AdapterDeleted ChangeKind = "adapter_deleted" // the name and all its versions are gone
)

// Change is one entry of the change feed.
type Change struct {
	Cursor string     `json:"cursor"` // Watch goes on behind it
	Kind   ChangeKind `json:"kind"`
	Tenant string     `json:"tenant"`
	Name   string     `json:"name"`
	Number int        `json:"number,omitempty"`
	At     time.Time  `json:"at"`
}

// Job is the record of a long-running piece of work; its meaning is finetune's.
type Job struct {
	Tenant    string          `json:"tenant"`
	ID        string          `json:"id"`
	Kind      string          `json:"kind"`
	State     string          `json:"state"`
	Worker    string          `json:"worker,omitempty"`    // who runs it
	Heartbeat time.Time       `json:"heartbeat,omitzero"`  // when the worker was last seen
	Blobs     []string        `json:"blobs,omitempty"`     // blobs that the job keeps alive (checkpoints, examples)
	Published string          `json:"published,omitempty"` // "name@number", once it has published
	Data      json.RawMessage `json:"data,omitempty"`
	Rev       int64           `json:"rev"` // grows with every update
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// Event is one entry of a job's log.
type Event struct {
	Seq  int64           `json:"seq"` // 1, 2, …
	At   time.Time       `json:"at"`
	Data json.RawMessage `json:"data"`
}

// File is an uploaded file.
type File struct {
	Tenant    string    `json:"tenant"`
	ID        string    `json:"id"`
	Purpose   string    `json:"purpose"`
	Name      string    `json:"name"` // as the client called it: never a path on this machine
	SHA256    string    `json:"sha256"`
	Bytes     int64     `json:"bytes"`
	CreatedAt time.Time `json:"created_at"`
}

// BasisRecord says which basis a base model has.
type BasisRecord struct {
	BaseHash    string    `json:"base_hash"`
	Fingerprint string    `json:"fingerprint"`
	Method      Method    `json:"method"`
	Seed        uint64    `json:"seed"`
	R           int       `json:"r"`
	SHA256      string    `json:"sha256"` // of the basis file
	Bytes       int64     `json:"bytes"`
	CreatedAt   time.Time `json:"created_at"`
}

// GCReport says what GC removed.
type GCReport struct {
	Blobs int
	Bytes int64
}
