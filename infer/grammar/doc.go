// Package grammar restricts what a model writes: to the JSON texts that satisfy a JSON Schema, to JSON objects, to the texts of a regular
// expression, or to a choice of texts.
//
// # Life of one text
//
// [Compile] (or [Object], [Regex], [Choice]) makes a [Grammar]: a pushdown automaton over bytes, of one deterministic automaton a kind of value
// that call each other. [Vocabulary.Bind] joins it with a model's tokens. A [Matcher] follows one text: its Mask says which tokens may come
// next, its Accept is told which one came. The end of the text is allowed exactly where the text is complete.
//
// # Masks
//
// A state's mask is found by walking the tree of all tokens once, as far as the state's own rule goes, and kept; a rule that calls nothing (strings,
// numbers) shares its masks with equal rules of other grammars. What tokens do behind the end of a rule depends on what called it:
// only the few tokens that get so far are followed there. Masks of whole configurations are kept too, so that in use most are copied.
//
// # JSON Schema
//
// Draft 2020-12. Understood: boolean schemas, type, enum, const, anyOf, allOf, oneOf (where alternatives are seen to be disjoint), $ref to places within
// the schema, $defs, $anchor; properties, required, additionalProperties, patternProperties, propertyNames, minProperties, maxProperties;
// items, prefixItems, minItems, maxItems; minLength, maxLength, pattern, format; minimum, maximum, exclusiveMinimum, exclusiveMaximum,
// multipleOf. Other assertions of the draft are refused, other words are annotations. As format these are asserted: date, time,
// date-time, duration, email, hostname, ipv4, ipv6, uuid, uri.
//
// As the draft has it, a keyword says nothing of values of another type: properties without type "object" admits strings and numbers, too.
//
// Every text that a grammar admits satisfies its schema. Not every text that satisfies the schema is admitted:
//   - Properties come in the order of the schema, those without a name in it last.
//   - Between parts there is at most one space, or a line break and up to 16 spaces (behind a colon: a space), and none around the whole.
//   - Numbers have up to 18 digits before the point, 15 behind and 2 in the exponent, more where bounds need them; with bounds or multipleOf there
//     is no exponent. Integers are written without point and exponent.
//   - Strings are UTF-8. With a pattern, a format, or as further property names, only characters that must be are escaped; surrogates are always paired.
//   - Formats are asserted by expressions for their usual part.
//   - Where dozens of alternatives are arrays, objects, or strings with patterns, a mask may hold, of all but the first ones, tokens of one byte alone.
//
// # Invariants
//
//   - Every state leads to a complete text, so that a matcher never gets stuck where each byte is a token.
//   - Grammars are immutable. What Bound and Vocabulary remember is bounded, and changes speed alone.
package grammar
