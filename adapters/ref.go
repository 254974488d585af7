package adapters

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Ref is a parsed reference to an adapter or a mix of adapters: `name`, `name@7`, `tenant/name`, `a:0.7+b:0.3`.
type Ref struct {
	Parts []RefPart // at least one
}

// RefPart is one adapter of a reference.
type RefPart struct {
	Tenant string // "": the caller's own
	Name   string
	Number int     // 0: the live version
	Weight float64 // 1 where none is written
}

// MaxMix is the largest number of adapters in one mix.
const MaxMix = 16

// ParseRef reads a reference. A part is [tenant/]name[@number][:weight], parts are joined by +; weights are plain
// decimals, also negative. It returns ErrInvalidName, saying which part is wrong and why.
func ParseRef(s string) (Ref, error) {
	fields := strings.Split(s, "+")
	if len(fields) > MaxMix {
		return Ref{}, fmt.Errorf("%w: a mix of %d adapters, at most %d are allowed", ErrInvalidName, len(fields), MaxMix)
	}
	var r Ref
	for _, f := range fields {
		p, err := parsePart(f)
		if err != nil {
			if len(fields) > 1 {
				err = fmt.Errorf("part %s of the mix: %w", quote(f), err)
			}
			return Ref{}, err
		}
		r.Parts = append(r.Parts, p)
	}
	return r, nil
}

func parsePart(s string) (RefPart, error) {
	p := RefPart{Weight: 1}
	name, weight, weighted := strings.Cut(s, ":")
	if weighted {
		w, err := strconv.ParseFloat(weight, 64)
		if err != nil || strings.Trim(weight, "-0123456789.") != "" || math.IsInf(w, 0) || math.Abs(w) > 1e6 {
			return p, fmt.Errorf("%w: the weight %s is not a decimal number (like 0.7)", ErrInvalidName, quote(weight))
		}
		p.Weight = w
	}
	name, number, numbered := strings.Cut(name, "@")
	if numbered {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || strconv.Itoa(n) != number {
			return p, fmt.Errorf("%w: the version %s is not a number from 1 on", ErrInvalidName, quote(number))
		}
		p.Number = n
	}
	if tenant, rest, ok := strings.Cut(name, "/"); ok {
		if err := CheckName(tenant); err != nil {
			return p, fmt.Errorf("tenant: %w", err)
		}
		p.Tenant, name = tenant, rest
	}
	p.Name = name
	return p, CheckName(name)
}

// String is the reference in its canonical form; ParseRef reads it back.
func (r Ref) String() string {
	var b strings.Builder
	for i, p := range r.Parts {
		if i > 0 {
			b.WriteByte('+')
		}
		if p.Tenant != "" {
			b.WriteString(p.Tenant + "/")
		}
		b.WriteString(p.Name)
		if p.Number != 0 {
			b.WriteString("@" + strconv.Itoa(p.Number))
		}
		if p.Weight != 1 {
			b.WriteString(":" + weightString(p.Weight))
		}
	}
	return b.String()
}

func weightString(w float64) string { return strconv.FormatFloat(w, 'f', -1, 64) }

// MaxName is the longest name, in bytes.
const MaxName = 63

// CheckName says (ErrInvalidName) why s cannot be a name of an adapter, tenant, job, file or value. Good names match
// ^[a-z0-9][a-z0-9._-]{0,62}$ and have no two dots in a row.
func CheckName(s string) error {
	why := ""
	switch {
	case s == "":
		return fmt.Errorf("%w: it is empty", ErrInvalidName)
	case len(s) > MaxName:
		why = fmt.Sprintf("it has %d characters, at most %d are allowed", len(s), MaxName)
	case strings.IndexFunc(s, badRune) >= 0:
		why = "only a-z, 0-9, dot, hyphen and underscore are allowed"
	case strings.IndexByte("._-", s[0]) >= 0:
		why = "it must begin with a letter or digit"
	case strings.Contains(s, ".."):
		why = "it has two dots in a row"
	default:
		return nil
	}
	return fmt.Errorf("%w %s: %s", ErrInvalidName, quote(s), why)
}

// CheckNames checks a tenant, which may be "", and further names.
func CheckNames(tenant string, names ...string) error {
	if err := CheckName(Owner(tenant)); err != nil {
		return fmt.Errorf("tenant: %w", err)
	}
	for _, n := range names {
		if err := CheckName(n); err != nil {
			return err
		}
	}
	return nil
}

func badRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}

// quote makes foreign text fit for an error message.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strconv.Quote(s)
}
