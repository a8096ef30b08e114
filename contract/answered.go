package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"notifyd/contract/answer"
	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

// AnswerKey is one that answers may be signed with, made ready by PrepareAnswer. Whatever prints it shows no key.
type AnswerKey struct {
	ID string

	verifier *sign.Verifier
	secret   sign.Secret // for {secret}
}

// PrepareAnswer pairs a key, a public one or a secret, with the algorithm of the answers' signature; a pair that does not fit is an
// error that names both.
func (c *Contract) PrepareAnswer(id string, key sign.Key) (AnswerKey, error) {
	if c.answers == nil {
		return AnswerKey{}, errors.New("answers are not signed")
	}
	verifier, err := sign.NewVerifier(c.answers.algorithm, key, c.answers.options)
	if err != nil {
		return AnswerKey{}, err
	}
	return AnswerKey{ID: id, verifier: verifier, secret: key.Secret()}, nil
}

// answerKeys are those that an answer may be signed with.
func (c *Contract) answerKeys(keys Keys) []AnswerKey {
	if c.answers == nil || c.answers.keyID != "" {
		return keys.Answer
	}
	all := make([]AnswerKey, len(keys.Sign))
	for i := range keys.Sign {
		all[i] = keys.Sign[i].answer
	}
	return all
}

// Acknowledgement is the rule for the answer to what was told. Where answers are signed, each one has to be with one of the keys.
//
// Nobody waits for a turn to verify, as they do to sign: with a public key of RSA, 2048 bits, it takes 45 µs, a fortieth of what a
// signature takes; with ECDSA, Ed25519 and SM2 about 0.1 ms.
func (c *Contract) Acknowledgement(told Told, keys Keys) *answer.Acknowledgement {
	if c.answers == nil {
		return c.acknowledgement
	}
	return c.acknowledgement.Signed(func(given answer.Answer) string {
		r := answerReading{s: c.answers, given: given, values: c.valuesOf(told, &noKey)}
		if wrong := r.disagrees(c.answerKeys(keys)); wrong != "" {
			return "expected a signature in " + c.answers.place() + "; " + wrong
		}
		return ""
	})
}

// answerable refuses what cannot be told, since no answer to it could be verified.
func (c *Contract) answerable(v *values) error {
	if c.answers == nil {
		return nil
	}
	for _, name := range ofTold {
		if _, found := v.get(name); !found && c.answers.input.Uses(name) {
			return fmt.Errorf("{%s} has no value, and the merchant's answer is signed with it", name)
		}
	}
	return nil
}

func (s *answerSignature) place() string {
	if s.header != "" {
		return "the header " + shown(s.header)
	}
	return "the field " + shown(s.field)
}

// answerReading is one answer, as far as its signature needs it.
type answerReading struct {
	s       *answerSignature
	given   answer.Answer
	values  *values
	payload *encode.Payload // of JSON
	fields  []encode.Field
	sorted  []byte
}

// disagrees says what is wrong with the signature; nothing is.
func (r *answerReading) disagrees(keys []AnswerKey) string {
	if err := r.read(); err != nil {
		return err.Error()
	}
	text, err := r.signature()
	if err != nil {
		return err.Error()
	}
	signature, err := r.s.output.Decode(text)
	if err != nil {
		return fmt.Sprintf("%s is not written as %s", shown(text), r.s.output)
	}
	if len(keys) == 0 {
		return "no key to verify it with is in use"
	}
	for i := range keys {
		message, err := r.message(keys[i].secret.Bytes())
		if err != nil {
			return err.Error()
		}
		if keys[i].verifier.Verify(message, signature) {
			return ""
		}
	}
	message, _ := r.message([]byte("[secret]")) // was made before
	return "it is not the " + r.s.algorithm.String() + " of " + excerpt(message)
}

func (r *answerReading) read() (err error) {
	s, body := r.s, r.given.Body
	switch {
	case r.given.Truncated && (s.whole || s.format != ""), s.format != "" && len(body) > encode.MaxPayload:
		return errors.New("the answer is too long to be read as a whole")
	case s.format == encode.FormatJSON:
		if r.payload, err = encode.ReadJSON(body, s.charset); err == nil && s.members {
			r.fields, err = encode.ReadMembers(r.payload)
		}
	case s.format == encode.FormatForm:
		r.fields, err = encode.ReadForm(string(bytes.Trim(body, " \t\r\n")), s.charset)
	case s.format == encode.FormatXML:
		r.fields, err = encode.ReadXML(body, s.charset)
	}
	if err == nil && s.sort != nil {
		r.sorted, err = s.sort.Append([]byte{}, r.fields)
	}
	if err != nil {
		return fmt.Errorf("the answer cannot be read as %s: %w", s.format, err)
	}
	return nil
}

// signature is its text.
func (r *answerReading) signature() (string, error) {
	text, err := "", error(nil)
	switch {
	case r.s.header != "":
		text, err = r.header(r.s.header)
	case r.s.fieldPath != nil:
		field, _ := r.payload.Get(r.s.fieldPath)
		text = field.Text
	default:
		for _, f := range r.fields {
			if f.Name == r.s.field {
				text = f.Text
			}
		}
	}
	if err == nil && text == "" {
		err = errors.New("it is missing")
	}
	return text, err
}

func (r *answerReading) header(name string) (string, error) {
	if r.given.Header == nil {
		return "", errors.New("the answer has no headers")
	}
	switch values := r.given.Header(name); len(values) {
	case 0:
		return "", fmt.Errorf("the answer has no header %s", shown(name))
	case 1:
		return values[0], nil
	default:
		return "", fmt.Errorf("the header %s is there %d times", shown(name), len(values))
	}
}

// message is the string that should be signed. What the answer does not have is an error: left out, it could be anything.
func (r *answerReading) message(secret []byte) ([]byte, error) {
	var missing error
	message, err := r.s.input.Append(nil, func(name string) ([]byte, bool) {
		switch name {
		case "body":
			return r.given.Body, true
		case "status":
			return strconv.AppendInt(nil, int64(r.given.Status), 10), true
		case "secret":
			return secret, true
		case "sorted":
			return r.sorted, true
		case "sorted_sha256":
			sum := sha256.Sum256(r.sorted)
			return []byte(hex.EncodeToString(sum[:])), true
		}
		if header, is := strings.CutPrefix(name, ofHeader); is {
			value, err := r.header(header)
			if missing == nil {
				missing = err
			}
			return []byte(value), err == nil
		}
		if path := r.s.paths[name]; path != nil {
			field, found := r.payload.Get(path)
			if !found {
				missing = fmt.Errorf("the answer has no %s", shown(name))
			}
			return []byte(field.Text), found
		}
		value, found := r.values.get(name)
		return []byte(value), found
	})
	if missing != nil {
		return nil, missing
	}
	return message, err
}

const (
	maxShown   = 80  // bytes of a text in a sentence
	maxExcerpt = 160 // bytes of a string that is signed
)

func shown(text string) string { return quote(text, maxShown) }

// excerpt shows where the string that should be signed begins.
func excerpt(message []byte) string {
	if len(message) > maxExcerpt {
		return fmt.Sprintf("%d bytes that begin with %s", len(message), quote(string(message), maxExcerpt))
	}
	return quote(string(message), maxExcerpt)
}

func quote(text string, most int) string {
	if len(text) > most {
		return strconv.Quote(strings.ToValidUTF8(text[:most], "")) + "…"
	}
	return strconv.Quote(text)
}
