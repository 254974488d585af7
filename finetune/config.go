package finetune

import (
	"fmt"
	"log/slog"
	"time"

	"bhive/adapters"
	"bhive/infer"
)

// Config is how a Manager works.
type Config struct {
	Trainer TrainerConfig
	Limits  Limits
	// Waiting is the most jobs that may be queued; default: 64. Where so many are, a tenant that has less than its share of them, as many tenants
	// as wait, may still queue.
	Waiting int
	// Unfinished is the most jobs of a tenant that have not ended, those that are paused among them; default: 128.
	Unfinished int
	// Ended is how many of a tenant's jobs that have ended are kept, with their events; default: 1000. All are that ended within Recent (default: 7 days),
	// which must be as long as anything counts by them.
	Ended  int
	Recent time.Duration
	// Turn is how long a job may have its lane while a tenant without one waits; default: 10 minutes. A tenant with two lanes more than one that
	// waits gives one up at once.
	Turn time.Duration
	// CheckpointEvery is the time between durable checkpoints of a running job; default: 1 minute. There is one at a pause and at
	// shutdown too.
	CheckpointEvery time.Duration
	// ProgressEvery is the least time between two progress events of a job; default: 250 ms. Of one that runs for hours it is a ten-thousandth of that.
	ProgressEvery time.Duration
	// Shutdown is how long Run, when it ends, waits for the engine to let it copy what runs; default: 10 s.
	Shutdown time.Duration
	// Worker is this process's name among those that share the store; default: "bhive". A job of a worker that has not been
	// heard of for TakeOver (default: 2 minutes) is taken over; those of the same name are, at once.
	Worker   string
	TakeOver time.Duration
}

// SetDefaults fills in what is zero.
func (c *Config) SetDefaults() {
	c.Limits.setDefaults()
	setDefault(&c.Waiting, 64)
	setDefault(&c.Unfinished, 128)
	setDefault(&c.Ended, 1000)
	setDefault(&c.Recent, 7*24*time.Hour)
	setDefault(&c.Turn, 10*time.Minute)
	setDefault(&c.CheckpointEvery, time.Minute)
	setDefault(&c.ProgressEvery, 250*time.Millisecond)
	setDefault(&c.Shutdown, 10*time.Second)
	setDefault(&c.Worker, "bhive")
	setDefault(&c.TakeOver, 2*time.Minute)
}

// Validate names a field that is out of range.
func (c Config) Validate() error {
	if c.Waiting < 1 || c.Unfinished < 1 || c.Ended < 1 || c.CheckpointEvery < 0 || c.ProgressEvery < 0 || c.Shutdown < 0 || c.Turn < 0 || c.Recent < 0 || c.TakeOver < time.Second {
		return fmt.Errorf("finetune: waiting, unfinished and ended must be at least 1, take-over at least 1 s, and no time below 0: %+v", c)
	}
	return nil
}

// Deps are what a Manager works with.
type Deps struct {
	Model    *infer.Model
	Registry *adapters.Registry // over the store, too
	Encoder  Encoder
	Wake     func()       // called when Ready becomes true; may be nil
	Log      *slog.Logger // of what nobody else hears; nil: slog.Default()
}
