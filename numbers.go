package main

import (
	"fmt"
	"math"
	"reflect"
	"strconv"

	"github.com/alecthomas/kong"
)

// checkNumbers holds the flags that were given to the bounds in their tags: least:"1", most:"1", and above:"0", which is out of reach itself. Of a list each
// number is meant; a duration counts in nanoseconds. NaN and the infinities are refused everywhere.
func checkNumbers(flags []*kong.Flag) error {
	for _, f := range flags {
		if !f.Set {
			continue
		}
		for _, v := range numbers(f.Target) {
			if err := checkNumber(f, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// numbers are those of a flag's value.
func numbers(v reflect.Value) (list []reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		return numbers(v.Elem())
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			list = append(list, numbers(v.Index(i))...)
		}
	case v.CanInt() || v.CanUint() || v.CanFloat():
		list = append(list, v)
	}
	return list
}

func checkNumber(f *kong.Flag, v reflect.Value) error {
	x := v.Convert(reflect.TypeFor[float64]()).Float()
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Errorf("--%s must be a number, is %v", f.Name, v)
	}
	for _, bound := range []struct {
		tag, says string
		holds     func(limit float64) bool
	}{
		{"least", "at least", func(limit float64) bool { return x >= limit }},
		{"above", "above", func(limit float64) bool { return x > limit }},
		{"most", "at most", func(limit float64) bool { return x <= limit }},
	} {
		text := f.Tag.Get(bound.tag)
		if text == "" {
			continue
		}
		limit, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("--%s: its bound: %w", f.Name, err)
		}
		if !bound.holds(limit) {
			return fmt.Errorf("--%s must be %s %s, is %v", f.Name, bound.says, text, v)
		}
	}
	return nil
}
