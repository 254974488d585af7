// Package devicetest opens the device that a package's tests run on: -device cpu or cuda, -precision float32 or bfloat16.
package devicetest
