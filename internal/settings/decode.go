package settings

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// decoder reads one source into values and collects what is wrong with it.
type decoder struct {
	place  func(line int) string
	named  string         // the key that the place says already
	lines  map[string]int // where each key was found
	faults []error
}

const (
	mask    = "********" // for what must not be seen
	noAlias = "must not be an alias: write the value out, and quote a text that begins with *"
)

func (d *decoder) refuse(line int, key, value, rule string) {
	if key == d.named {
		key = ""
	}
	d.faults = append(d.faults, &KeyError{Place: d.place(line), Key: key, Value: value, Rule: rule})
}

// refuseShape does not show a text that stands where a list or mapping belongs: a proxy's URL with its password, maybe.
func (d *decoder) refuseShape(n *yaml.Node, key, rule string) {
	switch n.Kind { //nolint:exhaustive // documents and aliases do not come here
	case yaml.MappingNode:
		rule += ", not a mapping"
	case yaml.SequenceNode:
		rule += ", not a list"
	default:
		rule += ", not a text"
	}
	d.refuse(n.Line, key, "", rule)
}

func quoted(text string) string {
	if runes := []rune(text); len(runes) > 80 {
		text = string(runes[:80]) + "…"
	}
	return strconv.Quote(text)
}

var plainName = regexp.MustCompile(`^[\w./-]+$`)

// nameOf shows a key of a mapping: on one line, whatever it is.
func nameOf(text string) string {
	if plainName.MatchString(text) {
		return text
	}
	return quoted(text)
}

// textNode makes YAML of a value that stands in a variable or flag: one text as it is, a list of such texts also with
// commas only, anything else written as YAML. nil: refused.
func (d *decoder) textNode(l leaf, text string) *yaml.Node {
	t := l.value.Type()
	str := func(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text} }
	trimmed := strings.TrimSpace(text)
	switch {
	case isScalar(t):
		return str(text)
	case t.Kind() == reflect.Slice && !readsYAML(t) && isScalar(t.Elem()) && !strings.HasPrefix(trimmed, "["):
		list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		if trimmed != "" {
			for item := range strings.SplitSeq(text, ",") {
				list.Content = append(list.Content, str(strings.TrimSpace(item)))
			}
		}
		return list
	}
	root, fault := parse([]byte(text))
	switch {
	case fault != nil:
		d.refuse(0, l.key, "", fault.Rule)
	case root == nil:
		d.refuse(0, l.key, "", rule(l.key, t))
	}
	return root
}

func (d *decoder) section(key string, n *yaml.Node, v reflect.Value, secret string) {
	if n.Kind != yaml.MappingNode {
		d.refuseShape(n, key, "must be a mapping")
		return
	}
	known := fields(v.Type(), secret)
	inSection := func(name string) string { return join(key, nameOf(name)) }
	d.pairs(key, n, inSection, func(name, value *yaml.Node) {
		at := slices.IndexFunc(known, func(f field) bool { return f.name == name.Value })
		if at < 0 {
			var keys []string
			for _, f := range known {
				keys = append(keys, join(key, f.name))
			}
			d.refuse(name.Line, inSection(name.Value), "", unknownKey+meant(join(key, name.Value), keys))
			return
		}
		below := join(key, name.Value)
		d.lines[below] = name.Line
		d.value(below, value, v.FieldByIndex(known[at].index), known[at].secret)
	})
}

// pairs calls read for each key of a mapping that is a text and comes for the first time.
func (d *decoder) pairs(key string, n *yaml.Node, path func(name string) string, read func(name, value *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		switch line, seen := first[name.Value]; {
		case name.Kind != yaml.ScalarNode || name.Style&yaml.TaggedStyle != 0:
			d.refuse(name.Line, key, "", "must have plain texts as keys")
		case name.ShortTag() == "!!merge":
			d.refuse(name.Line, key, "", "must not merge a mapping (<<): write the keys out")
		case seen:
			d.refuse(name.Line, path(name.Value), "", "is set twice: first on line "+strconv.Itoa(line))
		default:
			first[name.Value] = name.Line
			read(name, value)
		}
	}
}

func (d *decoder) value(key string, n *yaml.Node, v reflect.Value, secret string) {
	t := v.Type()
	switch {
	case n.Kind == yaml.AliasNode:
		d.refuse(n.Line, key, "", noAlias)
	case n.Style&yaml.TaggedStyle != 0: // the tag is not shown: it may be a password that begins with !
		d.refuse(n.Line, key, "", "must not have a YAML tag (!): quote a text that begins with !")
	case isNull(n) && t.Kind() == reflect.Pointer:
		v.SetZero()
	case isNull(n):
		d.refuse(n.Line, key, "", "has no value: "+rule(key, t)+"; leave the key out for the default")
	case readsYAML(t):
		d.custom(key, n, v, secret)
	case isSection(t):
		d.section(key, n, v, secret)
	case isScalar(t) && t.Kind() != reflect.Pointer:
		d.scalar(key, n, v, secret)
	default:
		d.composite(key, n, v, secret)
	}
}

