package contract

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
	"notifyd/notification"
)

// Key is a key in use, made ready by Prepare. Whatever prints it shows no key.
type Key struct {
	ID            string // for the record of each attempt; it may be empty
	Serial        string // its certificate's, in upper-case hexadecimal digits; empty: it has none
	SerialDecimal string

	signer *sign.Signer
	secret sign.Secret // for {secret}
	answer AnswerKey   // where answers are signed with the same secret
}

// Prepare pairs a key with the contract's algorithm; a pair that does not fit is an error that names both.
func (c *Contract) Prepare(id string, key sign.Key) (Key, error) {
	s := c.settings.Signer
	signer, err := sign.NewSigner(c.algorithm, key, sign.Options{UserID: s.UserID, Raw: s.RawSignature, ShortSecret: !c.profile.makesSecret})
	if err != nil {
		return Key{}, err
	}
	ready := Key{ID: id, signer: signer, secret: key.Secret()}
	if c.answers != nil && c.answers.keyID == "" {
		if ready.answer, err = c.PrepareAnswer(id, key); err != nil {
			return Key{}, fmt.Errorf("of answers: %w", err)
		}
	}
	return ready, nil
}

// Keys are those in use for one request.
type Keys struct {
	Sign []Key       // newest first; none where nothing is signed
	Seal sign.Secret // the zero value where nothing is encrypted
	// SealID is for the record.
	SealID string
	// Answer are those that an answer may be signed with; none where answers are not signed, or with the secret of Sign.
	Answer []AnswerKey
}

// Signing makes signatures, for an owner; see sign.Pool.
type Signing func(ctx context.Context, signer *sign.Signer, message []byte) ([]byte, error)

// Request is ready to be sent: what was signed is what is in it (P5).
type Request struct {
	Method  string
	URL     string
	Headers []notification.Header
	Body    []byte
	KeyIDs  []string
	Signed  []byte // the string that was signed, a secret in it masked; only of Trace
}

// EncodeError says that a contract cannot carry a notification: the same would fail again.
type EncodeError struct{ Err error }

func (e *EncodeError) Error() string { return "encode notification: " + e.Err.Error() }

// Unwrap is the cause.
func (e *EncodeError) Unwrap() error { return e.Err }

// ErrNoKey says that a contract's key is not there, or not in use now: it is for the operators to mend.
var ErrNoKey = errors.New("no key in use")

// ErrSettings says that this engine cannot work with a merchant's stored settings: they are for the operators to mend.
var ErrSettings = errors.New("the contract's settings cannot be worked with")

// Options of one request.
type Options struct {
	Wrong bool // the signature is wrong on purpose, by one bit
	Trace bool // Request.Signed is wanted
}

// Request makes the request of one attempt. Errors are an *EncodeError, ErrNoKey, or what signing says.
func (c *Contract) Request(ctx context.Context, told Told, keys Keys, signing Signing, o Options) (Request, error) {
	if c.algorithm != sign.None && len(keys.Sign) == 0 || c.inner != nil && keys.Seal.Len() == 0 {
		return Request{}, ErrNoKey
	}
	if c.answers != nil && len(c.answerKeys(keys)) == 0 { // nobody asks what nobody could understand the answer to
		return Request{}, fmt.Errorf("%w: %q, which answers are verified with", ErrNoKey, c.answers.keyID)
	}
	b := &building{c: c, ctx: ctx, keys: keys.Sign, seal: keys.Seal, signing: signing, options: o, buffers: takeBuffers()}
	defer b.giveBack()
	key := &noKey
	if len(keys.Sign) > 0 {
		key = &keys.Sign[0]
	}
	b.values = c.valuesOf(told, key)
	if err := b.build(); err != nil {
		return Request{}, err
	}
	if keys.SealID != "" && c.inner != nil {
		b.request.KeyIDs = append(b.request.KeyIDs, keys.SealID)
	}
	return b.request, nil
}

