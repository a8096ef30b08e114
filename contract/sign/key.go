package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/emmansun/gmsm/sm2"
)

// Bounds of RSA keys, in bits.
const (
	MinRSABits  = 1024 // below, crypto/rsa refuses too
	SafeRSABits = 2048 // below, Weakness warns
	MaxRSABits  = 8192 // above, one signature takes a core for a tenth of a second and more
)

// Key is what a signer or a verifier works with: a secret, a private key or a public key. The zero value is none.
// It prints as a description.
type Key struct {
	reveal func() *held // a function for the reason that Secret has one
}

func keyOf(of held) Key { return Key{reveal: func() *held { return &of }} }

func (k Key) held() *held {
	if k.reveal == nil {
		return &held{kind: KeyNone}
	}
	return k.reveal()
}

type held struct {
	kind    KeyKind
	bits    int // of an asymmetric key
	secret  Secret
	private crypto.Signer // nil for a public key
	public  crypto.PublicKey
}

// SecretKey makes a key of a secret.
func SecretKey(secret Secret) (Key, error) {
	if secret.Len() == 0 {
		return Key{}, ErrNoSecret
	}
	return keyOf(held{kind: KeySecret, secret: secret}), nil
}

// PrivateKey makes a key that signs, and verifies with its public half. An *ecdsa.PrivateKey on SM2's curve, as parsers
// of certificates give it, signs as SM2.
func PrivateKey(private crypto.Signer) (Key, error) {
	switch own := private.(type) {
	case nil:
		return Key{}, errors.New("key: there is none")
	case ed25519.PrivateKey:
		if len(own) != ed25519.PrivateKeySize { // Public would panic
			return Key{}, fmt.Errorf("key: an Ed25519 private key of %d bytes must have %d", len(own), ed25519.PrivateKeySize)
		}
	case *ecdsa.PrivateKey:
		if sm2.IsSM2PublicKey(&own.PublicKey) {
			converted, err := new(sm2.PrivateKey).FromECPrivateKey(own)
			if err != nil {
				return Key{}, fmt.Errorf("key: %w", err)
			}
			private = converted
		}
	}
	public := private.Public()
	kind, bits, err := inspect(public)
	if err != nil {
		return Key{}, fmt.Errorf("key: %w", err)
	}
	return keyOf(held{kind: kind, bits: bits, private: private, public: public}), nil
}

// PublicKey makes a key that verifies: *rsa.PublicKey, *ecdsa.PublicKey (P-256, P-384 or SM2) or ed25519.PublicKey.
func PublicKey(public crypto.PublicKey) (Key, error) {
	kind, bits, err := inspect(public)
	if err != nil {
		return Key{}, fmt.Errorf("key: %w", err)
	}
	return keyOf(held{kind: kind, bits: bits, public: public}), nil
}

func inspect(public crypto.PublicKey) (kind KeyKind, bits int, err error) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		bits = key.N.BitLen()
		if bits < MinRSABits || bits > MaxRSABits {
			return "", 0, fmt.Errorf("an RSA key of %d bits must have %d to %d", bits, MinRSABits, MaxRSABits)
		}
		return KeyRSA, bits, nil
	case *ecdsa.PublicKey:
		if sm2.IsSM2PublicKey(key) {
			return KeySM2, 256, nil
		}
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return "", 0, fmt.Errorf("an EC key on %s must be on P-256, P-384 or SM2", key.Params().Name)
		}
		return KeyECDSA, key.Params().BitSize, nil
	case ed25519.PublicKey:
		if len(key) != ed25519.PublicKeySize {
			return "", 0, fmt.Errorf("an Ed25519 public key of %d bytes must have %d", len(key), ed25519.PublicKeySize)
		}
		return KeyEd25519, 256, nil
	default:
		return "", 0, fmt.Errorf("a key of type %T must be RSA, EC, Ed25519 or SM2", public)
	}
}

// What Standard Webhooks' asymmetric keys begin with.
const (
	prefixWebhookPrivate = "whsk_"
	prefixWebhookPublic  = "whpk_"
)

// ParseWebhookKey reads whsk_ or whpk_ and base64: an Ed25519 key as Standard Webhooks writes it. No error shows any of it.
func ParseWebhookKey(text string) (Key, error) {
	if rest, ok := strings.CutPrefix(text, prefixWebhookPublic); ok {
		public, err := decodeBase64(base64.StdEncoding, rest)
		if err != nil || len(public) != ed25519.PublicKeySize {
			return Key{}, errors.New("key: whpk_ must be followed by base64 of 32 bytes")
		}
		return PublicKey(ed25519.PublicKey(public))
	}
	rest, ok := strings.CutPrefix(text, prefixWebhookPrivate)
	raw, err := decodeBase64(base64.StdEncoding, rest)
	if !ok || err != nil || len(raw) != ed25519.PrivateKeySize && len(raw) != ed25519.SeedSize {
		return Key{}, errors.New("key: must be whsk_ and base64 of 64 bytes (seed, public key) or 32 (seed), or whpk_ and base64 of 32")
	}
	private := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if !bytes.HasPrefix(private, raw) {
		return Key{}, errors.New("key: whsk_: the public key does not belong to the seed")
	}
	return PrivateKey(private)
}

// WebhookPublicKey is the whpk_ text of an Ed25519 key's public half: what its merchant is given.
func WebhookPublicKey(key Key) (string, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("key: %s must be ed25519", key)
	}
	return prefixWebhookPublic + base64.StdEncoding.EncodeToString(public), nil
}

// Kind is what sort of key it is.
func (k Key) Kind() KeyKind { return k.held().kind }

// Public is the public key or half; nil of a secret.
func (k Key) Public() crypto.PublicKey { return k.held().public }

// Secret is the secret; none of an asymmetric key.
func (k Key) Secret() Secret { return k.held().secret }

// CanSign reports whether it is more than a public key.
func (k Key) CanSign() bool { return k.Kind() == KeySecret || k.held().private != nil }

// String describes the key and shows nothing of it.
func (k Key) String() string {
	switch {
	case k.Kind() == KeyNone:
		return "no key"
	case k.Kind() == KeySecret:
		return "a secret"
	case k.CanSign():
		return fmt.Sprintf("an %s private key of %d bits", k.Kind(), k.held().bits)
	}
	return fmt.Sprintf("an %s public key of %d bits", k.Kind(), k.held().bits)
}

// GoString describes the key.
func (k Key) GoString() string { return k.String() }

// LogValue describes the key.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText describes the key, in JSON and wherever else text is made of values.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
