// Package keys keeps the API keys of a registry: who may ask, for which tenant, in which role.
//
// # Life of a key
//
// Create draws a secret, hands it out once and keeps its SHA-256. Find hashes what a request brings and compares. Revoke removes it.
//
// # Invariants
//
//   - A secret is nowhere but with who created it; the registry holds digests.
//   - All keys of a registry are one value of its system tenant, replaced by its revision, so that two who change it lose nothing.
//   - What Find remembers is at most Fresh old, unless the store is away: then what was known last goes on to hold,
//     and while it hangs no more than one request waits for it.
//   - While there are keys, one of them is an administrator's.
package keys
