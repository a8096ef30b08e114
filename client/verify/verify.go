package verify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

// What a Verifier begins with.
const (
	DefaultTolerance = 5 * time.Minute // as Standard Webhooks and Stripe have it
	DefaultMaxBody   = 1 << 20
)

// Verifier checks callbacks. It is for many goroutines; its fields are set before the first of them begins.
type Verifier struct {
	// Tolerance is how far the time of a signature may be from now. Zero: as far as it likes, so that an old callback that was
	// overheard can be sent again.
	Tolerance time.Duration
	// MaxBody is how many bytes Verify reads.
	MaxBody int64
	// URL is the notify URL as it is registered, for contracts that sign it. Empty: what the request itself says, which is
	// another one behind a proxy.
	URL string

	scheme *scheme
	ring   *ring
}

// Callback is one that is proven.
type Callback struct {
	// ID is the same on every attempt of a notification. Empty: the profile has none that is signed. Of adyen it is the
	// pspReference, which together with the event's code tells one from another.
	ID string
	// Time is when it was signed; zero: the profile does not say.
	Time time.Time
	// Fields of a form, a query, XML, or JSON whose members are signed: those that the signature covers, and no others.
	Fields map[string]string
	// Resource is what was encrypted, decrypted.
	Resource []byte
	// Serial is the key that the message names; empty: it names none.
	Serial string
	// Body as it came. What the signature covers is the profile's word: of adyen only the eight fields are.
	Body []byte
}

// Verify reads a request's body and checks it. The body can be read again afterwards. Errors are an *[Error].
func (v *Verifier) Verify(r *http.Request) (*Callback, error) {
	if v == nil || v.scheme == nil {
		return nil, errNoVerifier
	}
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(io.LimitReader(r.Body, v.MaxBody+1)); err != nil {
			return nil, refuse(BadBody, "body", "cannot be read: %s", err)
		}
		r.Body = again{bytes.NewReader(body), r.Body}
	}
	if int64(len(body)) > v.MaxBody {
		return nil, refuse(BadBody, "body", "has more than %d bytes", v.MaxBody)
	}
	u := *r.URL
	if u.Host == "" {
		u.Host, u.Scheme = r.Host, "http"
		if r.TLS != nil {
			u.Scheme = "https"
		}
	}
	return v.VerifyMessage(Message{Method: r.Method, URL: u.String(), Header: r.Header, Body: body}, time.Now())
}

// again is a body that was read, and the one to close.
type again struct {
	io.Reader
	io.Closer
}

var errNoVerifier = errors.New("verify callback: the verifier was not made by a constructor")

// VerifyMessage checks a message as of an instant. Errors are an *[Error].
func (v *Verifier) VerifyMessage(m Message, now time.Time) (*Callback, error) {
	if v == nil || v.scheme == nil {
		return nil, errNoVerifier
	}
	r, err := v.scheme.read(v.addressed(m))
	if err != nil {
		return nil, err
	}
	if err := v.inTime(r, now); err != nil {
		return nil, err
	}
	if err := r.proven(v.ring); err != nil {
		return nil, err
	}
	return r.callback(v.ring)
}

func (v *Verifier) addressed(m Message) Message {
	if v.URL == "" {
		return m
	}
	if v.scheme.format == encode.FormatQuery && v.scheme.input != nil && v.scheme.input.uses("url") {
		return m // all of its query is signed, the registered URL's too
	}
	if v.scheme.format == encode.FormatQuery { // its own parameters are signed, those of the registered URL are not
		base, _, _ := strings.Cut(v.URL, "?")
		if _, registered, ok := strings.Cut(v.URL, "?"); ok {
			if _, query, ok := strings.Cut(m.URL, "?"); ok {
				m.URL = base + "?" + strings.TrimPrefix(strings.TrimPrefix(query, registered), "&")
			}
		}
		return m
	}
	m.URL = v.URL
	return m
}

func (v *Verifier) inTime(r *reading, now time.Time) error {
	at, said, err := r.at()
	switch {
	case err != nil:
		return err
	case r.s.frozen || v.Tolerance <= 0 || r.s.time == "":
		return nil
	case !said:
		return &Error{Reason: Missing, What: r.s.time}
	case now.Sub(at) > v.Tolerance:
		return refuse(TooOld, "timestamp", "is %s old, %s are allowed", now.Sub(at).Round(time.Second), v.Tolerance)
	case at.Sub(now) > v.Tolerance:
		return refuse(TooNew, "timestamp", "is %s in the future, %s are allowed", at.Sub(now).Round(time.Second), v.Tolerance)
	}
	return nil
}

