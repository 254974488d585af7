package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"bhive/adapters"
)

// readScript returns Redis' time (s, µs) and the hash fields that ARGV names by pairs of key index and field.
var readScript = redis.NewScript(`#!lua flags=no-writes
local out = redis.call('TIME')
for i = 1, #ARGV, 2 do
  out[#out + 1] = redis.call('HGET', KEYS[tonumber(ARGV[i])], ARGV[i + 1])
end
return out`)

// queryScript makes the reads that ARGV names by fours (command, key index, a, b; empty arguments are left out) at one moment. MULTI would do,
// but is refused when Redis is out of memory.
var queryScript = redis.NewScript(`#!lua flags=no-writes
local out = {}
for i = 1, #ARGV, 4 do
  local call = {ARGV[i], KEYS[tonumber(ARGV[i + 1])]}
  for j = 2, 3 do if ARGV[i + j] ~= '' then call[#call + 1] = ARGV[i + j] end end
  out[#out + 1] = redis.call(unpack(call))
end
return out`)

// commitBody makes a change. KEYS[1] is the commit's own key; ARGV is the latest time (µs), and then operations of four arguments: what, key
// index, a, b. All checks are made before the first write. It returns {'ok', result}, {'changed'} or {'late'}.
const commitBody = `
local done = redis.call('GET', KEYS[1])
if done then return {'ok', done} end
local t = redis.call('TIME')
if tonumber(t[1]) * 1000000 + tonumber(t[2]) > tonumber(ARGV[1]) then return {'late'} end
for i = 2, #ARGV, 4 do
  local op, key, a, b = ARGV[i], KEYS[tonumber(ARGV[i + 1])], ARGV[i + 2], ARGV[i + 3]
  if op == 'is' and redis.call('HGET', key, a) ~= b or op == 'has' and redis.call('HEXISTS', key, a) == 0
    or op == 'no' and redis.call('HEXISTS', key, a) == 1 then return {'changed'} end
end
local result = ''
for i = 2, #ARGV, 4 do
  local op, key, a, b = ARGV[i], KEYS[tonumber(ARGV[i + 1])], ARGV[i + 2], ARGV[i + 3]
  if op == 'hset' then redis.call('HSET', key, a, b)
  elseif op == 'hdel' then redis.call('HDEL', key, a)
  elseif op == 'del' then redis.call('DEL', key)
  elseif op == 'sadd' then redis.call('SADD', key, a)
  elseif op == 'rpush' then result = string.format('%.0f', redis.call('RPUSH', key, a))
  elseif op == 'count' then
    if redis.call('HINCRBY', key, a, b) <= 0 then redis.call('HDEL', key, a) end
  elseif op == 'announce' then
    local last, seq = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1), 0
    if last[1] then seq = tonumber(string.match(last[1][1], '^%d+')) end
    redis.call('XADD', key, 'MAXLEN', b, string.format('%.0f-%s%06d', seq + 1, t[1], tonumber(t[2])), 'change', a)
  end
end
redis.call('SET', KEYS[1], result, 'PX', 600000)
return {'ok', result}`

// A script with a first line of flags is refused as a whole where it could not write (memory, a read-only replica, a full disk). What
// frees memory may run even when there is none.
var (
	commitScript = redis.NewScript("#!lua" + commitBody)
	freeScript   = redis.NewScript("#!lua flags=allow-oom" + commitBody)
)

// at names a field of a hash.
type at struct {
	key, field string
	loose      bool // that it exists, or not, must stay true; its value may change
}

// snapshot is what a call read.
type snapshot struct {
	now    time.Time // Redis' clock
	values []any     // string or nil, in the order of reads
}

func (s snapshot) raw(i int) (string, bool) {
	v, ok := s.values[i].(string)
	return v, ok
}

// change collects a commit's operations.
type change struct {
	keys  []string
	index map[string]int
	args  []any
	frees bool
}

func newChange(tx string, deadline int64) *change {
	return &change{keys: []string{tx}, index: map[string]int{}, args: []any{deadline}}
}

func (c *change) add(op, key string, a, b any) {
	i, ok := c.index[key]
	if !ok {
		c.keys = append(c.keys, key)
		i = len(c.keys)
		c.index[key] = i
	}
	c.args = append(c.args, op, i, a, b)
}

func (c *change) set(key, field, value string)   { c.add("hset", key, field, value) }
func (c *change) unset(key, field string)        { c.add("hdel", key, field, "") }
func (c *change) del(key string)                 { c.add("del", key, "", "") }
func (c *change) push(key, value string)         { c.add("rpush", key, value, "") }
func (c *change) member(key, value string)       { c.add("sadd", key, value, "") }
func (c *change) count(key, field string, n int) { c.add("count", key, field, n) }

// update is one atomic change: fn decides on what reads gave and adds the writes; its error ends the call. It may run several times. The
// result is the length of the last list that was pushed to, or 0.
func (s *Store) update(ctx context.Context, doing string, reads []at, fn func(snapshot, *change) error) (int64, error) {
	result, err := s.tryUpdate(ctx, reads, fn)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, s.classify(ctx, err))
	}
	return result, nil
}

var errContended = fmt.Errorf("%w: too many changes at once", adapters.ErrStoreUnavailable)

