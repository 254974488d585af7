// Package safetensors reads and writes the safetensors file format.
//
// A file is eight bytes of little-endian header length, a JSON header, and the tensors' bytes back to back:
//
//	{"__metadata__": {"key": "value"}, "name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}}
//
// [Open] believes nothing: the header's length is checked against the file before it is read, names must be unique,
// the shape must explain the byte count, and the tensors must cover the data section exactly, without gap or overlap.
// After a successful Open every [Info] lies inside the file. Open reads the header only; [File.Tensor] reads one
// tensor. A caller that maps the file takes the bytes himself at Info.Offset.
//
// [Write] streams and is deterministic: equal tensors and metadata give equal bytes, those of the reference
// implementation (wider dtypes first, so that all stay aligned, then by name).
//
// The package depends on no other package of the project.
package safetensors
