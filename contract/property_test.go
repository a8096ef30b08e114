package contract_test

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/md5"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"

	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/merchant"
)

// draw makes settings and payloads at random.
type draw struct{ *rand.Rand }

func pick[T any](d draw, of ...T) T { return of[d.IntN(len(of))] }

const propertySecret = "0123456789abcdef-property"

func (d draw) settings() merchant.Contract {
	c := merchant.Contract{Profile: contract.Custom}
	e, s := &c.Encoding, &c.Signer
	e.Format = pick(d, "raw", "json", "form", "query", "xml", "form", "json")
	if e.Format != "raw" {
		e.Charset = pick(d, "", "utf-8", "gbk", "gb18030")
		e.OmitEmpty = d.IntN(2) == 0
		if d.IntN(2) == 0 {
			e.Fields = map[string]string{}
			for range 1 + d.IntN(5) {
				e.Fields[d.name()] = pick(d, "$."+d.name(), "$."+d.name()+"!", "@id", "@order_id!", "@event_type", "@minor_units", "@datetime", "="+d.text(), "$.object", "@nonce")
			}
		}
	}
	if e.Format == "xml" {
		e.CDATA, e.XMLRoot = d.IntN(2) == 0, pick(d, "", "notify")
	}
	e.Headers = map[string]string{"X-Time": "{timestamp}", "X-Order": pick(d, "{id}", "{order_id}", "a b", "{minor_units}")}
	s.Algorithm = pick(d, "ecdsa-sha256", "md5", "sha256", "hmac-md5", "hmac-sha1", "hmac-sha256", "hmac-sha512", "rsa-sha1", "rsa-sha256", "rsa-pss-sha256", "ed25519")
	s.Input = pick(d, "{sorted}", "{body}", "{timestamp}.{body}", "{url}{body}", "{sorted_sha256}", "{url}?{sorted}")
	if sum := s.Algorithm == "md5" || s.Algorithm == "sha256"; sum {
		s.Input += "&key={secret}"
	}
	s.Output = pick(d, "", "base64", "base64url", "hex", "HEX")
	s.SignEmpty, s.Frozen = d.IntN(3) == 0, d.IntN(3) == 0
	if d.IntN(3) == 0 {
		s.UnsignedFields = []string{d.name()}
	}
	if e.Format != "raw" && d.IntN(2) == 0 {
		s.Field = "sign"
	} else if e.Format == "raw" && d.IntN(2) == 0 {
		s.Field = "$.sign"
	} else {
		s.Header, s.HeaderValue = "X-Sign", pick(d, "", "v1={signature}", "t={timestamp},v1={signature}")
	}
	if d.IntN(8) == 0 {
		d.seal(&c)
	}
	return c
}

// seal makes a contract that encrypts the payload, or fields of it, within a JSON text.
func (d draw) seal(c *merchant.Contract) {
	e, s := &c.Encoding, &c.Signer
	e.Format, e.Charset, e.CDATA, e.XMLRoot, e.OmitEmpty, e.ContentType = "template", "", false, "", false, "application/json"
	e.Template = `{{"n":{@seal_nonce|json},"c":{@ciphertext|json},"a":{@associated_data|json}}}`
	c.Encryption = merchant.Encryption{Algorithm: "aes-256-gcm", KeyID: "seal", AssociatedData: pick(d, "", "transaction", "{id}")}
	s.Input = strings.NewReplacer("{sorted_sha256}", "{body}", "{sorted}", "{body}").Replace(s.Input)
	s.Field, s.Header, s.Frozen, s.UnsignedFields = "", "X-Sign", false, nil
}

func (d draw) name() string {
	return pick(d, "a", "b", "B", "_c", "order_no", "total-fee", "amount", "amount2", "Z9", "sign_type", "红")
}

// text has what encoders stumble over.
func (d draw) text() string {
	var b strings.Builder
	for range d.IntN(6) {
		b.WriteString(pick(d, "a", "0", " ", "+", "&", "=", "%", "%41", "<", ">", "]]>", "\"", "'", "\\", "/", "\n", "\r", "\r\n", "\t", "红茶", "é", "😀", "€", "\u2028", "\ufffd", "ḿ", "㏄", "{", "}", "key=", ";"))
	}
	if d.IntN(40) == 0 {
		b.WriteString("\x01")
	}
	return b.String()
}

