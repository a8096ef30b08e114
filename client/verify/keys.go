package verify

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/smx509"

	"notifyd/contract/sign"
)

// Keys are what a merchant has of the platform. Each of them is accepted: during a rotation both are given. They print as a mask.
type Keys struct {
	// Secrets of hashes and HMACs, as the platform shows them. standard: whsec_… and, of Ed25519, whpk_…; stripe and
	// wechatpay-v2: the whole text; adyen: hexadecimal digits; custom: the text, or base64: or hex: and what is meant.
	Secrets []string
	// Public keys; see [ParsePublicKey].
	Public []crypto.PublicKey
	// BySerial are public keys by their certificates' serial numbers, of profiles that name them: wechatpay-v3 in
	// hexadecimal digits, unionpay in decimal ones.
	BySerial map[string]crypto.PublicKey
	// Decryption are the keys of what is encrypted, such as WeChat Pay's APIv3 key.
	Decryption []string
}

// String is a mask.
func (Keys) String() string { return "[keys]" }

// GoString is a mask.
func (Keys) GoString() string { return "[keys]" }

// MarshalText is a mask.
func (Keys) MarshalText() ([]byte, error) { return []byte("[keys]"), nil }

// PublicKey is one that was read, with what its certificate says.
type PublicKey struct {
	crypto.PublicKey
	Serial        string // in upper-case hexadecimal digits; empty: it was no certificate
	SerialDecimal string
}

// ParsePublicKey reads a public key: a certificate or a key in PEM, or DER in base64 without PEM's lines, as Alipay shows it.
// RSA, ECDSA, Ed25519 and SM2.
func ParsePublicKey(text []byte) (PublicKey, error) {
	der, kind := text, ""
	if block, _ := pem.Decode(text); block != nil {
		der, kind = block.Bytes, block.Type
	} else if raw, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(text), nil))); err == nil {
		der = raw
	}
	if strings.HasSuffix(kind, "PRIVATE KEY") {
		return PublicKey{}, errors.New("public key: this is a private key, which never leaves the platform: what verifies is its public half")
	}
	if key, err := smx509.ParsePKIXPublicKey(der); err == nil {
		return PublicKey{PublicKey: key}, nil
	}
	if key, err := x509.ParsePKCS1PublicKey(der); err == nil {
		return PublicKey{PublicKey: key}, nil
	}
	certificate, err := smx509.ParseCertificate(der)
	if err != nil {
		return PublicKey{}, errors.New("public key: want a certificate or a public key (PUBLIC KEY, RSA PUBLIC KEY), in PEM or in base64")
	}
	return PublicKey{
		PublicKey: certificate.PublicKey, Serial: strings.ToUpper(certificate.SerialNumber.Text(16)), SerialDecimal: certificate.SerialNumber.String(),
	}, nil
}

// held is one key with its verifiers.
type held struct {
	serial    string // empty: it is for any
	key       sign.Key
	secret    sign.Secret
	verifiers map[sign.Algorithm]*sign.Verifier
}

// ring are keys made ready for a scheme.
type ring struct {
	keys    []held
	openers []*sign.Sealer
	texts   func() []string // of the secrets, for Explain; a function, so that nothing prints them
}

// ring makes the keys ready; it is an error when nothing in them can verify what the scheme signs with.
func (s *scheme) ring(k Keys) (*ring, error) {
	out := &ring{texts: func() []string { return slices.Clone(k.Secrets) }}
	for i, text := range k.Secrets {
		key, err := s.parseSecret(text)
		if err != nil {
			return nil, fmt.Errorf("secret %d: %w", i+1, err)
		}
		if err := s.add(out, "", key); err != nil {
			return nil, fmt.Errorf("secret %d: %w", i+1, err)
		}
	}
	for i, public := range k.Public {
		if err := s.addPublic(out, "", public); err != nil {
			return nil, fmt.Errorf("public key %d: %w", i+1, err)
		}
	}
	for serial, public := range k.BySerial {
		if normalSerial(serial) == "" {
			return nil, fmt.Errorf("public key %q: must have a serial number", serial)
		}
		if err := s.addPublic(out, normalSerial(serial), public); err != nil {
			return nil, fmt.Errorf("public key %s: %w", serial, err)
		}
	}
	if len(out.keys) == 0 && !slices.Contains(s.algorithms(), sign.None) {
		return nil, fmt.Errorf("keys: the profile %s needs %s", s.name, s.wants())
	}
	return out, s.addOpeners(out, k.Decryption)
}

func (s *scheme) addPublic(to *ring, serial string, public crypto.PublicKey) error {
	if of, ok := public.(PublicKey); ok {
		public = of.PublicKey
	}
	key, err := sign.PublicKey(public)
	if err != nil {
		return err
	}
	return s.add(to, serial, key)
}

func (s *scheme) add(to *ring, serial string, key sign.Key) error {
	if s.serial == "" { // nothing in the message would tell which one
		serial = ""
	}
	own := held{serial: serial, key: key, secret: key.Secret(), verifiers: map[sign.Algorithm]*sign.Verifier{}}
	var failed error
	for _, a := range s.algorithms() {
		v, err := sign.NewVerifier(a, key, s.options)
		if err != nil {
			failed = err
			continue
		}
		own.verifiers[a] = v
	}
	if len(own.verifiers) == 0 {
		return failed
	}
	to.keys = append(to.keys, own)
	return nil
}

func (s *scheme) addOpeners(to *ring, texts []string) error {
	if s.sealed == nil {
		return nil
	}
	for i, text := range texts {
		secret, err := sign.ParseSecret(text)
		if err == nil {
			var opener *sign.Sealer
			if opener, err = sign.NewSealer(s.sealed.cipher, secret); err == nil {
				to.openers = append(to.openers, opener)
				continue
			}
		}
		return fmt.Errorf("decryption key %d: %w", i+1, err)
	}
	if len(to.openers) == 0 {
		return fmt.Errorf("keys: the profile %s needs a decryption key", s.name)
	}
	return nil
}

func (s *scheme) wants() string {
	for _, a := range s.algorithms() {
		if a.KeyKind() == sign.KeySecret {
			return "a secret"
		}
	}
	return "a public key"
}

// named are the keys that a serial number allows; a key without one is for any.
func (r *ring) named(serial string) (out []held) {
	for _, k := range r.keys {
		if k.serial == "" || k.serial == serial {
			out = append(out, k)
		}
	}
	return out
}

// normalSerial lets digits' case and leading zeros differ.
func normalSerial(text string) string { return strings.TrimLeft(strings.ToUpper(text), "0") }
