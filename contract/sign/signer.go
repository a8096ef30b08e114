package sign

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"sync"

	"github.com/emmansun/gmsm/sm2"
)

// DefaultUserID is SM2's user id where none is agreed.
const DefaultUserID = "1234567812345678"

// maxUserID is how long SM2's user id may be: its length in bits is signed as two bytes.
const maxUserID = 1<<13 - 1

// Options are what only some algorithms take.
type Options struct {
	UserID string // sm2-sm3; empty: DefaultUserID
	Raw    bool   // sm2-sm3: the signature is r‖s, 64 bytes, instead of ASN.1 DER
	// ShortSecret takes a secret that is shorter than MinHMACSecret, because a merchant has it already.
	ShortSecret bool
}

// Signer signs with one key. It is safe for concurrent use.
type Signer struct {
	algorithm Algorithm
	sign      func(message []byte) ([]byte, error)
}

// NewSigner pairs an algorithm with a key: a secret or a private one. A pair that does not fit is an error that names both.
func NewSigner(a Algorithm, key Key, options Options) (*Signer, error) {
	if err := check(a, key, options); err != nil {
		return nil, err
	}
	if !key.CanSign() && a != None {
		return nil, fmt.Errorf("%s: %s cannot sign", a, key)
	}
	if a.Costly() {
		return &Signer{algorithm: a, sign: privately(a, key, options)}, nil
	}
	compute := symmetric(a, key)
	return &Signer{algorithm: a, sign: func(message []byte) ([]byte, error) { return compute(message), nil }}, nil
}

// Algorithm is how it signs.
func (s *Signer) Algorithm() Algorithm { return s.algorithm }

// Sign makes the signature's bytes. Only a private key can fail, above all one that is kept elsewhere.
func (s *Signer) Sign(message []byte) ([]byte, error) {
	signature, err := s.sign(message)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", s.algorithm, err)
	}
	return signature, nil
}

func check(a Algorithm, key Key, options Options) error {
	if !a.valid() {
		_, err := ParseAlgorithm(a.String())
		return err
	}
	if want := a.KeyKind(); want != key.Kind() {
		return fmt.Errorf("%s: the key must be of kind %s, is %s", a, want, key)
	}
	if have, least := key.Secret().Len(), algorithms[a].minSecret; have < least && !options.ShortSecret {
		return fmt.Errorf("%s: a secret of %d bytes must have at least %d, unless short ones are allowed", a, have, least)
	}
	switch {
	case a != SM2SM3 && options.UserID != "":
		return fmt.Errorf("%s: user id %q: only sm2-sm3 takes one", a, options.UserID)
	case a != SM2SM3 && options.Raw:
		return fmt.Errorf("%s: raw: only sm2-sm3 has it", a)
	case len(options.UserID) > maxUserID:
		return fmt.Errorf("%s: a user id of %d bytes must have at most %d", a, len(options.UserID), maxUserID)
	}
	return nil
}

// Weakness says what is weak about a pair that NewSigner takes all the same; empty: nothing is.
func Weakness(a Algorithm, key Key) string {
	switch {
	case key.Kind() == KeyRSA && key.held().bits < SafeRSABits:
		return fmt.Sprintf("an RSA key of %d bits should have at least %d", key.held().bits, SafeRSABits)
	case key.Kind() == KeySecret && key.Secret().Len() < MinHMACSecret:
		return fmt.Sprintf("a secret of %d bytes should have at least %d", key.Secret().Len(), MinHMACSecret)
	case a == None:
		return "nothing is signed: whoever knows the URL can forge notifications"
	case a == MD5, a == HMACMD5, a == RSASHA1:
		return a.String() + " rests on a broken hash: new merchants should take hmac-sha256 or rsa-sha256"
	}
	return ""
}

// symmetric computes what both sides can: nothing, a hash, or an HMAC.
func symmetric(a Algorithm, key Key) func(message []byte) []byte {
	of := &algorithms[a]
	switch {
	case of.newHash == nil:
		return func([]byte) []byte { return nil }
	case !of.mac:
		return func(message []byte) []byte { return sumOf(of.newHash(), message) }
	}
	secret := key.Secret().Bytes()
	// Kept, since keying an HMAC costs as much as signing a short message.
	macs := &sync.Pool{New: func() any { return hmac.New(of.newHash, secret) }}
	return func(message []byte) []byte {
		mac, _ := macs.Get().(hash.Hash)
		defer macs.Put(mac)
		mac.Reset()
		return sumOf(mac, message)
	}
}

func sumOf(h hash.Hash, message []byte) []byte {
	h.Write(message) // a hash never returns an error
	return h.Sum(nil)
}

// privately signs with a private key. Randomness, where the algorithm takes some, is the system's.
func privately(a Algorithm, key Key, options Options) func(message []byte) ([]byte, error) {
	of := &algorithms[a]
	opts := signerOpts(a, options)
	private := key.held().private
	return func(message []byte) ([]byte, error) {
		if of.newHash != nil {
			message = sumOf(of.newHash(), message)
		}
		signature, err := private.Sign(rand.Reader, message, opts)
		if err != nil || !options.Raw {
			return signature, err
		}
		return rawSignature(signature)
	}
}

func signerOpts(a Algorithm, options Options) crypto.SignerOpts {
	hashed := algorithms[a].hash
	if a == RSAPSSSHA256 {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hashed}
	}
	if a == SM2SM3 {
		return sm2.NewSM2SignerOption(true, userID(options)) // true: it is given the message, and hashes it with the id
	}
	return hashed
}

func userID(options Options) []byte {
	if options.UserID == "" {
		return []byte(DefaultUserID)
	}
	return []byte(options.UserID)
}

// sm2Bytes is how long each of r and s is.
const sm2Bytes = 32

func rawSignature(der []byte) ([]byte, error) {
	var signature struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &signature)
	if err != nil {
		return nil, fmt.Errorf("read ASN.1 signature: %w", err)
	}
	for _, n := range []*big.Int{signature.R, signature.S} {
		if len(rest) > 0 || n.Sign() <= 0 || n.BitLen() > 8*sm2Bytes { // FillBytes would panic
			return nil, errors.New("read ASN.1 signature: it is not one of SM2")
		}
	}
	var raw [2 * sm2Bytes]byte
	signature.R.FillBytes(raw[:sm2Bytes])
	signature.S.FillBytes(raw[sm2Bytes:])
	return raw[:], nil
}
