package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// suiteGroup is a schema of the public JSON Schema test suite with its instances.
type suiteGroup struct {
	Description string
	Schema      json.RawMessage
	Tests       []struct {
		Description string
		Data        json.RawMessage
		Valid       bool
	}
}

// spellings are the texts of a value in each order of its keys, numbers as briefly as can be, up to a number of texts.
func spellings(v *value, most int) []string {
	switch v.kind {
	case null:
		return []string{"null"}
	case boolean:
		return []string{fmt.Sprint(v.truth)}
	case text:
		return []string{quoteJSON(v.str)}
	case number:
		places, exact := v.rat.FloatPrec()
		if !exact || places > 30 || v.rat.Num().CmpAbs(new(big.Int).Exp(big.NewInt(10), big.NewInt(60), nil)) > 0 {
			return []string{v.literal}
		}
		return []string{v.rat.FloatString(places)}
	}
	var out []string
	var members func(done string, left []int)
	members = func(done string, left []int) {
		if len(out) >= most {
			return
		}
		if len(left) == 0 {
			if v.kind == array {
				out = append(out, "["+done+"]")
			} else {
				out = append(out, "{"+done+"}")
			}
			return
		}
		for i := range left {
			rest := append(append([]int{}, left[:i]...), left[i+1:]...)
			for _, s := range spellings(&v.list[left[i]], most) {
				next := done
				if next != "" {
					next += ","
				}
				if v.kind == object {
					next += quoteJSON(v.keys[left[i]]) + ":"
				}
				members(next+s, rest)
			}
			if v.kind == array {
				return
			}
		}
	}
	all := make([]int, len(v.list))
	for i := range all {
		all[i] = i
	}
	members("", all)
	return out
}

func readSuite(t *testing.T, pattern string) map[string][]suiteGroup {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatal("no suite", err)
	}
	out := map[string][]suiteGroup{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var groups []suiteGroup
		if err := json.Unmarshal(b, &groups); err != nil {
			t.Fatal(f, err)
		}
		out[strings.TrimSuffix(filepath.Base(f), ".json")] = groups
	}
	return out
}

// refusedGroups are those whose schema is not compiled: combinations that are not supported, identifiers of other documents, and false.
var refusedGroups = map[string]bool{
	"oneOf: oneOf":                                                                true,
	"oneOf: oneOf with base schema":                                               true,
	"oneOf: oneOf with boolean schemas, all true":                                 true,
	"oneOf: oneOf with boolean schemas, more than one true":                       true,
	"oneOf: oneOf complex types":                                                  true,
	"oneOf: oneOf with empty schema":                                              true,
	"oneOf: oneOf with required":                                                  true,
	"oneOf: oneOf with missing optional property":                                 true,
	"multipleOf: float division = inf":                                            true,
	"ref: remote ref, containing refs itself":                                     true,
	"ref: Recursive references between schemas":                                   true,
	"ref: ref creates new scope when adjacent to keywords":                        true,
	"ref: refs with relative uris and defs":                                       true,
	"ref: relative refs with absolute uris and defs":                              true,
	"ref: $id must be resolved against nearest parent, not just immediate parent": true,
	"ref: order of evaluation: $id and $ref":                                      true,
	"ref: order of evaluation: $id and $anchor and $ref":                          true,
	"ref: URN ref with nested pointer ref":                                        true,
	"ref: ref to if":                                                              true,
	"ref: ref to then":                                                            true,
	"ref: ref to else":                                                            true,
	"ref: ref with absolute-path-reference":                                       true,
	"anchor: Location-independent identifier with absolute URI":                   true,
	"anchor: Location-independent identifier with base URI change in subschema":   true,
	"anchor: same $anchor with different base uri":                                true,
	"additionalProperties: dependentSchemas with additionalProperties":            true,
}

// TestSuite holds every instance of the suite's files for the keywords that are claimed against the schema's grammar.
func TestSuite(t *testing.T) {
	refused, checked := 0, 0
	for file, groups := range readSuite(t, "testdata/suite/*.json") {
		for _, group := range groups {
			name := file + ": " + group.Description
			g, err := Compile(group.Schema)
			empty := err != nil && strings.Contains(err.Error(), "no value")
			if err != nil && !errors.Is(err, ErrSchema) {
				t.Errorf("%s: %v", name, err)
			}
			if err != nil && !empty {
				if refused++; !refusedGroups[name] {
					t.Errorf("%s is refused: %v", name, err)
				}
				continue
			}
			for _, test := range group.Tests {
				checked++
				accepted := ""
				if !empty {
					accepted = accepts(t, g, test.Data)
				}
				if (accepted != "") != test.Valid {
					t.Errorf("%s: %s: %s is valid: %v, accepted: %q", name, test.Description, test.Data, test.Valid, accepted)
				}
			}
		}
	}
	if checked < 600 || refused != len(refusedGroups) {
		t.Errorf("%d instances were checked, %d groups refused of %d", checked, refused, len(refusedGroups))
	}
}

// accepts is a spelling of a value that is in the grammar, "" where none is.
func accepts(t *testing.T, g *Grammar, data []byte) string {
	t.Helper()
	v, err := parseValue(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spellings(&v, 200) {
		if g.Accepts([]byte(s)) {
			return s
		}
	}
	return ""
}

// TestSuiteFormats: what is admitted as a format is valid, and much of what is valid is admitted.
func TestSuiteFormats(t *testing.T) {
	for format, groups := range readSuite(t, "testdata/suite/format/*.json") {
		valid, admitted := 0, 0
		for _, group := range groups {
			g, err := Compile(group.Schema)
			if err != nil {
				t.Fatal(err)
			}
			for _, test := range group.Tests {
				var s *string
				if json.Unmarshal(test.Data, &s) != nil || s == nil {
					continue
				}
				ok := accepts(t, g, test.Data) != ""
				switch {
				case test.Valid && ok:
					admitted++
				case !test.Valid && ok:
					t.Errorf("%s admits %s: %s", format, test.Data, test.Description)
				case test.Valid:
					t.Logf("%s does not admit %s: %s", format, test.Data, test.Description)
				}
				if test.Valid {
					valid++
				}
			}
		}
		if 3*admitted < valid {
			t.Errorf("%s admits %d of %d", format, admitted, valid)
		}
	}
}