func (d draw) payload() string {
	var b bytes.Buffer
	b.WriteString("{")
	names := map[string]bool{}
	for range d.IntN(8) {
		name := d.name()
		if d.IntN(30) == 0 {
			name = "sign"
		}
		if names[name] {
			continue
		}
		names[name] = true
		if b.Len() > 1 {
			b.WriteString(pick(d, ",", " , ", ",\n"))
		}
		quoted, _ := json.Marshal(d.text())
		fmt.Fprintf(&b, "%q:%s", name, pick(d, string(quoted), string(quoted), "10.50", "12345678901234567890", "-0", "1E400", "0.10", "true", "false", "null", `""`,
			`{ "x" : [ 1.0 , "`+pick(d, "y", "茶")+`" ] }`, "[]"))
	}
	b.WriteString("}")
	if d.IntN(40) == 0 {
		return pick(d, "", "[]", "[1]", "null", "{", `{"a":1,"a":2}`, "\xff", `"a"`)
	}
	return b.String()
}

// TestWhatIsSentVerifies: whatever can be set and submitted, a merchant that knows its own rule and has only what came over the wire
// accepts it; and what it could not be sent was refused before.
func TestWhatIsSentVerifies(t *testing.T) {
	const rounds = 4_000
	seed := rand.Uint64()
	d := draw{rand.New(rand.NewPCG(seed, 0))}
	rsaKey := readKey(t)
	edKey, err := sign.ParseWebhookKey(edwards)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := sign.PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	var compiled, refused, sent, opened int
	for i := range rounds {
		settings, payload := d.settings(), d.payload()
		c, err := contract.Compile(settings)
		if err != nil {
			if len(contract.Errors(err)) == 0 {
				t.Fatalf("seed %d: %v names no field", seed, err)
			}
			continue
		}
		compiled++
		key := rsaKey
		switch {
		case settings.Signer.Algorithm == "ed25519":
			key = edKey
		case settings.Signer.Algorithm == "ecdsa-sha256":
			key = ecKey
		case !strings.HasPrefix(settings.Signer.Algorithm, "rsa"):
			key, _ = sign.SecretKey(sign.NewSecret([]byte(propertySecret)))
		case i%8 > 0:
			continue // RSA is slow
		}
		ready, err := c.Prepare("k/1", key)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		told := goldenTold(payload, 1)
		told.Notification.OrderID = pick(d, "o-1", "", "红", "a\nb", " a")
		told.Notification.NotifyURL = pick(d, "https://m.example/notify", "https://m.example/notify?own=1", "https://m.example/notify?own=1&")
		for i := range told.Entropy {
			told.Entropy[i] = byte(d.IntN(256))
		}
		checked := c.Check(told.Notification)
		keys := contract.Keys{Sign: []contract.Key{ready}}
		if settings.Encryption.Algorithm != "" {
			keys.Seal = sign.NewSecret([]byte(sealKey))
		}
		r, err := c.Request(t.Context(), told, keys, directly, contract.Options{})
		if checked != nil && strings.Contains(checked.Error(), "the URL has") {
			continue // Check reckons with a longer key, and with many attempts
		}
		if (checked == nil) != (err == nil) {
			t.Fatalf("seed %d: Check says %v, Request says %v\n%+v\n%s", seed, checked, err, settings, payload)
		}
		if err != nil {
			if _, ok := errors.AsType[*contract.EncodeError](err); !ok || strings.Contains(err.Error(), "{sorted") {
				t.Fatalf("seed %d: %v is no good reason", seed, err)
			}
			refused++
			continue
		}
		sent++
		if err := accepted(settings, told.Notification.NotifyURL, r, key.Public()); err != nil {
			t.Fatalf("seed %d: the merchant refuses: %v\n%+v\n%s\n%s", seed, err, settings, payload, text(r))
		}
		if settings.Encryption.Algorithm != "" {
			if err := opens(settings, payload, told.Notification.ID.String(), r); err != nil {
				t.Fatalf("seed %d: %v\n%+v\n%s\n%s", seed, err, settings, payload, text(r))
			}
			opened++
			continue
		}
		if err := literal(settings, payload, r); err != nil {
			t.Fatalf("seed %d: %v\n%+v\n%s\n%s", seed, err, settings, payload, text(r))
		}
		if settings.Signer.Frozen {
			later := goldenTold(payload, 7)
			later.Notification = told.Notification
			again, err := c.Request(t.Context(), later, contract.Keys{Sign: []contract.Key{ready}}, directly, contract.Options{})
			if err != nil || !bytes.Equal(text(again), text(r)) {
				t.Fatalf("seed %d: frozen, and another one later (%v)\n%+v\n%s\n%s", seed, err, settings, text(r), text(again))
			}
		}
	}
	if compiled < rounds/4 || sent < rounds/10 || refused < rounds/100 || opened < rounds/100 {
		t.Errorf("%d compiled, %d sent, %d of them encrypted, %d refused: the draw is lopsided", compiled, sent, opened, refused)
	}
	t.Logf("%d contracts, %d sent, %d of them encrypted, %d refused", compiled, sent, opened, refused)
}

