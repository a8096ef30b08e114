package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"strings"
	"sync"
	"testing"

	"github.com/emmansun/gmsm/sm2"
)

// Made once: RSA keys take long.
var (
	rsa2048 = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	rsa1024 = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024)) })
	rsa4096 = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 4096)) })
	p256    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	edwards = sync.OnceValue(func() ed25519.PrivateKey { _, key, err := ed25519.GenerateKey(rand.Reader); return must(key, err) })
	shangmi = sync.OnceValue(func() *sm2.PrivateKey { return must(sm2.GenerateKey(rand.Reader)) })
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	raw, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func secretKey(tb testing.TB, text string) Key {
	tb.Helper()
	secret, err := ParseSecret(text)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := SecretKey(secret)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func privateKey(tb testing.TB, private crypto.Signer) Key {
	tb.Helper()
	key, err := PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func publicKey(tb testing.TB, public crypto.PublicKey) Key {
	tb.Helper()
	key, err := PublicKey(public)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newSigner(tb testing.TB, a Algorithm, key Key, options Options) *Signer {
	tb.Helper()
	signer, err := NewSigner(a, key, options)
	if err != nil {
		tb.Fatal(err)
	}
	return signer
}

func newVerifier(tb testing.TB, a Algorithm, key Key, options Options) *Verifier {
	tb.Helper()
	verifier, err := NewVerifier(a, key, options)
	if err != nil {
		tb.Fatal(err)
	}
	return verifier
}

func signed(tb testing.TB, signer *Signer, message []byte) []byte {
	tb.Helper()
	signature, err := signer.Sign(message)
	if err != nil {
		tb.Fatal(err)
	}
	return signature
}

// pairs are every algorithm with a key and options that fit.
func pairs(tb testing.TB) []pair {
	tb.Helper()
	secret := secretKey(tb, "192006250b4c09247ec02edce69f6a2d")
	return []pair{
		{name: "md5", a: MD5, key: secret},
		{name: "sha256", a: SHA256, key: secret},
		{name: "hmac-md5", a: HMACMD5, key: secret},
		{name: "hmac-sha1", a: HMACSHA1, key: secret},
		{name: "hmac-sha256", a: HMACSHA256, key: secret},
		{name: "hmac-sha512", a: HMACSHA512, key: secret},
		{name: "rsa-sha1", a: RSASHA1, key: privateKey(tb, rsa2048())},
		{name: "rsa-sha1 1024", a: RSASHA1, key: privateKey(tb, rsa1024())},
		{name: "rsa-sha256", a: RSASHA256, key: privateKey(tb, rsa2048())},
		{name: "rsa-pss-sha256", a: RSAPSSSHA256, key: privateKey(tb, rsa2048())},
		{name: "ecdsa-sha256 P-256", a: ECDSASHA256, key: privateKey(tb, p256())},
		{name: "ecdsa-sha256 P-384", a: ECDSASHA256, key: privateKey(tb, p384())},
		{name: "ed25519", a: Ed25519, key: privateKey(tb, edwards())},
		{name: "sm2-sm3", a: SM2SM3, key: privateKey(tb, shangmi())},
		{name: "sm2-sm3 raw, user id", a: SM2SM3, key: privateKey(tb, shangmi()), options: Options{UserID: "U123400000000000", Raw: true}},
	}
}

type pair struct {
	name    string
	a       Algorithm
	key     Key
	options Options
}
