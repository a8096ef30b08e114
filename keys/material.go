package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// Material is what computes: a private key, a public one, or a shared secret. Whatever formats it shows nothing of it.
type Material struct {
	signer crypto.Signer    // nil: no private key
	public crypto.PublicKey // of the private key, or on its own
	secret []byte           // nil: not symmetric
	salt   []byte           // keys the fingerprint of the secret
}

const masked = "[key material]"

// Signer is the private key, or nil: *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey or *sm2.PrivateKey.
func (m Material) Signer() crypto.Signer { return m.signer }

// Public is the public key, or nil: *rsa.PublicKey, *ecdsa.PublicKey (of SM2 too) or ed25519.PublicKey.
func (m Material) Public() crypto.PublicKey { return m.public }

// Secret is the shared secret, or nil. Nobody changes it.
func (m Material) Secret() []byte { return m.secret }

// String hides it.
func (Material) String() string { return masked }

// GoString hides it from %#v.
func (Material) GoString() string { return masked }

// Format hides it from every verb.
func (Material) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(masked)) }

// MarshalJSON hides it.
func (Material) MarshalJSON() ([]byte, error) { return []byte(`"` + masked + `"`), nil }

// MarshalText hides it.
func (Material) MarshalText() ([]byte, error) { return []byte(masked), nil }

// Equal reports whether two are the same key: in constant time for secrets.
func (m Material) Equal(o Material) bool {
	if (m.signer == nil) != (o.signer == nil) || (m.secret == nil) != (o.secret == nil) || (m.public == nil) != (o.public == nil) {
		return false
	}
	if m.secret != nil {
		return subtle.ConstantTimeCompare(m.secret, o.secret) == 1
	}
	if m.public == nil {
		return true
	}
	a, errA := smx509.MarshalPKIXPublicKey(m.public)
	b, errB := smx509.MarshalPKIXPublicKey(o.public)
	return errA == nil && errB == nil && string(a) == string(b)
}

// empty reports whether there is nothing that must be sealed.
func (m Material) empty() bool { return m.signer == nil && m.secret == nil }

// fingerprint of a shared secret says nothing of it to who does not have the salt, which is sealed beside it.
func (m Material) fingerprint() string {
	if m.secret == nil {
		return ""
	}
	mac := hmac.New(sha256.New, m.salt)
	mac.Write(m.secret)
	return "keyed:" + hex.EncodeToString(mac.Sum(nil)[:16])
}

// symmetric makes a shared secret that has a fingerprint of its own.
func symmetric(secret []byte) Material {
	salt := make([]byte, sha256.Size)
	_, _ = rand.Read(salt) // never fails
	return Material{secret: slices.Clone(secret), salt: salt}
}

// asymmetric describes a key of its own: its algorithm, its public part and what it is known by.
func asymmetric(m Material) (Key, error) {
	spki, err := smx509.MarshalPKIXPublicKey(m.public)
	if err != nil {
		return Key{}, fault(FaultUnsupported, "the key is of a kind that is not supported")
	}
	algorithm, err := algorithmOf(m.public)
	if err != nil {
		return Key{}, err
	}
	sum := sha256.Sum256(spki)
	return Key{Algorithm: algorithm, Public: spki, Fingerprint: hex.EncodeToString(sum[:]), Material: m}, nil
}

func algorithmOf(public crypto.PublicKey) (Algorithm, error) {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return Algorithm("rsa-" + strconv.Itoa(p.N.BitLen())), nil
	case ed25519.PublicKey:
		return Ed25519, nil
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256():
			return ECDSAP256, nil
		case elliptic.P384():
			return ECDSAP384, nil
		case elliptic.P521():
			return ECDSAP521, nil
		case sm2.P256():
			return SM2, nil
		}
		return "", fault(FaultUnsupported, "the key is on the elliptic curve %s: want P-256, P-384, P-521 or SM2", p.Params().Name)
	}
	return "", fault(FaultUnsupported, "the key is of type %T: want RSA, ECDSA, Ed25519 or SM2", public)
}

// Sealing is a version's secret part in the form in which it is encrypted at rest. It shows everything: only what seals and
// opens may have it.
type Sealing struct {
	Version     int     `json:"version"`
	Purpose     Purpose `json:"purpose"`
	MerchantID  string  `json:"merchant_id"`
	Fingerprint string  `json:"fingerprint"`
	PKCS8       []byte  `json:"pkcs8,omitempty"`
	Secret      []byte  `json:"secret,omitempty"`
	Salt        []byte  `json:"salt,omitempty"`
}

// String hides it.
func (Sealing) String() string { return masked }

// GoString hides it from %#v.
func (Sealing) GoString() string { return masked }

// Sealings are the secret parts of a set, to be sealed.
func (s *Set) Sealings() ([]Sealing, error) {
	out := []Sealing{}
	for i := range s.Keys {
		k := &s.Keys[i]
		if k.Material.empty() {
			continue
		}
		sealing := Sealing{Version: k.Version, Purpose: s.Purpose, MerchantID: s.MerchantID, Fingerprint: k.Fingerprint, Secret: k.Material.secret, Salt: k.Material.salt}
		if k.Material.signer != nil {
			var err error
			if sealing.PKCS8, err = smx509.MarshalPKCS8PrivateKey(k.Material.signer); err != nil {
				return nil, fmt.Errorf("key %s/%d: it cannot be encoded", s.Name, k.Version)
			}
		}
		out = append(out, sealing)
	}
	return out, nil
}

// errForeign says that the open part of a set is not the one that the sealed part was made for: somebody has changed it in the
// database, for example to have a key used for something else.
var errForeign = errors.New("its sealed part was made for another purpose, merchant or key")

// Restore gives a set that was read back its secret parts, and holds the open part to them.
func (s *Set) Restore(sealings []Sealing) error {
	s.adopt()
	for _, sealed := range sealings {
		k := s.Get(sealed.Version)
		if k == nil || sealed.Purpose != s.Purpose || sealed.MerchantID != s.MerchantID || sealed.Fingerprint != k.Fingerprint {
			return errForeign
		}
		if sealed.PKCS8 == nil {
			k.Material = Material{secret: sealed.Secret, salt: sealed.Salt}
			if k.Material.fingerprint() != k.Fingerprint {
				return errForeign
			}
			continue
		}
		signer, err := parsePKCS8(sealed.PKCS8)
		if err != nil {
			return errors.New("its private key cannot be read")
		}
		own, err := asymmetric(Material{signer: signer, public: signer.Public()})
		if err != nil || own.Fingerprint != k.Fingerprint {
			return errForeign
		}
		k.Material = own.Material
	}
	for i := range s.Keys {
		k := &s.Keys[i]
		if k.Public == nil || k.Material.public != nil {
			continue
		}
		public, err := smx509.ParsePKIXPublicKey(k.Public)
		if err != nil {
			return errors.New("its public key cannot be read")
		}
		k.Material.public = public
	}
	return nil
}

// parsePKCS8 also reads what only SM2 has.
func parsePKCS8(der []byte) (crypto.Signer, error) {
	parsed, err := smx509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("it does not sign")
	}
	return signer, nil
}
