// Package demo embeds the demo model, a checkpoint in Hugging Face form. README.md says what it is.
package demo