func (s *Store) tryUpdate(parent context.Context, reads []at, fn func(snapshot, *change) error) (int64, error) {
	if err := s.usable(parent); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(parent, s.o.Timeout)
	defer cancel()
	giveUp, _ := ctx.Deadline()
	for attempt := 1; ; attempt++ {
		snap, err := s.read(ctx, reads)
		if err != nil {
			return 0, err
		}
		// Redis' clock was read before its answer came, so its deadline is never after ours.
		c := newChange(s.meta("tx:"+rand.Text()), snap.now.Add(time.Until(giveUp)).UnixMicro())
		for i, r := range reads {
			switch v, ok := snap.raw(i); {
			case !ok:
				c.add("no", r.key, r.field, "")
			case r.loose:
				c.add("has", r.key, r.field, "")
			default:
				c.add("is", r.key, r.field, v)
			}
		}
		checks := len(c.args)
		if err := fn(snap, c); err != nil || len(c.args) == checks {
			return 0, err
		}
		status, result, err := s.commit(ctx, c)
		switch {
		case err != nil:
			return 0, err
		case status == "ok":
			return result, nil
		case status == "late":
			return 0, fmt.Errorf("%w: Redis answered too late", adapters.ErrStoreUnavailable)
		}
		select {
		case <-ctx.Done():
			return 0, errContended
		case <-time.After(mathrand.N(time.Duration(min(attempt, 20)) * time.Millisecond)):
		}
	}
}

func (s *Store) read(ctx context.Context, reads []at) (snapshot, error) {
	c := newChange(s.meta("format"), 0)
	args := make([]any, 0, 2*len(reads))
	for _, r := range reads {
		c.add("", r.key, r.field, "")
		args = append(args, c.index[r.key], r.field)
	}
	var snap snapshot
	err := s.retry(ctx, false, func() error {
		out, err := readScript.Run(ctx, s.client, c.keys, args...).Slice()
		if err != nil {
			return err
		}
		if len(out) != len(reads)+2 {
			return fmt.Errorf("%w: Redis answered with %d values, not %d", adapters.ErrCorrupt, len(out), len(reads)+2)
		}
		sec, err1 := strconv.ParseInt(fmt.Sprint(out[0]), 10, 64)
		micros, err2 := strconv.ParseInt(fmt.Sprint(out[1]), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%w: Redis' time: %w", adapters.ErrCorrupt, err)
		}
		snap = snapshot{time.Unix(sec, micros*1000).UTC(), out[2:]}
		return nil
	})
	return snap, err
}

// query is one read among several.
type query struct {
	command, key string
	a, b         any // "" where there is none
}

// query makes reads at one moment. Answers are int64, string, []any or nil.
func (s *Store) query(ctx context.Context, queries ...query) ([]any, error) {
	c := newChange(s.meta("format"), 0)
	for _, q := range queries {
		c.add(q.command, q.key, q.a, q.b)
	}
	out, err := queryScript.Run(ctx, s.client, c.keys, c.args[1:]...).Slice()
	if err == nil && len(out) != len(queries) {
		err = fmt.Errorf("%w: Redis gave %d answers, not %d", adapters.ErrCorrupt, len(out), len(queries))
	}
	return out, err
}

// texts is an answer that is a list of strings.
func texts(answer any) []string {
	list, _ := answer.([]any)
	out := make([]string, 0, len(list))
	for _, v := range list {
		text, _ := v.(string)
		out = append(out, text)
	}
	return out
}

func (s *Store) commit(ctx context.Context, c *change) (status string, result int64, err error) {
	script := commitScript
	if c.frees {
		script = freeScript
	}
	err = s.retry(ctx, true, func() error {
		out, err := script.Run(ctx, s.client, c.keys, c.args...).StringSlice()
		if err != nil {
			return err
		}
		status = out[0]
		if len(out) > 1 && out[1] != "" {
			result, err = strconv.ParseInt(out[1], 10, 64)
		}
		return err
	})
	return status, result, err
}

// retry makes a call again whose connection failed: twice, or, where it may have reached Redis and the outcome matters, until ctx ends.
func (s *Store) retry(ctx context.Context, outcome bool, call func() error) error {
	sent := false
	for attempt := 1; ; attempt++ {
		err := call()
		if err == nil || !broken(err) || ctx.Err() != nil {
			return err
		}
		var op *net.OpError
		sent = sent || !errors.As(err, &op) || op.Op != "dial"
		if attempt >= 3 && !(outcome && sent) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-s.done:
			return err
		case <-time.After(time.Duration(min(attempt, 10)) * 10 * time.Millisecond):
		}
	}
}

// broken says whether an error is the connection's, and not Redis' answer.
func broken(err error) bool {
	var answer redis.Error
	return !errors.As(err, &answer) && !errors.Is(err, adapters.ErrCorrupt) && !errors.Is(err, redis.ErrClosed)
}

func (s *Store) usable(ctx context.Context) error {
	select {
	case <-s.done:
		return adapters.ErrClosed
	default:
		return ctx.Err()
	}
}

// view runs reads that need no clock. call may run several times.
func (s *Store) view(ctx context.Context, doing string, call func(context.Context) error) error {
	err := s.usable(ctx)
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, s.o.Timeout)
		defer cancel()
		err = s.retry(bounded, false, func() error { return call(bounded) })
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, s.classify(ctx, err))
	}
	return nil
}

var passed = []error{adapters.ErrNotFound, adapters.ErrExists, adapters.ErrConflict, adapters.ErrInvalidName, adapters.ErrCorrupt,
	adapters.ErrStoreUnavailable, adapters.ErrCursorLost, adapters.ErrClosed, adapters.ErrUnsupported}

// classify gives every error one of the package adapters' sentinels, or the caller's context's.
func (s *Store) classify(ctx context.Context, err error) error {
	for _, p := range passed {
		if errors.Is(err, p) {
			return err
		}
	}
	select {
	case <-s.done:
		return fmt.Errorf("%w: %w", adapters.ErrClosed, err)
	default:
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, redis.Nil):
		return adapters.ErrNotFound
	case strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return fmt.Errorf("%w: %w", adapters.ErrCorrupt, err)
	}
	return fmt.Errorf("%w: %w", adapters.ErrStoreUnavailable, err)
}
