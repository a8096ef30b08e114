package sign

import (
	"crypto"
	"crypto/md5"  //nolint:gosec // platforms and merchants ask for it
	"crypto/sha1" //nolint:gosec // platforms and merchants ask for it
	"crypto/sha256"
	"crypto/sha512"
	"hash"
)

// Algorithm says how a message is signed. The zero value is none of them; names and numbers stay as they are, since
// settings keep them.
type Algorithm int

const (
	// None leaves the signature empty.
	None Algorithm = iota + 1
	// MD5 is the hash of a message that has the secret in it, by its pattern's {secret}.
	MD5
	// SHA256 is the hash of a message that has the secret in it, by its pattern's {secret}.
	SHA256
	// HMACMD5 is RFC 2104 over MD5: old platforms.
	HMACMD5
	// HMACSHA1 is RFC 2104 over SHA-1: old platforms.
	HMACSHA1
	// HMACSHA256 is RFC 2104 over SHA-256: Standard Webhooks, Stripe, Adyen, Square, Razorpay, WeChat Pay v2.
	HMACSHA256
	// HMACSHA512 is RFC 2104 over SHA-512.
	HMACSHA512
	// RSASHA1 is RSASSA-PKCS1-v1_5 over SHA-1: Alipay's "RSA".
	RSASHA1
	// RSASHA256 is RSASSA-PKCS1-v1_5 over SHA-256: Alipay's "RSA2", WeChat Pay v3, UnionPay.
	RSASHA256
	// RSAPSSSHA256 is RSASSA-PSS over SHA-256, with a salt as long as the hash.
	RSAPSSSHA256
	// ECDSASHA256 is ECDSA over SHA-256 on P-256 or P-384; the signature is ASN.1 DER.
	ECDSASHA256
	// Ed25519 is RFC 8032's: Standard Webhooks' v1a.
	Ed25519
	// SM2SM3 is GB/T 32918.2 over SM3 with a user id; the signature is ASN.1 DER, or raw.
	SM2SM3
)

// KeyKind says what sort of key an algorithm takes and a Key is.
type KeyKind string

// The sorts of keys.
const (
	KeyNone    KeyKind = "none"
	KeySecret  KeyKind = "secret"
	KeyRSA     KeyKind = "rsa"
	KeyECDSA   KeyKind = "ecdsa" // P-256 or P-384
	KeyEd25519 KeyKind = "ed25519"
	KeySM2     KeyKind = "sm2"
)

// MinHMACSecret is how many bytes a secret of hmac-sha1, hmac-sha256 and hmac-sha512 has at least, unless Options say
// otherwise. The ones built on MD5, and hashes over a pattern with {secret}, take any that is not empty: they are there for
// what merchants already have.
const MinHMACSecret = 16

type traits struct {
	name      string
	key       KeyKind
	newHash   func() hash.Hash // nil: the message is signed as it is
	hash      crypto.Hash      // what crypto.Signer calls newHash; 0 without
	mac       bool
	minSecret int // bytes
}

// algorithms is indexed by Algorithm; its zero stands for no valid one.
var algorithms = [...]traits{
	None:         {name: "none", key: KeyNone},
	MD5:          {name: "md5", key: KeySecret, newHash: md5.New, minSecret: 1},
	SHA256:       {name: "sha256", key: KeySecret, newHash: sha256.New, minSecret: 1},
	HMACMD5:      {name: "hmac-md5", key: KeySecret, newHash: md5.New, mac: true, minSecret: 1},
	HMACSHA1:     {name: "hmac-sha1", key: KeySecret, newHash: sha1.New, mac: true, minSecret: MinHMACSecret},
	HMACSHA256:   {name: "hmac-sha256", key: KeySecret, newHash: sha256.New, mac: true, minSecret: MinHMACSecret},
	HMACSHA512:   {name: "hmac-sha512", key: KeySecret, newHash: sha512.New, mac: true, minSecret: MinHMACSecret},
	RSASHA1:      {name: "rsa-sha1", key: KeyRSA, newHash: sha1.New, hash: crypto.SHA1},
	RSASHA256:    {name: "rsa-sha256", key: KeyRSA, newHash: sha256.New, hash: crypto.SHA256},
	RSAPSSSHA256: {name: "rsa-pss-sha256", key: KeyRSA, newHash: sha256.New, hash: crypto.SHA256},
	ECDSASHA256:  {name: "ecdsa-sha256", key: KeyECDSA, newHash: sha256.New, hash: crypto.SHA256},
	Ed25519:      {name: "ed25519", key: KeyEd25519},
	SM2SM3:       {name: "sm2-sm3", key: KeySM2},
}

func algorithmNames() []string {
	names := make([]string, len(algorithms))
	for i := range algorithms {
		names[i] = algorithms[i].name
	}
	return names
}

// Algorithms are the names, in order.
func Algorithms() []string { return algorithmNames()[1:] }

// ParseAlgorithm reads a name; the error lists those there are.
func ParseAlgorithm(name string) (Algorithm, error) {
	at, err := find("algorithm", name, algorithmNames())
	return Algorithm(at), err
}

// String is the algorithm's name.
func (a Algorithm) String() string { return nameOf("algorithm", int(a), algorithmNames()) }

func (a Algorithm) valid() bool { return a > 0 && int(a) < len(algorithms) }

// KeyKind is what sort of key the algorithm takes.
func (a Algorithm) KeyKind() KeyKind {
	if !a.valid() {
		return KeyNone
	}
	return algorithms[a].key
}

// SecretInMessage reports whether the secret takes part only as {secret} of the pattern. Without it there, anyone could
// make the signature: whoever compiles a contract refuses that.
func (a Algorithm) SecretInMessage() bool { return a == MD5 || a == SHA256 }

// Repeatable reports whether the same message and key always give the same signature. Where they do not, a signature that
// is to stay the same over attempts has to be kept.
func (a Algorithm) Repeatable() bool {
	return a != RSAPSSSHA256 && a != ECDSASHA256 && a != SM2SM3
}

// Costly reports whether signing takes a private key, and so belongs into a Pool.
func (a Algorithm) Costly() bool { return a.KeyKind() != KeySecret && a.KeyKind() != KeyNone }
