package verify

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Explanation says what is wrong with a message.
type Explanation struct {
	Err    error // nil: it verifies
	Checks []Check
	// StringToSign is what the signature has to be of, a secret masked; nil: the message has not what it is made of.
	StringToSign []byte
	// Mistake is the common one that fits, in words; empty: none does, or there is none.
	Mistake string
	// Difference is where Hints.StringToSign differs; nil: nowhere, or it was not given.
	Difference *Difference
}

// Check is one that was made. Those that come after a failed one are made all the same where they can be.
type Check struct {
	Name string // request, time, signature, decryption
	Err  error
}

// Difference is the first byte in which two strings differ.
type Difference struct {
	Offset       int    // from 0
	Line, Column int    // from 1; a column is a byte
	Ours, Yours  string // what is there, with what is around it, quoted; » stands before the byte
	OurLength    int
	YourLength   int
}

func (d *Difference) String() string {
	return fmt.Sprintf("byte %d (line %d, column %d) is the first that differs\n  expected: %s\n  yours:    %s\n  %d bytes expected, yours has %d",
		d.Offset, d.Line, d.Column, d.Ours, d.Yours, d.OurLength, d.YourLength)
}

// Compare finds the first byte in which two strings differ; nil: they are the same.
func Compare(ours, yours []byte) *Difference {
	if bytes.Equal(ours, yours) {
		return nil
	}
	at := 0
	for at < len(ours) && at < len(yours) && ours[at] == yours[at] {
		at++
	}
	line := bytes.LastIndexByte(ours[:at], '\n') + 1
	return &Difference{
		Offset: at, Line: bytes.Count(ours[:at], []byte("\n")) + 1, Column: at - line + 1,
		Ours: around(ours, at), Yours: around(yours, at), OurLength: len(ours), YourLength: len(yours),
	}
}

func around(text []byte, at int) string {
	const each = 24
	from, to := max(0, at-each), min(len(text), at+each)
	quote := func(part []byte) string { q := fmt.Sprintf("%q", part); return q[1 : len(q)-1] }
	out := `"` + quote(text[from:at]) + "»"
	if at == len(text) {
		out += `" (here it ends)`
	} else {
		out += quote(text[at:to]) + `"`
	}
	if from > 0 {
		out = "…" + out
	}
	if to < len(text) {
		out += "…"
	}
	return out
}

// Hints are what else is known.
type Hints struct {
	StringToSign []byte    // the merchant's own
	Before       Keys      // keys that are no longer in use
	Attempts     []Message // others of the same notification
}

// Explain verifies a message and says what is wrong with it. When the signature is, it tries the common mistakes one after
// the other. It is for people: a merchant's server has no use for it.
func (v *Verifier) Explain(m Message, now time.Time, h Hints) *Explanation {
	x := &Explanation{}
	if _, x.Err = v.VerifyMessage(m, now); errors.Is(x.Err, errNoVerifier) {
		return x
	}
	m = v.addressed(m)
	r, err := v.scheme.read(m)
	x.Checks = append(x.Checks, Check{"request", err})
	if err == nil {
		x.Checks = append(x.Checks, Check{"time", v.inTime(r, now)})
		failed := r.proven(v.ring)
		x.Checks = append(x.Checks, Check{"signature", failed})
		if failed == nil && v.scheme.sealed != nil {
			_, undone := r.callback(v.ring)
			x.Checks = append(x.Checks, Check{"decryption", undone})
		}
		if v.scheme.input != nil {
			x.StringToSign, _ = r.message([]byte(mask)) // what it needs and has not got is said by the signature's check
		}
	}
	yours := v.masked(h.StringToSign)
	if h.StringToSign != nil && x.StringToSign != nil {
		x.Difference = Compare(x.StringToSign, yours)
	}
	if x.Err != nil || x.Difference != nil {
		x.Mistake = v.mistake(m, x, yours, h)
	}
	return x
}

// masked takes the secrets out of the merchant's own string.
func (v *Verifier) masked(text []byte) []byte {
	if v.scheme.input == nil || !v.scheme.input.uses("secret") {
		return text
	}
	for _, k := range v.ring.keys {
		if secret := k.secret.Bytes(); len(secret) > 0 {
			text = bytes.ReplaceAll(text, secret, []byte(mask))
		}
	}
	return text
}

// mistake finds the first of the common ones with which the signature verifies, or the merchant's own string is what is signed.
func (v *Verifier) mistake(m Message, x *Explanation, yours []byte, h Hints) string {
	sound := signatureIs(x, nil)
	for _, try := range v.mistakes(m, h) {
		t := &trial{scheme: *v.scheme, m: m, ring: v.ring, keys: h.Before}
		t.m.Header = m.Header.Clone()
		if !try.change(t) {
			continue
		}
		r, err := t.scheme.read(t.m)
		if err != nil {
			continue
		}
		if !sound && r.proven(t.ring) == nil {
			return try.words
		}
		if x.Difference == nil {
			continue
		}
		if other, err := r.message([]byte(mask)); err == nil && bytes.Equal(other, yours) {
			return "your string-to-sign: " + try.words
		}
	}
	return ""
}

func signatureIs(x *Explanation, want error) bool {
	for _, c := range x.Checks {
		if c.Name == "signature" {
			return errors.Is(c.Err, want)
		}
	}
	return false
}

// Advice is what a person does about an error, in a sentence.
func Advice(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return ""
	}
	switch e.Reason {
	case Missing:
		return "It did not come, or something on the way took it out: look at what proxies and gateways let through."
	case Malformed:
		return "Check that the profile is the one in the merchant's contract."
	case TooOld:
		return "Is this the callback of just now? Otherwise the clocks differ, or somebody sends an old one again."
	case TooNew:
		return "The merchant's clock is behind: set it by NTP."
	case UnknownKey:
		return "Get the platform's key with this serial number; after a rotation there is a new one."
	case Mismatch:
		return "Verify the very bytes of the body as they came, with the key of this merchant."
	case BadBody:
		return "Take the body before a framework parses it."
	case Undecryptable:
		return "Take the decryption key that the platform has for this merchant; after a rotation both."
	}
	return strings.TrimSpace(string(e.Reason))
}
