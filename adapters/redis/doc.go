// Package redis is the adapter store of many servers: everything in one Redis (7 or later; a single server, Sentinel or Cluster), so that an
// adapter published by one server is live on all.
//
// # Layout
//
// All metadata carries the hash tag {PREFIX} and so lies in one slot, where scripts change it atomically; each blob has a slot of its own.
//
//	{PREFIX}:format         string    "1"
//	{PREFIX}:tenants        set       tenants that ever owned a record
//	{PREFIX}:names:T        hash      name → nameRecord; it stays when the name is deleted, so that numbers are never reused
//	{PREFIX}:versions:T/N   hash      number → adapters.Version
//	{PREFIX}:jobs:T         hash      id → adapters.Job
//	{PREFIX}:events:T/ID    list      events of a job; the index is the sequence number less one
//	{PREFIX}:files:T        hash      id → adapters.File
//	{PREFIX}:values:T       hash      key → revision (8 bytes, big-endian) and value
//	{PREFIX}:basis          hash      base hash → adapters.BasisRecord
//	{PREFIX}:blobs:T        hash      sha → blobRecord: the tenant has put it
//	{PREFIX}:refs           hash      T/sha → records that refer to it
//	{PREFIX}:contents       hash      sha → contentRecord: where the chunks are
//	{PREFIX}:holders        hash      sha → tenants that have put it
//	{PREFIX}:orphans        hash      id of chunks that no content names (yet) → when they were begun, µs; 0: to be removed
//	{PREFIX}:feed           stream    adapters.Change; the id is sequence-µs
//	{PREFIX}:tx:ID          string    result of a recent commit; expires
//	PREFIX:blob:{ID}        hash      index → chunk
//
// # Life of a change
//
// A call reads what it depends on, with Redis' clock, in one script, decides in Go, and commits with a second script that first checks that
// nothing read has changed since and then makes all writes, the entry of the change feed among them. Where something changed the call starts
// again. A commit carries an id, so that sending it again after a broken connection does not make it twice, and the time at which the
// caller will have given up: a Redis that was paused and wakes later refuses it.
//
// # Life of a blob
//
// Chunks go to a new key, announced among the orphans before; then one commit takes the key out of the orphans and names it as the
// content. OpenBlob fetches all chunks (into memory, or a nameless temporary file), and verifies sizes and SHA-256 before anybody reads.
// GC deletes the record of a blob that was put long ago and whose count of references is zero, both checked in the commit itself, so it is
// safe beside publications; then the chunks.
//
// # Redis away
//
// Every round trip is bounded by Options.Timeout; what fails gives adapters.ErrStoreUnavailable, and nothing has changed. One case cannot
// be told: Redis dies after it made a commit and before it answered, and is not back within the timeout. Records with revisions show it to
// whoever tries again (ErrConflict), and a publication on behalf of a job, made again, returns what the first one published.
//
// # Durability
//
// What was acknowledged is as durable as Redis' settings make it: appendonly yes and appendfsync always for all of it; with everysec a
// crash of Redis' machine (not of its process) may take the last second. maxmemory-policy must be noeviction. Open warns of anything else. A
// follower of the feed that saw changes which Redis then lost gets adapters.ErrCursorLost.
package redis
