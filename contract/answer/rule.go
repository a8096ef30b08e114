package answer

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	"notifyd/contract/encode"
)

// Rule is what a merchant and the platform have agreed on. The zero value is any status from 200 to 299.
type Rule struct {
	Statuses []int // 200 to 599; empty: 200 to 299. A redirect is agreed only if it is in here
	Body     Body
	Final    []int // statuses that end a notification: 300 to 599, such as 410 and 501
	Abort    bool  // the header "webhook-delivery: abort-message" ends a notification
}

// Body is what an agreed answer says.
type Body struct {
	Kind  string // empty is none
	Value string
	Path  string // json: $.code; xml: xml/return_code
	// Charset is what json and xml are read in, whatever the answer says: a signature's fields and the value that counts are
	// then read in one way. Empty: UTF-8 and, of what is not, GB18030 or what XML declares.
	Charset string
}

// The kinds of Body. Bytes are compared, so that a value beyond ASCII means UTF-8; of an answer in GBK only json and xml
// are read as such.
const (
	BodyNone     = "none"             // it may say anything
	BodyExact    = "exact"            // the bytes of Value: white space and a byte order mark are another answer
	BodyTrimmed  = "trimmed"          // the same after ASCII white space is cut off at both ends
	BodyFold     = "case_insensitive" // the same, and the letters of ASCII in either case
	BodyContains = "contains"         // Value is somewhere within; the only one, but none, that a truncated body can meet
	BodyRegexp   = "regexp"           // RE2 syntax; of at most 4 KiB, and anywhere within unless it says ^ and $
	BodyJSON     = "json"             // at Path is Value: a string's characters, or a number's or boolean's literal text
	BodyXML      = "xml"              // the one element at Path has the text Value, white space around it apart
)

// Bodies are the kinds.
func Bodies() []string {
	return []string{BodyNone, BodyExact, BodyTrimmed, BodyFold, BodyContains, BodyRegexp, BodyJSON, BodyXML}
}

const (
	maxStatuses = 64
	maxValue    = 1 << 10 // bytes
	maxProgram  = 200     // instructions of a compiled regular expression
)

// Compile checks a rule.
func Compile(rule Rule) (*Acknowledgement, error) {
	if err := checkStatuses("statuses", rule.Statuses, 200); err != nil {
		return nil, err
	}
	if err := checkStatuses("final", rule.Final, 300); err != nil {
		return nil, err
	}
	for _, status := range rule.Final {
		if slices.Contains(rule.Statuses, status) {
			return nil, fmt.Errorf("final: %d is also an agreed status", status)
		}
	}
	agreed, err := compileBody(rule.Body)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return &Acknowledgement{
		statuses: slices.Clone(rule.Statuses), final: slices.Clone(rule.Final), abort: rule.Abort, body: agreed,
	}, nil
}

func checkStatuses(field string, statuses []int, least int) error {
	if len(statuses) > maxStatuses {
		return fmt.Errorf("%s: there are %d, more than %d", field, len(statuses), maxStatuses)
	}
	for _, status := range statuses {
		if status < least || status > 599 {
			return fmt.Errorf("%s: %d: must be from %d to 599", field, status, least)
		}
	}
	return nil
}

func compileBody(b Body) (body, error) {
	if err := checkBody(b); err != nil {
		return nil, err
	}
	switch b.Kind {
	case "", BodyNone:
		return nil, nil //nolint:nilnil // no rule for the body
	case BodyExact:
		return exact(b.Value), nil
	case BodyTrimmed:
		return trimmed(b.Value), nil
	case BodyFold:
		return folded(b.Value), nil
	case BodyContains:
		return within(b.Value), nil
	case BodyRegexp:
		return compileRegexp(b.Value)
	case BodyJSON:
		path, err := encode.CompilePath(b.Path)
		if err != nil {
			return nil, err
		}
		return jsonValue{path, b.Value, b.Charset}, nil
	case BodyXML:
		return compileElement(b)
	}
	return nil, fmt.Errorf("kind %q: must be one of %s", b.Kind, strings.Join(Bodies(), ", "))
}

func checkBody(b Body) error {
	none := b.Kind == "" || b.Kind == BodyNone
	switch {
	case b.Path != "" && b.Kind != BodyJSON && b.Kind != BodyXML:
		return errors.New("path: only the kinds json and xml have one")
	case none && b.Value != "":
		return errors.New("value: the kind none has none")
	case !none && b.Value == "":
		return fmt.Errorf("value: must be set for the kind %q; that nothing comes is the regexp ^$", b.Kind)
	case len(b.Value) > maxValue:
		return fmt.Errorf("value: it has %d bytes, more than %d", len(b.Value), maxValue)
	case !utf8.ValidString(b.Value):
		return errors.New("value: is not UTF-8")
	case b.Charset != "" && b.Kind != BodyJSON && b.Kind != BodyXML:
		return errors.New("charset: only the kinds json and xml are read in one")
	case (b.Kind == BodyTrimmed || b.Kind == BodyFold || b.Kind == BodyXML) && strings.Trim(b.Value, space) != b.Value:
		return fmt.Errorf("value %q: must have no white space at its ends, where it is cut off the answer's", b.Value)
	}
	if _, err := encode.Decode(nil, b.Charset); err != nil {
		return err
	}
	return nil
}

func compileRegexp(expression string) (body, error) {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	if len(program.Inst) > maxProgram {
		return nil, fmt.Errorf("value: the regular expression has %d steps, more than %d", len(program.Inst), maxProgram)
	}
	compiled, err := regexp.Compile(expression)
	if err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	if compiled.MatchString("") && compiled.MatchString("\x00") {
		return nil, fmt.Errorf("value %q: matches every body", expression)
	}
	return matching{compiled}, nil
}

func compileElement(b Body) (body, error) {
	path := strings.Split(strings.TrimPrefix(b.Path, "/"), "/")
	if len(path) > maxDepth {
		return nil, fmt.Errorf("path: more than %d steps", maxDepth)
	}
	for _, name := range path {
		if name == "" || strings.ContainsAny(name, " \t\r\n<>&:@[]*$") || !utf8.ValidString(name) {
			return nil, fmt.Errorf("path %q: must be the names of elements, joined with /, as in xml/return_code", b.Path)
		}
	}
	return element{path, b.Value, b.Charset}, nil
}
