package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strings"

	"github.com/emmansun/gmsm/sm2"
)

// Generated are the algorithms that Generate knows.
func Generated() []Algorithm {
	return []Algorithm{RSA2048, RSA4096, ECDSAP256, Ed25519, SM2, Symmetric}
}

// DefaultSecretBytes is how long a generated secret is.
const DefaultSecretBytes = 32

// Generate makes a key. secretBytes is for Symmetric only: 16 to 64, 0 is DefaultSecretBytes.
func Generate(algorithm Algorithm, secretBytes int) (Key, error) {
	var signer crypto.Signer
	var err error
	switch algorithm {
	case RSA2048:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case RSA4096:
		signer, err = rsa.GenerateKey(rand.Reader, 4096)
	case ECDSAP256:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	case SM2:
		signer, err = sm2.GenerateKey(rand.Reader)
	case Symmetric:
		return generateSecret(secretBytes)
	case ECDSAP384, ECDSAP521: // imported only
		fallthrough
	default:
		return Key{}, fault(FaultUnsupported, "%q cannot be generated: want one of %s", algorithm, joined(Generated()))
	}
	if err != nil {
		return Key{}, fmt.Errorf("generate %s key: %w", algorithm, err)
	}
	if secretBytes != 0 {
		return Key{}, fault(FaultUnsupported, "%d secret bytes: only a symmetric key has a length to choose", secretBytes)
	}
	return asymmetric(Material{signer: signer, public: signer.Public()})
}

func generateSecret(length int) (Key, error) {
	if length == 0 {
		length = DefaultSecretBytes
	}
	if length < leastSecret || length > 64 {
		return Key{}, fault(FaultTooSmall, "%d secret bytes: want %d to 64", length, leastSecret)
	}
	secret := make([]byte, length)
	_, _ = rand.Read(secret) // never fails
	return describeSecret(secret), nil
}

func describeSecret(secret []byte) Key {
	m := symmetric(secret)
	return Key{Algorithm: Symmetric, Fingerprint: m.fingerprint(), Material: m}
}

func joined[T ~string](of []T) string {
	texts := make([]string, len(of))
	for i, t := range of {
		texts[i] = string(t)
	}
	return strings.Join(texts, ", ")
}