func (d *decoder) composite(key string, n *yaml.Node, v reflect.Value, secret string) {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		d.value(key, n, v.Elem(), secret)
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		v.Set(reflect.MakeSlice(t, len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			d.value(key+"["+strconv.Itoa(i)+"]", item, v.Index(i), secret)
		}
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		v.Set(reflect.MakeMapWithSize(t, len(n.Content)/2))
		inMap := func(name string) string { return key + "[" + nameOf(name) + "]" }
		d.pairs(key, n, inMap, func(name, value *yaml.Node) {
			k, item := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
			before := len(d.faults)
			d.value(inMap(name.Value), name, k, "")
			d.value(inMap(name.Value), value, item, secret)
			if len(d.faults) == before {
				v.SetMapIndex(k, item)
			}
		})
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Map:
		d.refuseShape(n, key, rule(key, t))
	default:
		d.custom(key, n, v, secret)
	}
}

// custom leaves the value to its own UnmarshalYAML, or to the library for what this package does not know.
func (d *decoder) custom(key string, n *yaml.Node, v reflect.Value, secret string) {
	err := n.Decode(v.Addr().Interface())
	if err == nil {
		return
	}
	said := []string{err.Error()}
	if many := (*yaml.TypeError)(nil); errors.As(err, &many) {
		said = many.Errors
	}
	for _, text := range said {
		line, text := cutLine(text, n.Line)
		if secret != "" {
			text = "is not valid"
		}
		d.refuse(line, key, "", text)
	}
}

func (d *decoder) scalar(key string, n *yaml.Node, v reflect.Value, secret string) {
	if n.Kind != yaml.ScalarNode {
		d.refuseShape(n, key, rule(key, v.Type()))
		return
	}
	if secret != "" && strings.Contains(n.Value, mask) {
		d.refuse(n.Line, key, mask, "is a secret as it is printed, not the secret")
		return
	}
	if err := setText(key, n.Value, v); err != nil {
		shown, broken := quoted(n.Value), rule(key, v.Type())
		switch {
		case secret != "":
			shown = mask
		case readsText(v.Type()) && v.Type() != prefixType:
			broken += ": " + err.Error()
		}
		d.refuse(n.Line, key, shown, broken)
	}
}

var errMalformed = errors.New("is malformed")

// setText reads a scalar. Its numbers are decimal: YAML's octal 010 and 1e3 surprise people.
func setText(key, text string, v reflect.Value) error {
	if !utf8.ValidString(text) {
		return errMalformed
	}
	if reader, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		return reader.UnmarshalText([]byte(text))
	}
	switch k := v.Kind(); {
	case v.Type() == durationType:
		wait, err := time.ParseDuration(text)
		v.SetInt(int64(wait))
		return err
	case v.CanInt():
		digits, shift := cutUnit(key, text)
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n<<shift>>shift != n || v.OverflowInt(n<<shift) {
			return errMalformed
		}
		v.SetInt(n << shift)
	case v.CanUint():
		digits, shift := cutUnit(key, text)
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || n<<shift>>shift != n || v.OverflowUint(n<<shift) {
			return errMalformed
		}
		v.SetUint(n << shift)
	case v.CanFloat():
		n, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return errMalformed
		}
		v.SetFloat(n)
	case k == reflect.Bool:
		if text != "true" && text != "false" {
			return errMalformed
		}
		v.SetBool(text == "true")
	default:
		v.SetString(text)
	}
	return nil
}

var units = []struct {
	name  string
	shift int
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}}

// cutUnit takes KiB and its like off a number of bytes.
func cutUnit(key, text string) (digits string, shift int) {
	for _, u := range units {
		if digits, found := strings.CutSuffix(text, u.name); found && isBytes(key) {
			return digits, u.shift
		}
	}
	return text, 0
}

// rule says what a value of the type has to be.
func rule(key string, t reflect.Type) string {
	switch k := kind(key, t); {
	case t.Kind() == reflect.Pointer:
		return rule(key, t.Elem())
	case k == "duration":
		return "must be a duration such as 10s or 5m"
	case k == "network":
		return "must be a network such as 10.0.0.0/8"
	case readsText(t), readsYAML(t):
		return "must be a valid " + k
	case k == "number of bytes":
		return "must be a number of bytes such as 65536, 256KiB or 8GiB" + between(t)
	case k == "whole number":
		return "must be a whole number" + between(t)
	case k == "number":
		return "must be a number such as 0.5"
	case k == "true or false":
		return "must be true or false"
	case strings.HasPrefix(k, "list"):
		return "must be a list"
	default:
		return "must be a " + k
	}
}

// between is the range of a type that is narrower than people expect.
func between(t reflect.Type) string {
	zero := reflect.Zero(t)
	switch {
	case zero.CanUint():
		return fmt.Sprintf(" from 0 to %d", uint64(math.MaxUint64)>>(64-t.Bits()))
	case t.Bits() < 64:
		return fmt.Sprintf(" from %d to %d", math.MinInt64>>(64-t.Bits()), math.MaxInt64>>(64-t.Bits()))
	}
	return ""
}