const sealKey = "0123456789abcdef0123456789abcdef"

// opens is the merchant's side of what is encrypted, by the standard library alone: within is the payload, byte for byte, or
// where the contract names fields, JSON.
func opens(c merchant.Contract, payload, id string, r contract.Request) error {
	var sealed struct{ N, C, A string }
	if err := json.Unmarshal(r.Body, &sealed); err != nil {
		return err
	}
	if want := strings.ReplaceAll(c.Encryption.AssociatedData, "{id}", id); sealed.A != want {
		return fmt.Errorf("the associated data is %q, want %q", sealed.A, want)
	}
	block, err := aes.NewCipher([]byte(sealKey))
	if err != nil {
		return err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	text, err := base64.StdEncoding.DecodeString(sealed.C)
	if err != nil {
		return err
	}
	if len(sealed.N) != gcm.NonceSize() {
		return fmt.Errorf("a nonce of %d bytes", len(sealed.N))
	}
	plain, err := gcm.Open(nil, []byte(sealed.N), text, []byte(sealed.A))
	switch {
	case err != nil:
		return err
	case len(c.Encoding.Fields) == 0 && string(plain) != payload:
		return fmt.Errorf("%q was encrypted", plain)
	case len(c.Encoding.Fields) > 0 && !json.Valid(plain):
		return fmt.Errorf("%q was encrypted, and is no JSON", plain)
	}
	return nil
}

func charsetOf(c merchant.Contract) encoding.Encoding {
	switch c.Encoding.Charset {
	case "gbk":
		return simplifiedchinese.GBK
	case "gb18030":
		return simplifiedchinese.GB18030
	}
	return encoding.Nop
}

// arrived are the fields of a request in the charset's bytes, as standard readers find them, nulls apart.
func arrived(c merchant.Contract, r contract.Request) (map[string]string, error) {
	fields := map[string]string{}
	set := charsetOf(c)
	add := func(name, text string) {
		name, _ = set.NewEncoder().String(name)
		text, _ = set.NewEncoder().String(text)
		fields[name] = text
	}
	switch c.Encoding.Format {
	case "form", "query":
		query := string(r.Body)
		if c.Encoding.Format == "query" {
			at, err := url.Parse(r.URL)
			if err != nil {
				return nil, err
			}
			query = at.RawQuery
		}
		// Go's reader refuses a semicolon that is not escaped, as no other does: there is none.
		parsed, err := url.ParseQuery(query)
		for name, list := range parsed {
			fields[name] = list[0]
		}
		if c.Encoding.Format == "query" {
			delete(fields, "own")
		}
		return fields, err
	case "xml":
		var parsed struct {
			Fields []struct {
				XMLName xml.Name
				Text    string `xml:",chardata"`
			} `xml:",any"`
		}
		decoder := xml.NewDecoder(bytes.NewReader(r.Body))
		decoder.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return set.NewDecoder().Reader(in), nil }
		if err := decoder.Decode(&parsed); err != nil {
			return nil, err
		}
		for _, f := range parsed.Fields {
			add(f.XMLName.Local, f.Text)
		}
		return fields, nil
	}
	body, err := set.NewDecoder().Bytes(r.Body)
	if err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return nil, err
	}
	for name, raw := range members {
		var text string
		switch {
		case string(raw) == "null":
			continue
		case raw[0] == '"':
			_ = json.Unmarshal(raw, &text)
		default:
			var compact bytes.Buffer
			_ = json.Compact(&compact, raw)
			text = compact.String()
		}
		add(name, text)
	}
	return fields, nil
}

