package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

// Message is a request as it came.
type Message struct {
	Method string
	URL    string // as the merchant has registered it, scheme and host included: some contracts sign it
	Header http.Header
	Body   []byte
}

// reading is what a message says of itself; nothing of it is proven.
type reading struct {
	s       *scheme
	m       Message
	parsed  bool // pairs are read
	pairs   []pair
	payload *encode.Payload
	values  map[string]string
	claims  []claim
}

// claim is one signature.
type claim struct {
	algorithm sign.Algorithm
	text      string
}

// mask stands where a secret is part of what is signed.
const mask = "[secret]"

// read takes a message apart as far as its signature needs it.
func (s *scheme) read(m Message) (*reading, error) {
	r := &reading{s: s, m: m, values: map[string]string{}}
	maps.Copy(r.values, s.values)
	if err := r.readHeaders(); err != nil {
		return nil, err
	}
	if s.input == nil { // nothing is signed
		r.claims = []claim{{algorithm: sign.None}}
		return r, nil
	}
	if s.field != "" || len(s.fields) > 0 || len(s.paths) > 0 || s.input.uses("sorted") || s.input.uses("sorted_sha256") {
		if err := r.parse(); err != nil {
			return nil, err
		}
	}
	if err := r.readFields(); err != nil {
		return nil, err
	}
	if err := r.readSignature(); err != nil {
		return nil, err
	}
	if s.check != nil {
		return r, s.check(r)
	}
	return r, nil
}

// get is a header's only value.
func (r *reading) get(name string) (string, error) {
	values := r.m.Header[textproto.CanonicalMIMEHeaderKey(name)]
	switch {
	case len(values) == 0 || len(values) == 1 && values[0] == "":
		return "", &Error{Reason: Missing, What: name}
	case len(values) > 1:
		return "", refuse(Malformed, name, "is there %d times", len(values))
	}
	return values[0], nil
}

func (r *reading) readHeaders() error {
	var missing []string
	names := make([]string, 0, len(r.s.headers))
	for name := range r.s.headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p := r.s.headers[name]
		text, err := r.get(name)
		if err != nil {
			if errors.Is(err, &Error{Reason: Missing}) {
				missing = append(missing, name)
				continue
			}
			return err
		}
		values, ok := p.match(text)
		if !ok {
			return refuse(Malformed, name, "%s is not of the form that was agreed", clip(text))
		}
		maps.Copy(r.values, values)
	}
	if r.s.header != "" && r.m.Header.Get(r.s.header) == "" {
		missing = append(missing, r.s.header)
	}
	if len(missing) > 0 {
		return &Error{Reason: Missing, What: strings.Join(missing, ", ")}
	}
	return nil
}

// parse reads the body, or the query.
func (r *reading) parse() error {
	if r.parsed {
		return nil
	}
	r.parsed = true
	var err error
	switch r.s.format {
	case encode.FormatForm:
		r.pairs, err = parseForm(string(r.m.Body))
	case encode.FormatQuery:
		var u *url.URL
		if u, err = url.Parse(r.m.URL); err != nil {
			return refuse(BadBody, "url", "cannot be read")
		}
		r.pairs, err = parseForm(u.RawQuery)
	case encode.FormatXML:
		if r.pairs, err = parseXML(r.m.Body); err == nil {
			err = recode(r.pairs, r.s.charset)
		}
	default:
		err = r.parseJSON()
	}
	if err != nil {
		return refuse(BadBody, "body", "%s", err)
	}
	return nil
}

func (r *reading) parseJSON() error {
	body := r.m.Body
	charset, err := decoderOf(r.s.charset)
	if err != nil {
		return err
	}
	if charset != nil && r.s.format != encode.FormatRaw {
		if body, err = charset.NewDecoder().Bytes(body); err != nil {
			return err
		}
	}
	if r.payload, err = encode.ParsePayload(body); err != nil {
		return err
	}
	if r.s.input.uses("sorted") || r.s.input.uses("sorted_sha256") || r.s.field != "" && r.s.bodyPath == nil {
		if r.pairs, err = parseMembers(r.payload); err == nil {
			err = recode(r.pairs, r.s.charset)
		}
	}
	return err
}

