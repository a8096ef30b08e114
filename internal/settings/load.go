// Package settings fills a struct of defaults from a YAML file, the environment and flags, remembers where each value
// came from, and names every fault with its key, value, rule and place.
//
// Keys are the fields' yaml tags joined by dots. A struct is a section; everything else, a list or mapping or pointer
// included, is one value that a later source replaces whole. `yaml:"-"` hides a field. `secret:"true"` on a field means
// that its value is never shown, `secret:"url"` that a URL's credentials and query are not; both hold for all below it.
package settings

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Sources are where settings come from, later fields over earlier ones.
type Sources struct {
	FileName string            // as the operator called it; said in faults and origins
	File     []byte            // its content: one YAML document, or nothing
	Env      []string          // as os.Environ has it
	Prefix   string            // of the variables, as in "NOTIFYD_"
	Foreign  []string          // variables with the prefix that are no settings
	Sets     []string          // "key=value" each, of the flag --set; the last of a key holds
	Flags    map[string]string // key to value, of flags called after their keys: intake.listen is --intake-listen
}

// Origins is where each value came from.
type Origins struct {
	// Unused says, for each variable with the prefix that is neither a setting nor foreign, that nothing reads it.
	Unused []string

	of map[string]string
}

const (
	fromDefault = "default"
	fromFile    = "file "
)

// Of is "default", "file notifyd.yaml:12", "environment NOTIFYD_ASYNC_DEPTH", "flag --set" or "flag --async-depth".
func (o *Origins) Of(key string) string {
	if o != nil && o.of[key] != "" {
		return o.of[key]
	}
	return fromDefault
}

// Locate puts the place of a setting before each error that begins with its key, as those of Validate methods do, so
// that `async.depth: 0: must be at least 1` says which file and line to mend.
func (o *Origins) Locate(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		errs := slices.Clone(joined.Unwrap())
		if errors.Join(errs...).Error() == err.Error() { // else the errors are only part of what err says
			for i := range errs {
				errs[i] = o.Locate(errs[i])
			}
			return errors.Join(errs...)
		}
	}
	if err == nil {
		return nil
	}
	key, _, _ := strings.Cut(err.Error(), ":")
	if origin := o.Of(key); origin != fromDefault {
		return fmt.Errorf("%s: %w", strings.TrimPrefix(origin, fromFile), err)
	}
	return err
}

// Load applies the sources to the struct that into points to and that holds the defaults. With any fault it returns all
// of them, each a *KeyError, and leaves the struct as it was.
func Load(into any, from Sources) (*Origins, error) {
	target := reflect.ValueOf(into).Elem()
	// What is below slices, maps and pointers is replaced, never written into: a flat copy keeps the original apart.
	values := reflect.New(target.Type()).Elem()
	values.Set(target)
	l := loader{keys: map[string]leaf{}, variables: map[string]string{}, origins: Origins{of: map[string]string{}}}
	for _, leaf := range leaves(values) {
		l.keys[leaf.key], l.order = leaf, append(l.order, leaf.key)
		l.claimVariable(from.Prefix, leaf.key)
	}
	l.file(values, from.FileName, from.File)
	l.environment(from)
	l.sets(from.Sets)
	for _, key := range slices.Sorted(maps.Keys(from.Flags)) {
		l.text(key, from.Flags[key], "flag --"+strings.NewReplacer(".", "-", "_", "-").Replace(key), key)
	}
	if len(l.faults) > 0 {
		return nil, errors.Join(l.faults...)
	}
	target.Set(values)
	return &l.origins, nil
}

type loader struct {
	keys      map[string]leaf
	order     []string          // the keys, as the struct has them
	variables map[string]string // to keys
	origins   Origins
	faults    []error
}

func (l *loader) refuse(place, key, rule string) {
	l.faults = append(l.faults, &KeyError{Place: place, Key: key, Rule: rule})
}

// Variable is the environment variable that sets a key.
func Variable(prefix, key string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func (l *loader) claimVariable(prefix, key string) {
	name := Variable(prefix, key)
	if other, taken := l.variables[name]; taken {
		l.refuse("environment "+name, key, "has the variable of "+other+": one of the keys needs another name")
	}
	l.variables[name] = key
}

func (l *loader) file(values reflect.Value, name string, content []byte) {
	root, fault := parse(content)
	if fault != nil {
		fault.Place = name + fault.Place
		l.faults = append(l.faults, fault)
		return
	}
	if root == nil {
		return
	}
	d := decoder{place: func(line int) string { return name + ":" + strconv.Itoa(line) }, lines: map[string]int{}}
	d.section("", root, values, "")
	l.faults = append(l.faults, d.faults...)
	for _, key := range l.order {
		if line, given := d.lines[key]; given {
			l.origins.of[key] = fromFile + d.place(line)
		}
	}
}

func (l *loader) environment(from Sources) {
	for _, entry := range from.Env {
		name, text, _ := strings.Cut(entry, "=")
		key, known := l.variables[name]
		switch {
		case known:
			l.text(key, text, "environment "+name, key)
		case strings.HasPrefix(name, from.Prefix) && !slices.Contains(from.Foreign, name):
			known := slices.Sorted(maps.Keys(l.variables))
			l.origins.Unused = append(l.origins.Unused, "environment "+name+": sets nothing"+meant(name, known))
		}
	}
}

func (l *loader) sets(sets []string) {
	for i, set := range sets {
		key, text, ok := strings.Cut(set, "=")
		key = strings.TrimSpace(key)
		if !ok || !keyLike.MatchString(key) { // which may be a secret in the wrong place: it is not repeated
			l.refuse("flag --set, number "+strconv.Itoa(i+1), "", "must be key=value")
			continue
		}
		l.text(key, text, "flag --set", "")
	}
}

var keyLike = regexp.MustCompile(`^[\w.-]+$`)

// text gives one key a value that was written outside YAML. named is the key if the place's own name says it already.
func (l *loader) text(key, text, place, named string) {
	leaf, known := l.keys[key]
	if !known {
		l.refuse(place, key, l.unknown(key))
		return
	}
	d := decoder{place: func(int) string { return place }, named: named, lines: map[string]int{}}
	if n := d.textNode(leaf, text); n != nil {
		d.value(key, n, leaf.value, leaf.secret)
	}
	l.faults = append(l.faults, d.faults...)
	l.origins.of[key] = place
}

// unknown is what is wrong with a key that no setting has.
func (l *loader) unknown(key string) string {
	for _, k := range l.order {
		if strings.HasPrefix(k, key+".") {
			return "is a section: set its keys one by one, such as " + k
		}
	}
	return unknownKey + meant(key, l.order)
}