// proven tries each signature with each key that it may be of.
func (r *reading) proven(keys *ring) error {
	if r.s.input == nil {
		return nil
	}
	candidates := keys.named(r.serial())
	if len(candidates) == 0 {
		if r.serial() == "" {
			return &Error{Reason: Missing, What: "serial number of the key"}
		}
		return refuse(UnknownKey, "serial number", "%s is of no key that is here", clip(r.values[r.s.serial]))
	}
	unreadable := 0
	for _, c := range r.claims {
		signature, err := r.s.output.Decode(c.text)
		if err != nil {
			unreadable++
			continue
		}
		for _, key := range candidates {
			verifier := key.verifiers[c.algorithm]
			if verifier == nil {
				continue
			}
			message, err := r.message(key.secret.Bytes())
			if err != nil {
				return err
			}
			if verifier.Verify(message, signature) {
				return nil
			}
		}
	}
	if unreadable == len(r.claims) {
		return refuse(Mismatch, "no signature matches", "none is written as %s", r.s.output)
	}
	return &Error{Reason: Mismatch, What: "no signature matches"}
}

// callback is made of what is proven.
func (r *reading) callback(keys *ring) (*Callback, error) {
	s := r.s
	c := &Callback{Body: r.m.Body, Serial: r.values[s.serial]}
	c.Time, _, _ = r.at() // it was read before
	whole := s.input != nil && s.input.uses("body")
	if whole && (s.sealed != nil || strings.HasPrefix(s.id, "$") || s.format != encode.FormatRaw && s.format != encode.FormatTemplate && s.format != encode.FormatQuery) {
		if err := r.parse(); err != nil {
			return nil, err
		}
	}
	if err := r.open(c, keys); err != nil {
		return nil, err
	}
	if c.ID = r.values[s.id]; strings.HasPrefix(s.id, "$") {
		c.ID, _ = r.field(s.id)
	}
	pairs := r.pairs
	switch {
	case s.input == nil:
		return c, nil
	case s.input.uses("sorted") || s.input.uses("sorted_sha256"):
		pairs = s.signedPairs(pairs)
	case len(s.paths) > 0 && !whole:
		pairs = nil
		for name, path := range s.paths {
			if f, ok := r.payload.Get(path); ok {
				pairs = append(pairs, pair{name[strings.LastIndexByte(name, '.')+1:], f.Text})
			}
		}
	case !whole:
		return c, nil
	}
	return c, r.show(c, pairs)
}

// show gives the fields in UTF-8.
func (r *reading) show(c *Callback, pairs []pair) error {
	if len(pairs) == 0 {
		return nil
	}
	charset := r.s.charset
	if charset == "" && r.s.charsetField != "" {
		charset, _ = r.field(r.s.charsetField)
	}
	scheme, err := decoderOf(charset)
	if err != nil {
		return refuse(BadBody, r.s.charsetField, "%s", err)
	}
	c.Fields = make(map[string]string, len(pairs))
	for _, p := range pairs {
		if scheme != nil && len(r.s.paths) == 0 {
			if p.value, err = scheme.NewDecoder().String(p.value); err != nil {
				return refuse(BadBody, p.name, "is not %s", charset)
			}
		}
		c.Fields[p.name] = p.value
	}
	return nil
}

func (r *reading) open(c *Callback, keys *ring) error {
	s := r.s.sealed
	if s == nil {
		return nil
	}
	at := func(path *encode.Path) string {
		if path == nil {
			return ""
		}
		f, _ := r.payload.Get(path)
		return f.Text
	}
	ciphertext, err := base64.StdEncoding.DecodeString(at(s.ciphertext))
	if err != nil || len(ciphertext) == 0 {
		return refuse(BadBody, s.ciphertext.String(), "is no base64")
	}
	nonce, additional := at(s.nonce), at(s.additional)
	for _, opener := range keys.openers {
		if len(nonce) != opener.NonceSize() {
			return refuse(BadBody, s.nonce.String(), "has %d bytes, want %d", len(nonce), opener.NonceSize())
		}
		if plain, err := opener.Open([]byte(nonce), ciphertext, bytesOf(additional)); err == nil {
			c.Resource = plain
			return nil
		}
	}
	return refuse(Undecryptable, s.ciphertext.String(), "was not encrypted with the decryption key that is here")
}

func bytesOf(text string) []byte {
	if text == "" {
		return nil
	}
	return []byte(text)
}

// StringToSign is what the message's signature is of, as far as the message says, with a mask where a secret is part of it.
func (v *Verifier) StringToSign(m Message) ([]byte, error) {
	if v == nil || v.scheme == nil {
		return nil, errNoVerifier
	}
	r, err := v.scheme.read(v.addressed(m))
	if err != nil {
		return nil, err
	}
	if r.s.input == nil {
		return nil, nil
	}
	return r.message([]byte(mask))
}

// algorithmNamed is for the profiles that name theirs in a field.
func algorithmNamed(names map[string]sign.Algorithm, field string) func(*reading, string) (sign.Algorithm, error) {
	return func(r *reading, _ string) (sign.Algorithm, error) {
		name, ok := r.field(field)
		if !ok {
			return 0, &Error{Reason: Missing, What: field}
		}
		if a := names[name]; a != 0 {
			return a, nil
		}
		return 0, refuse(Malformed, field, "%s is not what was agreed", clip(name))
	}
}