func (r *reading) field(name string) (string, bool) {
	if strings.HasPrefix(name, "$") && r.payload != nil {
		path, err := encode.CompilePath(name)
		if err != nil {
			return "", false
		}
		f, ok := r.payload.Get(path)
		return f.Text, ok
	}
	if r.payload != nil && r.pairs == nil {
		var err error
		if r.pairs, err = parseMembers(r.payload); err != nil {
			return "", false
		}
	}
	for _, p := range r.pairs {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

// readFields takes the engine's values out of the fields. One that is not there is missed by who needs it.
func (r *reading) readFields() error {
	for name, of := range r.s.fields {
		value, ok := r.field(name)
		if !ok {
			continue
		}
		if before, again := r.values[of]; again && before != value {
			return refuse(Malformed, name, "is not the same as elsewhere in the request")
		}
		r.values[of] = value
	}
	return nil
}

func (r *reading) readSignature() error {
	s := r.s
	if s.header == "" {
		return r.readSignatureField()
	}
	text, err := r.get(s.header)
	if err != nil {
		return err
	}
	parts := []string{text}
	if s.separator != "" {
		parts = strings.Split(text, s.separator)
	}
	for _, part := range parts {
		for _, shape := range s.shapes {
			values, ok := shape.pattern.match(part)
			if !ok {
				continue
			}
			for name, value := range values {
				if name == "signature" {
					r.claims = append(r.claims, claim{shape.algorithm, value})
					continue
				}
				if before, again := r.values[name]; again && before != value {
					return refuse(Malformed, s.header, "has two values of %s", name)
				}
				r.values[name] = value
			}
			break
		}
	}
	if len(r.claims) == 0 {
		return refuse(Malformed, s.header, "%s has no signature of the form that was agreed", clip(text))
	}
	for _, name := range s.input.names() { // Stripe's t= is beside the signature
		if name == "timestamp" && r.values[name] == "" {
			return refuse(Missing, s.header, "has no %s", name)
		}
	}
	return nil
}

func (r *reading) readSignatureField() error {
	s := r.s
	text, ok := "", false
	if s.bodyPath != nil {
		var f encode.Field
		f, ok = r.payload.Get(s.bodyPath)
		text = f.Text
	} else {
		text, ok = r.field(s.field)
	}
	if !ok || text == "" {
		return &Error{Reason: Missing, What: s.field}
	}
	algorithm := s.shapes[0].algorithm
	if s.choose != nil {
		var err error
		if algorithm, err = s.choose(r, text); err != nil {
			return err
		}
	}
	r.claims = []claim{{algorithm, text}}
	return nil
}

// message is the string that is signed, with the secret or its mask where it has one.
func (r *reading) message(secret []byte) ([]byte, error) {
	var out []byte
	for _, piece := range r.s.input.pieces {
		switch name := piece.name; {
		case name == "":
			out = append(out, piece.literal...)
		case name == "body":
			out = append(out, r.m.Body...)
		case name == "url":
			out = append(out, r.m.URL...)
		case name == "secret":
			out = append(out, secret...)
		case name == "sorted" || name == "sorted_sha256":
			out = append(out, r.sorted(name == "sorted_sha256")...)
		case r.s.paths[name] != nil:
			f, _ := r.payload.Get(r.s.paths[name]) // what is not there is empty: Adyen's originalReference
			out = append(out, f.Text...)
		default:
			value, ok := r.values[name]
			if !ok {
				return nil, &Error{Reason: Missing, What: name}
			}
			out = append(out, value...)
		}
	}
	return out, nil
}

func (r *reading) sorted(hashed bool) string {
	text := r.s.sorted(r.pairs)
	if hashed == r.s.how.plainHash {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	if r.s.how.upperHash {
		return strings.ToUpper(hex.EncodeToString(sum[:]))
	}
	return hex.EncodeToString(sum[:])
}

// china is where times without a zone are from.
var china = time.FixedZone("CST", 8*60*60)

// at is the time that the message says it was signed; false: it says none.
func (r *reading) at() (time.Time, bool, error) {
	name := r.s.time
	if name == "" {
		return time.Time{}, false, nil
	}
	text, ok := r.values[name]
	if !ok {
		return time.Time{}, false, nil
	}
	var at time.Time
	var err error
	switch name {
	case "rfc3339":
		at, err = time.Parse(time.RFC3339, text)
	case "datetime":
		at, err = time.ParseInLocation(time.DateTime, text, china)
	default:
		var n uint64
		if n, err = strconv.ParseUint(text, 10, 53); err == nil {
			if at = time.Unix(int64(n), 0); name == "timestamp_ms" {
				at = time.UnixMilli(int64(n))
			}
		}
	}
	if err != nil {
		return time.Time{}, false, refuse(Malformed, "timestamp", "%s is no time", clip(text))
	}
	return at.UTC(), true, nil
}

// serial is the key that the message names; empty: none.
func (r *reading) serial() string { return normalSerial(r.values[r.s.serial]) }
