package settings

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Print writes the settings as YAML in the struct's order, each with a comment that says where it came from. Secrets
// are masked; without any, what is printed loads as what it was printed from.
func Print(w io.Writer, cfg any, origins *Origins) error {
	var p printer
	root := p.section("", reflect.Indirect(reflect.ValueOf(cfg)), "", origins)
	if p.err == nil {
		out := yaml.NewEncoder(w)
		out.SetIndent(2)
		p.err = errors.Join(out.Encode(root), out.Close())
	}
	if p.err != nil {
		return fmt.Errorf("print settings: %w", p.err)
	}
	return nil
}

// oneLine is a value as it is printed, or the fault that keeps it from being so.
func oneLine(l leaf) string {
	var p printer
	n := p.value(l.key, l.value, l.secret)
	if p.err != nil {
		return p.err.Error()
	}
	if n.Kind != yaml.ScalarNode {
		n.Style |= yaml.FlowStyle
	}
	text, err := yaml.Marshal(n)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// printer makes YAML of values and keeps the first error.
type printer struct{ err error }

func (p *printer) section(key string, v reflect.Value, secret string, origins *Origins) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range fields(v.Type(), secret) {
		below, value, name := join(key, f.name), v.FieldByIndex(f.index), p.scalar(f.name)
		if isSection(value.Type()) {
			out.Content = append(out.Content, name, p.section(below, value, f.secret, origins))
			continue
		}
		item := p.value(below, value, f.secret)
		commented := item
		if item.Kind != yaml.ScalarNode && item.Style&yaml.FlowStyle == 0 {
			commented = name // a block begins on the next line
		}
		commented.LineComment = "# " + origins.Of(below)
		out.Content = append(out.Content, name, item)
	}
	return out
}

func (p *printer) value(key string, v reflect.Value, secret string) *yaml.Node {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer && !v.IsNil():
		return p.value(key, v.Elem(), secret)
	case readsYAML(t), readsText(t):
	case isSection(t):
		return p.element(key, v, secret)
	case t.Kind() == reflect.Slice:
		return p.list(key, v, secret)
	case t.Kind() == reflect.Map:
		return p.mapping(key, v, secret)
	}
	switch {
	case secret == "url" && t.Kind() == reflect.String && !v.IsZero():
		return p.scalar(MaskURL(v.String()))
	case secret != "" && !v.IsZero():
		return p.scalar(mask)
	case t == durationType:
		return plain(duration(time.Duration(v.Int())))
	case isBytes(key) && v.CanUint():
		return plain(byteSize(v.Uint()))
	case isBytes(key) && v.CanInt() && v.Int() >= 0:
		return plain(byteSize(uint64(v.Int()))) //nolint:gosec // it is not negative
	}
	return p.scalar(v.Interface())
}

// element leaves out what an element of a list has not been given: its fields have no defaults but the zero value.
func (p *printer) element(key string, v reflect.Value, secret string) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range fields(v.Type(), secret) {
		value := v.FieldByIndex(f.index)
		switch kind := value.Kind(); {
		case value.IsZero() && (f.omitEmpty || kind == reflect.Slice || kind == reflect.Map || kind == reflect.Pointer):
		default:
			out.Content = append(out.Content, p.scalar(f.name), p.value(join(key, f.name), value, f.secret))
		}
	}
	return out
}

func (p *printer) list(key string, v reflect.Value, secret string) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode}
	if v.Len() == 0 || isScalar(v.Type().Elem()) {
		out.Style = yaml.FlowStyle
	}
	for i := range v.Len() {
		out.Content = append(out.Content, p.value(key+"["+strconv.Itoa(i)+"]", v.Index(i), secret))
	}
	return out
}

func (p *printer) mapping(key string, v reflect.Value, secret string) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	if v.Len() == 0 {
		out.Style = yaml.FlowStyle
	}
	type pair struct{ name, value *yaml.Node }
	var pairs []pair
	for k, item := range v.Seq2() {
		name := p.value(key+"[]", k, "")
		pairs = append(pairs, pair{name, p.value(key+"["+name.Value+"]", item, secret)})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(a.name.Value, b.name.Value) })
	for _, each := range pairs {
		out.Content = append(out.Content, each.name, each.value)
	}
	return out
}

// scalar is what the library makes of a value, usually one text.
func (p *printer) scalar(value any) *yaml.Node {
	text := reflect.ValueOf(value)
	if _, own := value.(encoding.TextMarshaler); !own && text.Kind() == reflect.String && strings.ContainsAny(text.String(), "\n\r\t") {
		// On one line, where the comment fits behind it; and the library's block texts do not always read back.
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: text.String()}
	}
	var out yaml.Node
	if err := out.Encode(value); err != nil && p.err == nil {
		p.err = err
	}
	return &out
}

func plain(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// duration leaves off the zeros of 720h0m0s.
func duration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// byteSize is a number of bytes in the largest unit that holds it exactly.
func byteSize(n uint64) string {
	for _, u := range units {
		if n != 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatUint(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatUint(n, 10)
}

// MaskURL leaves scheme, user, host and path. A user without password may be a token and is masked too; so is the
// query, and all of a text that may hold a password in another place.
func MaskURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Host == "" || strings.ContainsAny(u.Host+u.Path+u.RawQuery, "@,") {
		return mask
	}
	shown := u.Scheme + "://"
	if u.User != nil {
		if _, given := u.User.Password(); given {
			shown += url.User(u.User.Username()).String() + ":"
		}
		shown += mask + "@"
	}
	shown += u.Host + u.EscapedPath()
	if u.RawQuery != "" || u.Fragment != "" {
		shown += "?" + mask
	}
	return shown
}
