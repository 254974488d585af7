// Package local is the adapter store of a single process: blobs in content-addressed files, metadata in one bbolt
// database, both in a data directory:
//
//	DIR/store.db          records; its file lock keeps a second process out
//	DIR/blobs/ab/abcd…    blobs, named by their SHA-256
//	DIR/tmp/              blobs being written or removed; emptied by Open
//	DIR/reserve           room that deletions take when the disk is full
//
// # Life of a blob
//
// A blob is streamed into tmp and synced while it is hashed, each at its own pace, renamed to its place, its directory synced, and only
// then recorded as the tenant's in the database. Records refer to it in later transactions, PublishBlob's version in the same one. GC first deletes the
// records of blobs that nothing refers to, then moves their files to tmp, and removes them there.
//
// # Invariants
//
//   - A recorded blob has its whole, synced file. A file without a record is what a crash left, or what GC had no
//     time to remove; the next GC removes it.
//   - One transaction makes each change of records, with its entry of the change feed.
//   - Renaming a blob into place and recording it hold blobMu shared; GC holds it alone until the files are in tmp. So GC never meets a blob
//     that is in its place but not yet recorded, other than after a crash.
package local
