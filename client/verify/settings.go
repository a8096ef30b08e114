package verify

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

// Settings are those of the merchant's contract that matter to who verifies, in the same words. [Custom] needs them; the
// other profiles take only Charset, Algorithm and Frozen.
type Settings struct {
	Format  string            // raw (the default), json, form, query, xml or template
	Charset string            // utf-8 (the default), gbk or gb18030
	Headers map[string]string // each with its pattern
	// Fields with their sources. Only those with a source of the engine's, such as @timestamp, matter. A name that begins with
	// $. is a path in a JSON body, for templates.
	Fields map[string]string

	Algorithm      string // one of sign.Algorithms
	Input          string // a pattern: the string that is signed
	Output         string // base64 (the default), base64url, hex or HEX
	Field          string // where the signature is
	Header         string // or there
	HeaderValue    string
	UnsignedFields []string
	SignEmpty      bool
	UserID         string
	RawSignature   bool
	Frozen         bool // every attempt has the time of the first: its age says nothing

	// Values of what Input has and no part of the request carries, such as merchant_id.
	Values map[string]string
	Sealed Sealed
}

// Sealed says where in a JSON body something encrypted is; each is a path. The zero value: nowhere.
type Sealed struct {
	Cipher         string // aes-256-gcm, sm4-gcm or sm4-cbc
	Ciphertext     string // base64
	Nonce          string
	AssociatedData string // empty: there is none
}

// scheme is how one contract's callbacks are read. It does not change once it is made.
type scheme struct {
	name    string
	format  string
	charset string
	// charsetField is the field that names the charset where the settings do not.
	charsetField string

	headers map[string]*pattern // by what headers read
	fields  map[string]string   // from a field's name, or its path, to what its value is
	values  map[string]string
	input   *pattern
	paths   map[string]*encode.Path

	header    string
	separator string // between several signatures in the header; empty: it has one
	shapes    []shape
	field     string
	bodyPath  *encode.Path
	// choose picks the algorithm by the fields and the signature's text; nil: the shape has it.
	choose    func(of *reading, signature string) (sign.Algorithm, error)
	output    sign.Encoding
	unsigned  []string
	signEmpty bool
	options   sign.Options

	serial string // which value names the key; empty: none does
	time   string // which value is the time of the signature; empty: none is
	frozen bool
	id     string // which value, or path in the body, is the id
	sealed *sealing
	secret func(text string) (sign.Key, error) // nil: as sign.ParseSecret says
	check  func(of *reading) error             // what else must hold of the request; nil: nothing

	// What only Explain changes.
	how sorting
}

// shape is a signature in a header, or what stands beside it.
type shape struct {
	pattern   *pattern
	algorithm sign.Algorithm // 0: it has no signature in it
}

type sealing struct {
	cipher                        sign.Cipher
	ciphertext, nonce, additional *encode.Path
}

func (s *scheme) parseSecret(text string) (sign.Key, error) {
	if s.secret != nil {
		return s.secret(text)
	}
	return plainSecret(text)
}

func plainSecret(text string) (sign.Key, error) {
	secret, err := sign.ParseSecret(text)
	if err != nil {
		return sign.Key{}, err
	}
	return sign.SecretKey(secret)
}

func (s *scheme) algorithms() (all []sign.Algorithm) {
	for _, shape := range s.shapes {
		if shape.algorithm != 0 {
			all = append(all, shape.algorithm)
		}
	}
	return all
}

// timeKinds are the values that say when something was signed.
var timeKinds = []string{"timestamp", "timestamp_ms", "rfc3339", "datetime"}

// custom compiles settings.
func custom(given Settings) (*scheme, error) {
	s := &scheme{
		name: "custom", format: given.Format, charset: given.Charset, values: given.Values, header: given.Header, field: given.Field,
		unsigned: given.UnsignedFields, signEmpty: given.SignEmpty, frozen: given.Frozen,
		options: sign.Options{UserID: given.UserID, Raw: given.RawSignature, ShortSecret: true},
	}
	if s.format == "" {
		s.format = encode.FormatRaw
	}
	if !slices.Contains(encode.Formats(), s.format) {
		return nil, fmt.Errorf("format: %q must be one of %s", s.format, strings.Join(encode.Formats(), ", "))
	}
	if _, err := decoderOf(s.charset); err != nil {
		return nil, fmt.Errorf("charset: %w", err)
	}
	if err := s.algorithm(given); err != nil {
		return nil, err
	}
	if s.shapes[0].algorithm == sign.None {
		return s, nil
	}
	if err := s.reads(given); err != nil {
		return nil, err
	}
	if err := s.signs(given); err != nil {
		return nil, err
	}
	return s, s.seals(given.Sealed)
}

