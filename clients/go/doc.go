// Package clients holds OpenAI's own Go client against a running server: OPENAI_BASE_URL and OPENAI_API_KEY say where it is, EXAMPLES
// is a JSONL file to train on.
package clients