// Check refuses a notification that the contract cannot carry, without a key.
func (c *Contract) Check(n *notification.Notification) error {
	if !c.mayRefuse {
		return nil
	}
	b := &building{c: c, dry: true, buffers: takeBuffers()}
	defer b.giveBack()
	b.values = c.valuesOf(Told{Notification: n, Number: 1_000_000, At: n.AcceptedAt}, &Key{Serial: longest[:64], SerialDecimal: longest[:64], ID: longest})
	return b.build()
}

// longest stands for what a dry run does not know of a key.
var longest = strings.Repeat("0", 256)

// signatureBytes is how long a signature is, or for private keys may be; RSA's with a key of 4096 bits.
func signatureBytes(a sign.Algorithm) int {
	switch a {
	case sign.MD5, sign.HMACMD5:
		return 16
	case sign.HMACSHA1:
		return 20
	case sign.SHA256, sign.HMACSHA256:
		return 32
	case sign.HMACSHA512, sign.Ed25519:
		return 64
	case sign.SM2SM3:
		return 72
	case sign.ECDSASHA256:
		return 104
	case sign.RSASHA1, sign.RSASHA256, sign.RSAPSSSHA256:
		return 512
	case sign.None:
	}
	return 0
}

// noKey is what a request without a signature is made with.
var noKey Key

// buffers are what requests in the making leave to each other: every attempt makes one. Nothing of them gets into a request.
type buffers struct {
	texts  []byte // values that patterns ask for
	value  []byte // a header's
	signed []byte // what is signed
}

var spareBuffers = sync.Pool{New: func() any { return &buffers{} }}

func takeBuffers() *buffers {
	b, ok := spareBuffers.Get().(*buffers)
	if !ok { // cannot be: nothing else is in there
		b = &buffers{}
	}
	b.texts = b.texts[:0]
	return b
}

// maxKept is the largest buffer that is kept for other requests.
const maxKept = 64 << 10

func (b *buffers) giveBack() {
	if max(cap(b.texts), cap(b.value), cap(b.signed)) <= maxKept {
		spareBuffers.Put(b)
	}
}

// building is a request in the making.
type building struct {
	*buffers
	c       *Contract
	ctx     context.Context //nolint:containedctx // a request's own, as long as it is being made
	keys    []Key
	seal    sign.Secret
	signing Signing
	options Options
	dry     bool // nothing is signed and encrypted

	values  *values
	payload *encode.Payload
	fields  []encode.Field
	sorted  []byte // nil: not made yet
	request Request
}

func (b *building) build() error {
	if err := b.c.answerable(b.values); err != nil {
		return &EncodeError{err}
	}
	if err := b.parse(); err != nil {
		return &EncodeError{err}
	}
	if err := b.encrypt(); err != nil {
		return err
	}
	if err := b.place(); err != nil {
		return err
	}
	return b.addHeaders()
}

// MaxURL is how many bytes a URL has at most: beyond it servers and proxies differ.
const MaxURL = 2048

// ordinaryHeaders are those beside the contract's own: the type, the signature, the engine's.
const ordinaryHeaders = 5

func (b *building) parse() (err error) {
	n := b.values.told.Notification
	b.request.Method, b.request.URL = b.c.method, n.NotifyURL
	b.request.Headers = make([]notification.Header, 0, ordinaryHeaders+len(b.c.headers))
	if b.c.usesPayload {
		if n.ContentType != "" && !strings.Contains(n.ContentType, "json") {
			return fmt.Errorf("the contract reads a payload of JSON, and this is %q", n.ContentType)
		}
		if b.payload, err = encode.ParsePayload(n.Body); err != nil {
			return err
		}
	}
	if !b.c.usesFields {
		return nil
	}
	if b.fields, err = b.c.mapping.Fields(b.payload, b.values.get); err != nil {
		return err
	}
	for _, add := range b.c.adds {
		more, err := add.Fields(b.payload, b.values.get)
		if err != nil {
			return err
		}
		for _, f := range more {
			if !has(b.fields, f.Name) {
				b.fields = append(b.fields, f)
			}
		}
	}
	return nil
}