// accepted is the merchant's side, which shares nothing with the engine but the settings.
func accepted(c merchant.Contract, notifyURL string, r contract.Request, public crypto.PublicKey) error {
	s := c.Signer
	var fields map[string]string
	var err error
	if strings.Contains(s.Input, "{sorted") || s.Field != "" {
		if fields, err = arrived(c, r); err != nil {
			return err
		}
	}
	name := strings.TrimPrefix(s.Field, "$.")
	written := fields[name]
	if s.Field == "" {
		_, written, _ = strings.Cut(headerOf(r, "X-Sign"), "v1=")
		if s.HeaderValue == "" {
			written = headerOf(r, "X-Sign")
		}
	}
	var pairs []string
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if field != name && !isIn(c, s.UnsignedFields, field) && (fields[field] != "" || s.SignEmpty) {
			pairs = append(pairs, field+"="+fields[field])
		}
	}
	sortedText := strings.Join(pairs, "&")
	sum := sha256.Sum256([]byte(sortedText))
	at := r.URL
	if s.Field != "" {
		at = notifyURL
	}
	replacer := strings.NewReplacer("{sorted}", sortedText, "{sorted_sha256}", hex.EncodeToString(sum[:]), "{body}", string(r.Body), "{url}", at,
		"{timestamp}", headerOf(r, "X-Time"), "{secret}", propertySecret)
	return verified(s, []byte(replacer.Replace(s.Input)), written, public)
}

func isIn(c merchant.Contract, names []string, field string) bool {
	for _, name := range names {
		if encoded, err := charsetOf(c).NewEncoder().String(name); err == nil && encoded == field {
			return true
		}
	}
	return false
}

func verified(s merchant.Signer, message []byte, written string, public crypto.PublicKey) error {
	raw, err := map[string]func(string) ([]byte, error){
		"": base64.StdEncoding.DecodeString, "base64": base64.StdEncoding.DecodeString, "base64url": base64.RawURLEncoding.DecodeString,
		"hex": hex.DecodeString, "HEX": hex.DecodeString,
	}[s.Output](written)
	if err != nil {
		return fmt.Errorf("the signature %q is not written in %s: %w", written, s.Output, err)
	}
	if s.Output == "hex" && written != strings.ToLower(written) || s.Output == "HEX" && written != strings.ToUpper(written) {
		return fmt.Errorf("the signature %q has not the case of %s", written, s.Output)
	}
	if len(raw) == 0 {
		return errors.New("there is no signature")
	}
	hashes := map[string]func() hash.Hash{"md5": md5.New, "sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}
	switch algorithm := s.Algorithm; algorithm {
	case "md5", "sha256":
		h := hashes[algorithm]()
		h.Write(message)
		if !bytes.Equal(h.Sum(nil), raw) {
			return fmt.Errorf("another sum of %q", message)
		}
	case "hmac-md5", "hmac-sha1", "hmac-sha256", "hmac-sha512":
		mac := hmac.New(hashes[strings.TrimPrefix(algorithm, "hmac-")], []byte(propertySecret))
		mac.Write(message)
		if !hmac.Equal(mac.Sum(nil), raw) {
			return fmt.Errorf("another MAC of %q", message)
		}
	case "ed25519":
		if !ed25519.Verify(public.(ed25519.PublicKey), message, raw) { //nolint:forcetypeassert // it is one
			return fmt.Errorf("not Ed25519's of %q", message)
		}
	case "ecdsa-sha256":
		sum := sha256.Sum256(message)
		if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], raw) { //nolint:forcetypeassert // it is one
			return fmt.Errorf("not ECDSA's of %q", message)
		}
	case "rsa-sha1":
		sum := sha1.Sum(message)
		return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA1, sum[:], raw) //nolint:forcetypeassert // it is one
	case "rsa-sha256":
		sum := sha256.Sum256(message)
		return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA256, sum[:], raw) //nolint:forcetypeassert // it is one
	case "rsa-pss-sha256":
		sum := sha256.Sum256(message)
		return rsa.VerifyPSS(public.(*rsa.PublicKey), crypto.SHA256, sum[:], raw, nil) //nolint:forcetypeassert // it is one
	default:
		return fmt.Errorf("no check of %s", algorithm)
	}
	return nil
}

// literal: each number of the payload that goes out under its own name is the text that it was.
func literal(c merchant.Contract, payload string, r contract.Request) error {
	if len(c.Encoding.Fields) > 0 || c.Encoding.Format == "raw" && c.Signer.Field == "" {
		return nil
	}
	fields, err := arrived(c, r)
	if err != nil {
		return err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(payload), &members); err != nil {
		return err
	}
	for name, raw := range members {
		encoded, err := charsetOf(c).NewEncoder().String(name)
		if err == nil && "$."+name != c.Signer.Field && strings.ContainsRune("-0123456789", rune(raw[0])) && fields[encoded] != string(raw) {
			return fmt.Errorf("%s was %s, and is %q", name, raw, fields[encoded])
		}
	}
	return nil
}
