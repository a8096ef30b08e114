package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/google/go-cmp/cmp"
)

// What is signed verifies; with any bit of the message or the signature flipped, or bytes missing or added, it does not.
func TestSignedVerifiesAndNothingElseDoes(t *testing.T) {
	covered := map[Algorithm]bool{None: true}
	for _, pair := range pairs(t) {
		covered[pair.a] = true
		t.Run(pair.name, func(t *testing.T) {
			message := []byte("amount=10.50&order_no=20261123")
			signer, verifier := newSigner(t, pair.a, pair.key, pair.options), newVerifier(t, pair.a, pair.key, pair.options)
			signature := signed(t, signer, message)
			if !verifier.Verify(message, signature) {
				t.Fatal("what was signed does not verify")
			}
			if public := pair.key.Public(); public != nil {
				if !newVerifier(t, pair.a, publicKey(t, public), pair.options).Verify(message, signature) {
					t.Fatal("what was signed does not verify with the public half alone")
				}
			}
			step := 1
			if pair.a.Costly() {
				step = 7 // nearly every byte, and every place in a byte
			}
			for bit := 0; bit < 8*len(message); bit += step {
				message[bit/8] ^= 1 << (bit % 8)
				if verifier.Verify(message, signature) {
					t.Fatalf("verifies with bit %d of the message flipped", bit)
				}
				message[bit/8] ^= 1 << (bit % 8)
			}
			for bit := 0; bit < 8*len(signature); bit += step {
				signature[bit/8] ^= 1 << (bit % 8)
				if verifier.Verify(message, signature) {
					t.Fatalf("verifies with bit %d of the signature flipped", bit)
				}
				signature[bit/8] ^= 1 << (bit % 8)
			}
			for name, other := range map[string][]byte{
				"none": nil, "cut": signature[:len(signature)-1], "longer": append(slices.Clip(signature), 0),
				"zeros": make([]byte, len(signature)), "longer in the middle": slices.Insert(slices.Clone(signature), len(signature)/2, 0),
			} {
				if verifier.Verify(message, other) {
					t.Errorf("a signature that is %s verifies", name)
				}
			}
			if again := signed(t, signer, message); cmp.Equal(again, signature) != pair.a.Repeatable() {
				t.Errorf("signing again gives the same: %v, Repeatable says %v", !pair.a.Repeatable(), pair.a.Repeatable())
			}
		})
	}
	for _, name := range Algorithms() {
		if a, err := ParseAlgorithm(name); err != nil || !covered[a] {
			t.Errorf("%s is not tested (%v)", name, err)
		}
	}
}

func TestVerifierOfAnotherKeyOrOptionRefuses(t *testing.T) {
	message := []byte("20261123")
	sm2Key := privateKey(t, shangmi())
	for name, c := range map[string]struct {
		a             Algorithm
		signed, asked Key
		left, right   Options
	}{
		"other secret":  {a: HMACSHA256, signed: secretKey(t, "0123456789abcdef"), asked: secretKey(t, "0123456789abcdeF")},
		"other RSA":     {a: RSASHA256, signed: privateKey(t, rsa2048()), asked: privateKey(t, rsa1024())},
		"other curve":   {a: ECDSASHA256, signed: privateKey(t, p256()), asked: privateKey(t, p384())},
		"other user id": {a: SM2SM3, signed: sm2Key, asked: sm2Key, right: Options{UserID: "U123400000000000"}},
		"raw, not DER":  {a: SM2SM3, signed: sm2Key, asked: sm2Key, left: Options{Raw: true}},
		"DER, not raw":  {a: SM2SM3, signed: sm2Key, asked: sm2Key, right: Options{Raw: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if newVerifier(t, c.a, c.asked, c.right).Verify(message, signed(t, newSigner(t, c.a, c.signed, c.left), message)) {
				t.Error("it verifies")
			}
		})
	}
	pkcs, pss := newSigner(t, RSASHA256, privateKey(t, rsa2048()), Options{}), newVerifier(t, RSAPSSSHA256, privateKey(t, rsa2048()), Options{})
	if pss.Verify(message, signed(t, pkcs, message)) {
		t.Error("PKCS#1 v1.5 verifies as PSS")
	}
}

func TestDefaultUserIDIsTheAgreedOne(t *testing.T) {
	key := privateKey(t, shangmi())
	signature := signed(t, newSigner(t, SM2SM3, key, Options{}), []byte("m"))
	if !newVerifier(t, SM2SM3, key, Options{UserID: "1234567812345678"}).Verify([]byte("m"), signature) {
		t.Error("without a user id it is not 1234567812345678 that is signed")
	}
}

func TestNoneSignsNothing(t *testing.T) {
	if got := signed(t, newSigner(t, None, Key{}, Options{}), []byte("m")); len(got) != 0 {
		t.Errorf("signature %x, want none", got)
	}
	verifier := newVerifier(t, None, Key{}, Options{})
	if !verifier.Verify([]byte("m"), nil) || verifier.Verify([]byte("m"), []byte{1}) {
		t.Error("only the empty signature is one of none")
	}
}

