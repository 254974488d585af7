// Package toolcall reads the calls of tools that models write into their texts.
//
// Life of one text: Find looks at the model's chat template once and tells the Format of its calls. For each text a Parser takes the
// parts as they are generated and gives Pieces: what belongs to the content, and each call's name and then its arguments as they come.
// Where a call is forced, Prefix is put behind the prompt and given to the Parser first; what the model adds is the call's rest.
//
// Invariants:
//   - However a text is cut into parts, the pieces add up to the same.
//   - What is not a call of an offered tool is content, to the byte; only white space beside calls, and what follows the one call that
//     was allowed, is dropped.
//   - A name is given once and before the call's arguments.
package toolcall