func has(fields []encode.Field, name string) bool {
	for i := range fields {
		if fields[i].Name == name {
			return true
		}
	}
	return false
}

// encrypt seals the payload, or the merchant's fields of it, for the template.
func (b *building) encrypt() error {
	if b.c.inner == nil {
		return nil
	}
	n := b.values.told.Notification
	plain, err := b.c.inner.Encode(encode.Input{URL: n.NotifyURL, Raw: n.Body, ContentType: n.ContentType, Fields: b.fields, Payload: b.payload, Values: b.values.get})
	if err != nil {
		return &EncodeError{err}
	}
	aad, err := b.c.aad.Append(nil, b.named)
	if err != nil {
		return &EncodeError{err}
	}
	b.values.associated = string(aad)
	if b.dry {
		b.values.sealNonce, b.values.ciphertext = longest[:16], base64.StdEncoding.EncodeToString(slices.Concat(plain.Body, []byte(longest[:16])))
		return nil
	}
	sealer, err := sign.NewSealer(b.c.cipher, b.seal)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	nonce := b.values.sealing(sealer.NonceSize())
	sealed, err := sealer.Seal(nonce, plain.Body, aad)
	if err != nil {
		return &EncodeError{err}
	}
	b.values.sealNonce, b.values.ciphertext = string(nonce), base64.StdEncoding.EncodeToString(sealed)
	return nil
}

// place signs, and puts the signature where it belongs: into a field or the JSON body before that is serialised, or into
// a header after it.
func (b *building) place() error {
	s := b.c.settings.Signer
	switch {
	case b.c.bodyPath != nil:
		signature, err := b.sign(0)
		if err != nil {
			return err
		}
		body, err := b.payload.With(b.c.bodyPath, signature)
		if err != nil {
			return &EncodeError{err}
		}
		b.request.Body = body
		return b.serialise(body)
	case s.Field != "":
		signature, err := b.sign(0)
		if err != nil {
			return err
		}
		if has(b.fields, s.Field) {
			return &EncodeError{fmt.Errorf("field %s: is the signature's, and the payload has one", s.Field)}
		}
		b.fields = append(b.fields, encode.Field{Name: s.Field, Text: signature, Kind: encode.KindString})
	}
	return b.serialise(b.values.told.Notification.Body)
}

func (b *building) serialise(raw []byte) error {
	n := b.values.told.Notification
	made, err := b.c.encoding.Encode(encode.Input{
		URL: n.NotifyURL, Raw: raw, ContentType: n.ContentType, Fields: b.fields, Payload: b.payload, Values: b.values.get,
	})
	if err != nil {
		return &EncodeError{err}
	}
	if len(made.URL) > MaxURL {
		return &EncodeError{fmt.Errorf("the URL has %d bytes with its query, more than %d", len(made.URL), MaxURL)}
	}
	b.request.URL, b.request.Body = made.URL, made.Body
	if made.ContentType != "" {
		b.addHeader("Content-Type", made.ContentType)
	}
	return nil
}

// addHeaders are the contract's, the signature's among them.
func (b *building) addHeaders() error {
	for _, h := range b.c.headers {
		var err error
		if b.value, err = h.value.Append(b.value[:0], b.named); err == nil {
			err = checkHeader(b.value)
		}
		if err != nil {
			return &EncodeError{fmt.Errorf("header %s: %w", h.name, err)}
		}
		b.addHeader(h.name, string(b.value))
	}
	name := b.c.settings.Signer.Header
	if name == "" {
		return nil
	}
	value, err := b.signatures()
	if err != nil {
		return err
	}
	if err := checkHeader(value); err != nil {
		return &EncodeError{fmt.Errorf("header %s: %w", name, err)}
	}
	b.addHeader(name, value)
	return nil
}