func TestPairsThatDoNotFit(t *testing.T) {
	secret := secretKey(t, "0123456789abcdef")
	for _, c := range []struct {
		a       Algorithm
		key     Key
		options Options
		want    string
	}{
		{a: RSASHA256, key: privateKey(t, p256()), want: "rsa-sha256: the key must be of kind rsa, is an ecdsa private key of 256 bits"},
		{a: ECDSASHA256, key: privateKey(t, shangmi()), want: "ecdsa-sha256: the key must be of kind ecdsa, is an sm2 private key of 256 bits"},
		{a: SM2SM3, key: privateKey(t, p256()), want: "sm2-sm3: the key must be of kind sm2, is an ecdsa private key of 256 bits"},
		{a: Ed25519, key: secret, want: "ed25519: the key must be of kind ed25519, is a secret"},
		{a: HMACSHA256, key: privateKey(t, rsa2048()), want: "hmac-sha256: the key must be of kind secret, is an rsa private key of 2048 bits"},
		{a: HMACSHA256, want: "hmac-sha256: the key must be of kind secret, is no key"},
		{a: MD5, want: "md5: the key must be of kind secret, is no key"},
		{a: None, key: secret, want: "none: the key must be of kind none, is a secret"},
		{a: RSASHA256, key: publicKey(t, &rsa2048().PublicKey), want: "rsa-sha256: an rsa public key of 2048 bits cannot sign"},
		{a: HMACSHA256, key: secretKey(t, "0123456789abcde"), want: "hmac-sha256: a secret of 15 bytes must have at least 16, unless short ones are allowed"},
		{a: HMACSHA256, key: secret, options: Options{UserID: "u"}, want: `hmac-sha256: user id "u": only sm2-sm3 takes one`},
		{a: ECDSASHA256, key: privateKey(t, p256()), options: Options{Raw: true}, want: "ecdsa-sha256: raw: only sm2-sm3 has it"},
		{a: SM2SM3, key: privateKey(t, shangmi()), options: Options{UserID: strings.Repeat("u", 8192)}, want: "sm2-sm3: a user id of 8192 bytes must have at most 8191"},
		{a: 0, key: secret, want: `algorithm: "algorithm(0)" must be one of none, md5, sha256, hmac-md5, hmac-sha1, hmac-sha256, hmac-sha512, rsa-sha1, rsa-sha256, rsa-pss-sha256, ecdsa-sha256, ed25519, sm2-sm3`},
		{a: 99, key: secret, want: `algorithm: "algorithm(99)" must be one of none, md5, sha256, hmac-md5, hmac-sha1, hmac-sha256, hmac-sha512, rsa-sha1, rsa-sha256, rsa-pss-sha256, ecdsa-sha256, ed25519, sm2-sm3`},
	} {
		if _, err := NewSigner(c.a, c.key, c.options); err == nil || err.Error() != c.want {
			t.Errorf("NewSigner says %v, want %s", err, c.want)
		}
		if _, err := NewVerifier(c.a, c.key, c.options); (err == nil) != strings.HasSuffix(c.want, "cannot sign") {
			t.Errorf("NewVerifier says %v for %s", err, c.want)
		}
	}
	if _, err := NewSigner(HMACSHA256, secretKey(t, "short"), Options{ShortSecret: true}); err != nil {
		t.Errorf("a short secret that is allowed: %v", err)
	}
	if _, err := NewSigner(MD5, secretKey(t, "x"), Options{}); err != nil {
		t.Errorf("md5 takes any secret: %v", err)
	}
}

// foreign is a key as no algorithm takes it.
type foreign struct{ crypto.Signer }

func (foreign) Public() crypto.PublicKey { return "mine" }

func TestKeysThatNoAlgorithmTakes(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // only so that the small key can be made here
	small := must(rsa.GenerateKey(rand.Reader, 1000))
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	for want, private := range map[string]crypto.Signer{
		"key: an RSA key of 1000 bits must have 1024 to 8192":       small,
		"key: an EC key on P-521 must be on P-256, P-384 or SM2":    p521,
		"key: a key of type string must be RSA, EC, Ed25519 or SM2": foreign{},
		"key: an Ed25519 private key of 63 bytes must have 64":      edwards()[:63],
		"key: there is none": nil,
	} {
		if _, err := PrivateKey(private); err == nil || err.Error() != want {
			t.Errorf("PrivateKey says %v, want %s", err, want)
		}
	}
	if _, err := SecretKey(Secret{}); !errors.Is(err, ErrNoSecret) {
		t.Errorf("an empty secret: %v", err)
	}
}

