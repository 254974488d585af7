// Gen writes the assembly of package simd and its Go declarations, for AVX-512 and for AVX2 with FMA.
//
//	go generate ./kernels/cpu/simd   (or go run ./gen in the directory of package simd)
//
// Life of a kernel: a function here (ntTile, nnTile, the methods of gen for vectors) prints one TEXT block for an instruction set, an
// element type and a tile into an out, which collects the assembly of a file and the Go declarations that go with it; tables prints
// the lists of tiles by which package simd finds the kernels; generate gives all files, and main writes them to the current directory.
//
// Invariants:
//   - The output depends on this package alone. A test holds the files of package simd against it.
//   - Every kernel keeps the order of operations that package simd promises, whatever its tile.
//   - Nothing is read or written beyond the last element of a row: tails go through masks or padded copies on the stack.
package main
