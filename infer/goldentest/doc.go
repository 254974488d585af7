// Package goldentest reads references that Transformers and PEFT made: training runs with their examples and bases, and where SmolLM2's lie.
package goldentest
