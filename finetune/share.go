package finetune

import (
	"context"
	"slices"
	"time"
)

// start takes up queued jobs while lanes are free, and where none is has those with more than their share give one up. Jobs of one name follow each
// other, so that each goes on from the one before.
func (m *Manager) start(ctx context.Context) {
	for ctx.Err() == nil {
		active := m.leaving
		lanes := map[string]int{} // by tenant
		for _, j := range m.jobs {
			if j.busy() {
				active++
				lanes[j.public.Tenant]++
			}
		}
		next := m.next(lanes)
		if next == nil {
			return
		}
		if active >= m.c.Trainer.Lanes {
			m.share(next, lanes)
			return
		}
		m.begin(ctx, next)
	}
}

// next is the queued job that comes next: of the tenant with the fewest lanes, and then the one that has waited longest.
func (m *Manager) next(lanes map[string]int) *job {
	var queued []*job
	for _, j := range m.jobs {
		if !j.busy() && j.public.State == Queued && !j.blocked {
			queued = append(queued, j)
		}
	}
	since := func(j *job) time.Time {
		if j.waits.IsZero() {
			return j.public.Created
		}
		return j.waits
	}
	slices.SortFunc(queued, func(a, b *job) int {
		if d := lanes[a.public.Tenant] - lanes[b.public.Tenant]; d != 0 {
			return d
		}
		return since(a).Compare(since(b))
	})
	all := m.list()
	for _, j := range queued {
		if !slices.ContainsFunc(all, func(o *job) bool {
			return o != j && o.public.Tenant == j.public.Tenant && o.public.Spec.Name == j.public.Spec.Name && o.public.State != Paused &&
				(o.busy() || o.public.Created.Before(j.public.Created))
		}) {
			return j
		}
	}
	return nil
}

// share has a job give its lane up, with its checkpoint, where another tenant waits: at once the newest of a tenant that would still have as many lanes,
// and after its turn, but not without a step, one that has no lane to spare, where the one that waits has none.
func (m *Manager) share(next *job, lanes map[string]int) {
	if m.leaving > 0 { // there is one soon
		return
	}
	own := lanes[next.public.Tenant]
	var from *job
	for _, j := range m.jobs {
		n := lanes[j.public.Tenant]
		spare := n >= own+2 || own == 0 && n == 1 && j.moved && time.Since(j.began) >= m.c.Turn
		if j.lane == nil || j.public.State != Running || j.stop != nil || j.ending || !spare {
			continue
		}
		if len(j.pending) > 0 { // the store is away: it would lose its steps since the last checkpoint
			continue
		}
		if from == nil || n > lanes[from.public.Tenant] || n == lanes[from.public.Tenant] && j.began.After(from.began) == (n > 1) {
			from = j
		}
	}
	if from == nil {
		return
	}
	from.waits = time.Now()
	m.halt(from, func(ctx context.Context, c *Checkpoint) error {
		return m.setAside(ctx, from, c, Queued, "gives its lane to another tenant")
	}, func(err error) {
		if err != nil {
			m.log.Warn("a job gives its lane up", "job", from.public.ID, "error", err)
		}
	})
}
