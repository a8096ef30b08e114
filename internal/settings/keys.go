package settings

import (
	"cmp"
	"encoding"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Key is one setting, for documentation and for tests that compare a file with the defaults.
type Key struct {
	Path    string // dotted
	Kind    string // "duration", "list of network", ...
	Default string // its value in the struct given, as YAML on one line, masked where it is secret
}

// Keys lists the settings of a struct, or of what a pointer points to, in its order.
func Keys(cfg any) []Key {
	var keys []Key
	for _, l := range leaves(reflect.Indirect(reflect.ValueOf(cfg))) {
		keys = append(keys, Key{Path: l.key, Kind: kind(l.key, l.value.Type()), Default: oneLine(l)})
	}
	return keys
}

// Changed lists the keys whose values differ between two structs of one type. Lists and mappings differ as a whole;
// none and an empty one are the same.
func Changed(before, after any) []string {
	was, is := leaves(reflect.Indirect(reflect.ValueOf(before))), leaves(reflect.Indirect(reflect.ValueOf(after)))
	var changed []string
	for i := range was {
		if !same(was[i].value, is[i].value) {
			changed = append(changed, was[i].key)
		}
	}
	return changed
}

func same(a, b reflect.Value) bool {
	if k := a.Kind(); (k == reflect.Slice || k == reflect.Map) && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// leaf is one setting in a struct.
type leaf struct {
	key    string
	value  reflect.Value
	secret string
}

func leaves(section reflect.Value) []leaf {
	var out []leaf
	for _, f := range fields(section.Type(), "") {
		value := section.FieldByIndex(f.index)
		if !isSection(value.Type()) {
			out = append(out, leaf{f.name, value, f.secret})
			continue
		}
		for _, below := range leaves(value) {
			out = append(out, leaf{join(f.name, below.key), below.value, cmp.Or(below.secret, f.secret)})
		}
	}
	return out
}

// field is a struct's field as YAML sees it.
type field struct {
	name      string
	index     []int
	secret    string // "", "true" or "url"; what is below has it too
	omitEmpty bool
}

func fields(t reflect.Type, secret string) []field {
	var out []field
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		inline := slices.Contains(strings.Split(options, ","), "inline")
		mode := cmp.Or(f.Tag.Get("secret"), secret)
		switch {
		case name == "-", !f.IsExported() && !inline:
		case inline && isSection(f.Type):
			for _, inner := range fields(f.Type, mode) {
				inner.index = append(slices.Clone(f.Index), inner.index...)
				out = append(out, inner)
			}
		default:
			out = append(out, field{cmp.Or(name, strings.ToLower(f.Name)), f.Index, mode, strings.Contains(options, "omitempty")})
		}
	}
	return out
}

func join(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
)

func readsYAML(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[yaml.Unmarshaler]())
}

func readsText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// isSection says that the keys below are settings of their own.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !readsYAML(t) && !readsText(t)
}

// isScalar says that the value is one text.
func isScalar(t reflect.Type) bool {
	switch {
	case readsYAML(t):
		return false
	case readsText(t):
		return true
	case t.Kind() == reflect.Pointer:
		return isScalar(t.Elem())
	}
	return reflect.Bool <= t.Kind() && t.Kind() <= reflect.Float64 || t.Kind() == reflect.String
}

func isBytes(key string) bool { return strings.HasSuffix(key, "_bytes") }

func isWhole(t reflect.Type) bool { return reflect.Int <= t.Kind() && t.Kind() <= reflect.Uintptr }

func kind(key string, t reflect.Type) string {
	switch {
	case t == durationType:
		return "duration"
	case t == prefixType:
		return "network"
	case readsYAML(t), readsText(t):
		return strings.ToLower(t.Name())
	case isWhole(t) && isBytes(key):
		return "number of bytes"
	case isWhole(t):
		return "whole number"
	}
	switch t.Kind() { //nolint:exhaustive // what else there is counts as text
	case reflect.Pointer:
		return kind(key, t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice, reflect.Array:
		return "list of " + kind("", t.Elem())
	case reflect.Map, reflect.Struct:
		return "mapping"
	default:
		return "text"
	}
}