// checkHeader refuses what HTTP does not carry, or not for every reader alike: blanks at the ends are lost on the way.
func checkHeader[T string | []byte](value T) error {
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == ' ' && (i == 0 || i == len(value)-1) {
			return fmt.Errorf("the byte 0x%02X at offset %d: must be printable ASCII, without blanks at the ends", c, i)
		}
	}
	return nil
}

func (b *building) addHeader(name, value string) {
	b.request.Headers = append(b.request.Headers, notification.Header{Name: name, Value: value})
}

// signatures is the header's value: one signature, or one of each live key.
func (b *building) signatures() (string, error) {
	count := 1
	if b.c.each != nil {
		count = max(1, len(b.keys))
	}
	made := make([]string, count)
	for i := range made {
		var err error
		if made[i], err = b.sign(i); err != nil {
			return "", err
		}
	}
	value := func(i int, name string) ([]byte, bool) {
		if name == "signature" {
			return b.text(made[i]), true
		}
		return b.named(name)
	}
	var err error
	to := b.value[:0]
	if b.c.each == nil {
		to, err = b.c.value.Append(to, func(name string) ([]byte, bool) { return value(0, name) })
	} else if to, err = b.c.head.Append(to, b.named); err == nil {
		to, err = b.c.each.AppendEach(to, count, b.c.profile.several.separator, value)
	}
	b.value = to
	return string(to), encoded(err)
}

func encoded(err error) error {
	if err == nil {
		return nil
	}
	return &EncodeError{err}
}

// sign makes one key's signature as text.
func (b *building) sign(i int) (string, error) {
	if b.dry {
		_, err := b.message(nil)
		return b.c.output.Encode(make([]byte, signatureBytes(b.c.algorithm))), encoded(err)
	}
	key := &b.keys[i]
	message, err := b.message(key)
	if err != nil {
		return "", encoded(err)
	}
	raw, err := b.signing(b.ctx, key.signer, message)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	if b.options.Wrong && len(raw) > 0 {
		raw[len(raw)/2] ^= 1
	}
	if key.ID != "" {
		b.request.KeyIDs = append(b.request.KeyIDs, key.ID)
	}
	if b.options.Trace && i == 0 {
		masked, err := b.message(&noKey)
		if err != nil {
			return "", encoded(err)
		}
		b.request.Signed = bytes.Clone(masked)
	}
	return b.c.output.Encode(raw), nil
}

// message is the string that is signed. A key without a secret leaves a mask where one is due.
func (b *building) message(key *Key) ([]byte, error) {
	if err := b.sort(); err != nil {
		return nil, err
	}
	var err error
	b.signed, err = b.c.input.Append(b.signed[:0], func(name string) ([]byte, bool) {
		switch name {
		case "body":
			return b.request.Body, true
		case "url":
			return []byte(b.request.URL), true
		case "secret":
			if key == nil || key.secret.Len() == 0 {
				return []byte("[secret]"), true
			}
			return key.secret.Bytes(), true
		case "sorted":
			return b.sorted, true
		case "sorted_sha256":
			sum := sha256.Sum256(b.sorted)
			return []byte(hex.EncodeToString(sum[:])), true
		}
		if path := b.c.paths[name]; path != nil {
			field, _ := b.payload.Get(path) // what is missing is empty: Adyen's originalReference
			return []byte(field.Text), true
		}
		return b.named(name)
	})
	return b.signed, err
}

// sort makes the text of the fields that are signed, once for all keys.
func (b *building) sort() (err error) {
	if b.sorted == nil && b.c.signsSorted {
		b.sorted, err = b.c.sort.Append([]byte{}, b.fields)
	}
	return err
}

func (b *building) named(name string) ([]byte, bool) {
	text, ok := b.values.get(name)
	return b.text(text), ok
}

// text is a value's bytes, until the request is made.
func (b *buffers) text(value string) []byte {
	from := len(b.texts)
	b.texts = append(b.texts, value...)
	return b.texts[from:]
}

// AttemptHeader counts attempts for the merchant.
func AttemptHeader(number int) notification.Header {
	return notification.Header{Name: "notifyd-attempt", Value: strconv.Itoa(number)}
}
