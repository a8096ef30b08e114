package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
)

// Verifier checks signatures of one key. It is safe for concurrent use.
type Verifier struct {
	verify func(message, signature []byte) bool
}

// NewVerifier pairs an algorithm with a key: a secret, a public or a private one. For None only the empty signature is valid.
func NewVerifier(a Algorithm, key Key, options Options) (*Verifier, error) {
	if err := check(a, key, options); err != nil {
		return nil, err
	}
	if a.Costly() {
		return &Verifier{verify: publicly(a, key.Public(), options)}, nil
	}
	compute := symmetric(a, key)
	return &Verifier{verify: func(message, signature []byte) bool {
		return hmac.Equal(compute(message), signature) // in the same time wherever they differ
	}}, nil
}

// Verify reports whether the signature's bytes are one of the message.
func (v *Verifier) Verify(message, signature []byte) bool { return v.verify(message, signature) }

func publicly(a Algorithm, public crypto.PublicKey, options Options) func(message, signature []byte) bool {
	of := &algorithms[a]
	switch key := public.(type) {
	case *rsa.PublicKey:
		return func(message, signature []byte) bool {
			digest := sumOf(of.newHash(), message)
			if a == RSAPSSSHA256 {
				return rsa.VerifyPSS(key, of.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
			}
			return rsa.VerifyPKCS1v15(key, of.hash, digest, signature) == nil
		}
	case ed25519.PublicKey:
		return func(message, signature []byte) bool { return ed25519.Verify(key, message, signature) }
	case *ecdsa.PublicKey:
		if a == SM2SM3 {
			return sm2Verify(key, options)
		}
		return func(message, signature []byte) bool {
			return ecdsa.VerifyASN1(key, sumOf(of.newHash(), message), signature)
		}
	}
	return func(_, _ []byte) bool { return false } // no Key holds another
}

func sm2Verify(key *ecdsa.PublicKey, options Options) func(message, signature []byte) bool {
	id := userID(options)
	if !options.Raw {
		return func(message, signature []byte) bool { return sm2.VerifyASN1WithSM2(key, id, message, signature) }
	}
	return func(message, signature []byte) bool {
		if len(signature) != 2*sm2Bytes {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:sm2Bytes]), new(big.Int).SetBytes(signature[sm2Bytes:])
		return sm2.VerifyWithSM2(key, id, message, r, s)
	}
}
