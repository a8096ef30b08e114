package encode

import (
	"cmp"
	"fmt"
	"slices"
)

// SortSettings say how fields become the text that many platforms sign: name=value, joined with &.
//
// The names are in the order of their bytes, so that digits come before capital letters, these before _, and this
// before small letters, as Java's and PHP's plain sorts have it. Null is left out. Nothing tells an & within a value from one
// between two pairs: with values that strangers choose, take a signature over the body instead.
type SortSettings struct {
	LeaveOut      []string // names, such as sign and sign_type
	LeaveOutEmpty bool
	URLEncode     bool     // values as in the format form; else as they are
	Order         []string // the names in this order and no others, instead of all in the order of their bytes
	Charset       string
}

// Sort writes the pairs of one setting. It can be used by many goroutines.
type Sort struct {
	leaveOut      []string
	leaveOutEmpty bool
	urlEncode     bool
	order         []string
	charset       charset
}

// CompileSort checks settings.
func CompileSort(s SortSettings) (*Sort, error) {
	set, err := charsetNamed(s.Charset)
	if err != nil {
		return nil, err
	}
	if err := checkList("order", s.Order); err != nil {
		return nil, err
	}
	if err := checkList("leave_out", s.LeaveOut); err != nil {
		return nil, err
	}
	for _, name := range s.Order {
		if slices.Contains(s.LeaveOut, name) {
			return nil, refuse("order", "%s: is also left out", clip(name))
		}
	}
	return &Sort{
		leaveOut: slices.Clone(s.LeaveOut), leaveOutEmpty: s.LeaveOutEmpty, urlEncode: s.URLEncode,
		order: slices.Clone(s.Order), charset: set,
	}, nil
}

func checkList(setting string, names []string) error {
	if len(names) > maxTargets {
		return refuse(setting, "there are %d names, more than %d", len(names), maxTargets)
	}
	var seen nameSet
	for _, name := range names {
		if name == "" {
			return refuse(setting, "a name must not be empty")
		}
		if !seen.add(name) {
			return refuse(setting, "%s: comes twice", clip(name))
		}
	}
	return nil
}

// Append writes the pairs in the charset's bytes. It does not change the fields.
func (s *Sort) Append(dst []byte, fields []Field) ([]byte, error) {
	kept := make([]*Field, 0, len(fields))
	for i := range fields {
		if f := &fields[i]; s.keeps(f) {
			kept = append(kept, f)
		}
	}
	rank := func(a, b *Field) int { return cmp.Compare(a.Name, b.Name) }
	if len(s.order) > 0 {
		rank = func(a, b *Field) int { return slices.Index(s.order, a.Name) - slices.Index(s.order, b.Name) }
	}
	slices.SortFunc(kept, rank)
	var err error
	for i, f := range kept {
		if i > 0 {
			if kept[i-1].Name == f.Name {
				return nil, fmt.Errorf("sort fields: %w", &FieldError{Field: f.Name, Rule: "comes twice"})
			}
			dst = append(dst, '&')
		}
		if dst, err = s.appendPair(dst, f); err != nil {
			return nil, fmt.Errorf("sort fields: %w", err)
		}
	}
	return dst, nil
}

func (s *Sort) keeps(f *Field) bool {
	return f.Kind != KindNull && (f.Text != "" || !s.leaveOutEmpty) && !slices.Contains(s.leaveOut, f.Name) &&
		(len(s.order) == 0 || slices.Contains(s.order, f.Name))
}

func (s *Sort) appendPair(dst []byte, f *Field) ([]byte, error) {
	dst, err := s.charset.append(dst, f.Name, f.Name)
	if err != nil {
		return nil, err
	}
	dst = append(dst, '=')
	if s.urlEncode {
		return s.charset.appendPercent(dst, f.Name, f.Text)
	}
	return s.charset.append(dst, f.Name, f.Text)
}
