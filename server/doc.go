// Package server answers HTTP: OpenAI's completions, chat and models over [infer.Engine] and its
// files and fine-tuning jobs over [finetune.Manager], bhive's own routes for training and
// versions over [finetune.Manager] and [adapters.Store], and metrics. openapi.yaml is its contract.
//
// # Life of one request
//
// The middlewares give it an id, a tenant, a log line and a size limit. A handler decodes the body (every error names its field), resolves the
// model to immutable versions, renders and tokenizes the prompt, submits it to the engine and writes what comes, whole or as server-sent
// events. When the client goes away its context ends, and with it the generation.
//
// # Invariants
//
//   - Every error has OpenAI's shape; the table in errors.go is the only place that maps errors to statuses.
//   - A tenant sees its own adapters, files and jobs alone; another's are answered word for word as if absent. Who asks is decided in
//     tenant.go alone: by the API key, or, while a registry has none and the address is a loopback one, everybody is one tenant.
//   - Nothing here touches a device: the package never imports kernels.
//   - Draining refuses new work with 503 and lets running streams end.
package server
