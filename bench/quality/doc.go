// Command quality trains many adapters on one task and measures each on held-out examples: a sweep of learning rates, and what basis, rank and the gradient's
// correction make of the loss. It also writes the tokens, their order and the base's weights for peft_gsm8k.py, so that both train on the same.
// docs/quality.md has the method and the tables. Its lines are CSV and are flushed, so that a run that is cut keeps what it has.
package main