func (s *scheme) algorithm(given Settings) error {
	a, err := sign.ParseAlgorithm(given.Algorithm)
	if err != nil {
		return err
	}
	value := given.HeaderValue
	if value == "" {
		value = "{signature}"
	}
	p, err := parsePattern(value)
	if err != nil {
		return fmt.Errorf("header_value: %w", err)
	}
	s.shapes = []shape{{p, a}}
	output := given.Output
	if output == "" {
		output = sign.Base64.String()
	}
	if s.output, err = sign.ParseEncoding(output); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if given.Algorithm == sign.None.String() || (given.Header == "") != (given.Field == "") {
		return nil
	}
	return fmt.Errorf("header %q and field %q: one of them must say where the signature is", given.Header, given.Field)
}

// reads compiles where values are found.
func (s *scheme) reads(given Settings) error {
	s.headers, s.fields = map[string]*pattern{}, map[string]string{}
	for name, text := range given.Headers {
		p, err := parsePattern(text)
		if err != nil {
			return fmt.Errorf("headers[%q]: %w", name, err)
		}
		if len(p.names()) > 0 {
			s.headers[name] = p
		}
	}
	for name, source := range given.Fields {
		if of, engines := strings.CutPrefix(strings.TrimSuffix(source, "!"), "@"); engines {
			s.fields[name] = of
		}
	}
	if strings.HasPrefix(s.field, "$") && s.format == encode.FormatRaw {
		path, err := encode.CompilePath(s.field)
		if err != nil {
			return fmt.Errorf("field: %w", err)
		}
		s.bodyPath = path
		name := strings.TrimPrefix(s.field, "$.")
		if sorted := strings.Contains(given.Input, "{sorted"); sorted && strings.ContainsAny(name, ".[") {
			return fmt.Errorf("field: %q: {sorted} was made before the signature was put within another member, which cannot be undone", s.field)
		}
		s.unsigned = append(slices.Clone(s.unsigned), name)
	}
	return nil
}

// signs compiles what is signed, and sees to it that the request carries all of it.
func (s *scheme) signs(given Settings) (err error) {
	if given.Input == "" {
		return errors.New("input: must be given: the pattern of what is signed")
	}
	if s.input, err = parsePattern(given.Input); err != nil {
		return fmt.Errorf("input: %w", err)
	}
	carried := maps.Clone(s.values)
	if carried == nil {
		carried = map[string]string{}
	}
	for _, p := range append(slices.Collect(maps.Values(s.headers)), s.shapes[0].pattern) {
		for _, name := range p.names() {
			carried[name] = ""
		}
	}
	for _, name := range s.fields {
		carried[name] = ""
	}
	s.paths = map[string]*encode.Path{}
	for _, name := range s.input.names() {
		switch {
		case strings.HasPrefix(name, "$"):
			if s.paths[name], err = encode.CompilePath(name); err != nil {
				return fmt.Errorf("input: %w", err)
			}
			continue
		case name == "body" && s.format == encode.FormatQuery:
			return errors.New("input: {body}: the format query has none; sign {sorted} or {url}")
		case slices.Contains([]string{"body", "url", "secret"}, name):
			continue
		case name == "sorted" || name == "sorted_sha256":
			if s.format == encode.FormatTemplate {
				return fmt.Errorf("input: {%s}: a template's fields cannot be read back; sign {body}", name)
			}
			continue
		}
		if _, ok := carried[name]; !ok {
			return fmt.Errorf("input: {%s}: no header and no field carries it: give its value in Values", name)
		}
	}
	s.findTime(carried)
	return nil
}

// findTime takes a time and an id that are signed, and the name of the key.
func (s *scheme) findTime(carried map[string]string) {
	within := map[string]bool{} // values in a field that is signed
	for name, of := range s.fields {
		if s.input.uses("body") || s.sorts(name) {
			within[of] = true
		}
	}
	signed := func(name string) bool {
		_, ok := carried[name]
		return ok && (s.input.uses(name) || within[name])
	}
	for _, name := range timeKinds {
		if s.time == "" && signed(name) {
			s.time = name
		}
	}
	if signed("id") {
		s.id = "id"
	}
	for _, name := range []string{"serial", "serial_decimal"} {
		if _, ok := carried[name]; ok && s.serial == "" {
			s.serial = name
		}
	}
}

// sorts reports whether {sorted} covers a field, or the member that its path leads into.
func (s *scheme) sorts(name string) bool {
	if !s.input.uses("sorted") && !s.input.uses("sorted_sha256") {
		return false
	}
	if path, err := encode.CompilePath(name); err == nil {
		member, ok := path.Member()
		if !ok || slices.Contains(s.unsigned, member) {
			return false
		}
	}
	return name != s.field && !slices.Contains(s.unsigned, name)
}

func (s *scheme) seals(given Sealed) (err error) {
	if given == (Sealed{}) {
		return nil
	}
	s.sealed = &sealing{}
	if s.sealed.cipher, err = sign.ParseCipher(given.Cipher); err != nil {
		return err
	}
	for to, text := range map[**encode.Path]string{&s.sealed.ciphertext: given.Ciphertext, &s.sealed.nonce: given.Nonce, &s.sealed.additional: given.AssociatedData} {
		if text == "" && to == &s.sealed.additional {
			continue
		}
		if *to, err = encode.CompilePath(text); err != nil {
			return fmt.Errorf("sealed: %w", err)
		}
	}
	return nil
}