// Parsers of certificates give SM2 keys as *ecdsa.PrivateKey, whose own Sign would make ECDSA signatures.
func TestECKeyOnSM2sCurveSignsAsSM2(t *testing.T) {
	own := shangmi().PrivateKey
	signature := signed(t, newSigner(t, SM2SM3, privateKey(t, &own), Options{}), []byte("m"))
	if !sm2.VerifyASN1WithSM2(&own.PublicKey, nil, []byte("m"), signature) {
		t.Error("it is no signature of SM2")
	}
}

// remote is a private key that is kept elsewhere, and answers as told.
type remote struct {
	crypto.Signer
	answer []byte
	err    error
}

func (r remote) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return r.answer, r.err }

func TestPrivateKeyElsewhereFails(t *testing.T) {
	away := errors.New("device is away")
	signer := newSigner(t, RSASHA256, privateKey(t, remote{Signer: rsa2048(), err: away}), Options{})
	if _, err := signer.Sign([]byte("m")); !errors.Is(err, away) || err.Error() != "sign with rsa-sha256: device is away" {
		t.Errorf("error %v", err)
	}
	for _, answer := range [][]byte{nil, {1, 2, 3}, {0x30, 6, 2, 1, 0, 2, 1, 1}, {0x30, 6, 2, 1, 0xff, 2, 1, 1}, {0x30, 6, 2, 1, 1, 2, 1, 1, 0}} {
		signer := newSigner(t, SM2SM3, privateKey(t, remote{Signer: shangmi(), answer: answer}), Options{Raw: true})
		if got, err := signer.Sign([]byte("m")); err == nil {
			t.Errorf("answer %x becomes the raw signature %x", answer, got)
		}
	}
}

func TestWeakness(t *testing.T) {
	for _, c := range []struct {
		a    Algorithm
		key  Key
		weak bool
	}{
		{RSASHA256, privateKey(t, rsa1024()), true},
		{RSASHA256, privateKey(t, rsa2048()), false},
		{RSASHA1, privateKey(t, rsa2048()), true},
		{HMACSHA256, secretKey(t, "short"), true},
		{HMACSHA256, secretKey(t, "0123456789abcdef"), false},
		{MD5, secretKey(t, "0123456789abcdef"), true},
		{None, Key{}, true},
		{SM2SM3, privateKey(t, shangmi()), false},
	} {
		if got := Weakness(c.a, c.key); (got != "") != c.weak {
			t.Errorf("%s with %s: %q", c.a, c.key, got)
		}
	}
}

func TestNamesParseBack(t *testing.T) {
	for _, name := range Algorithms() {
		if a, err := ParseAlgorithm(name); err != nil || a.String() != name {
			t.Errorf("algorithm %s: %v, %v", name, a, err)
		}
	}
	for _, name := range Encodings() {
		if e, err := ParseEncoding(name); err != nil || e.String() != name {
			t.Errorf("encoding %s: %v, %v", name, e, err)
		}
	}
	for _, name := range Ciphers() {
		if c, err := ParseCipher(name); err != nil || c.String() != name {
			t.Errorf("cipher %s: %v, %v", name, c, err)
		}
	}
	for _, name := range []string{"", "RSA2", "HMAC-SHA256", "algorithm(0)"} {
		if _, err := ParseAlgorithm(name); err == nil {
			t.Errorf("algorithm %q is taken", name)
		}
	}
	if _, err := ParseEncoding("Hex"); err == nil || err.Error() != `encoding: "Hex" must be one of base64, base64url, hex, HEX` {
		t.Errorf("encoding Hex: %v", err)
	}
}

// Whatever prints, logs or marshals a key, and whatever holds one, shows nothing of it.
func TestKeysDoNotPrint(t *testing.T) {
	const text = "correct-horse-battery-staple"
	secret, err := ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	key := secretKey(t, text)
	type holder struct {
		Secret Secret
		Key    Key
		hidden Secret
		inside Key
	}
	private := privateKey(t, edwards())
	things := []any{
		secret, &secret, key, &key, private,
		holder{secret, key, secret, key},
		&holder{secret, private, secret, private},
		[]Secret{secret},
		map[string]Key{"a": key},
		newSigner(t, HMACSHA256, key, Options{}), newVerifier(t, HMACSHA256, key, Options{}), newSigner(t, Ed25519, private, Options{}),
	}
	forms := []string{text, Hex.Encode([]byte(text)), HexUpper.Encode([]byte(text)), fmt.Sprintf("%d", []byte(text)), strings.Trim(fmt.Sprintf("%d", edwards()[:8]), "[]"), Hex.Encode(edwards()[:8])}
	for _, thing := range things {
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "thing", thing)
		marshalled, err := json.Marshal(thing)
		if err != nil {
			t.Errorf("%T: %v", thing, err)
		}
		shown := []string{log.String(), string(marshalled)}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			shown = append(shown, fmt.Sprintf(verb, thing))
		}
		for _, shown := range shown {
			for _, form := range forms {
				if strings.Contains(shown, form) {
					t.Errorf("%T shows %s", thing, shown)
				}
			}
		}
	}
}
