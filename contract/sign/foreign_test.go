package sign

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/smx509"
)

// The tests below ask openssl and node, which share no code with us. openssl has to be there (Debian: openssl); without
// node its test is skipped, and the published vectors of AES-256-GCM remain.

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed to check signatures independently: %v", name, err)
	}
	return path
}

// file writes one for a program to read.
func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openssl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(program(t, "openssl"), args...).CombinedOutput()
	return string(out), err
}

func publicPEM(t *testing.T, key Key) string {
	t.Helper()
	marshal := x509.MarshalPKIXPublicKey
	if key.Kind() == KeySM2 {
		marshal = smx509.MarshalPKIXPublicKey
	}
	der, err := marshal(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return file(t, "public.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func privatePEM(t *testing.T, key Key) string {
	t.Helper()
	var der []byte
	var err error
	if key.Kind() == KeySM2 {
		der, err = smx509.MarshalPKCS8PrivateKey(key.held().private)
	} else {
		der, err = x509.MarshalPKCS8PrivateKey(key.held().private)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file(t, "private.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// opensslOptions are what it needs to be told for each algorithm.
func opensslOptions(a Algorithm, options Options) []string {
	switch a { //nolint:exhaustive // the ones that have private keys
	case RSASHA1:
		return []string{"-rawin", "-digest", "sha1", "-pkeyopt", "rsa_padding_mode:pkcs1"}
	case RSASHA256:
		return []string{"-rawin", "-digest", "sha256", "-pkeyopt", "rsa_padding_mode:pkcs1"}
	case RSAPSSSHA256:
		return []string{"-rawin", "-digest", "sha256", "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:32", "-pkeyopt", "rsa_mgf1_md:sha256"}
	case ECDSASHA256:
		return []string{"-rawin", "-digest", "sha256"}
	case Ed25519:
		return []string{"-rawin"}
	case SM2SM3:
		return []string{"-rawin", "-digest", "sm3", "-pkeyopt", "distid:" + string(userID(options))}
	}
	return nil
}

// asymmetric are the pairs that openssl knows as they are, raw SM2 signatures apart.
func asymmetric(t *testing.T) []pair {
	t.Helper()
	all := append(pairs(t), pair{name: "sm2-sm3, user id", a: SM2SM3, key: privateKey(t, shangmi()), options: Options{UserID: "U123400000000000"}})
	return slices.DeleteFunc(all, func(p pair) bool { return !p.a.Costly() || p.options.Raw })
}

func TestOpenSSLVerifiesWhatWeSign(t *testing.T) {
	message := []byte("1414277957\nibuaiVcKdpRxkhJA\n{\"amount\":10.50}\n")
	for _, pair := range asymmetric(t) {
		t.Run(pair.name, func(t *testing.T) {
			signature := file(t, "signature", signed(t, newSigner(t, pair.a, pair.key, pair.options), message))
			args := append([]string{"pkeyutl", "-verify", "-pubin", "-inkey", publicPEM(t, pair.key), "-sigfile", signature}, opensslOptions(pair.a, pair.options)...)
			if out, err := openssl(t, append(args, "-in", file(t, "message", message))...); err != nil {
				t.Errorf("openssl refuses: %v: %s", err, out)
			}
			if out, err := openssl(t, append(args, "-in", file(t, "message", append(message, '.')))...); err == nil {
				t.Errorf("openssl accepts it for another message: %s", out)
			}
		})
	}
}

func TestWeVerifyWhatOpenSSLSigns(t *testing.T) {
	message := []byte("1414277957\nibuaiVcKdpRxkhJA\n{\"amount\":10.50}\n")
	for _, pair := range asymmetric(t) {
		t.Run(pair.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "signature")
			args := append([]string{"pkeyutl", "-sign", "-inkey", privatePEM(t, pair.key), "-in", file(t, "message", message), "-out", path}, opensslOptions(pair.a, pair.options)...)
			if out, err := openssl(t, args...); err != nil {
				t.Fatalf("openssl: %v: %s", err, out)
			}
			signature, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !newVerifier(t, pair.a, pair.key, pair.options).Verify(message, signature) {
				t.Error("it does not verify")
			}
		})
	}
}

// A raw signature is the same r and s as the DER one that openssl takes.
func TestOpenSSLVerifiesRawSM2(t *testing.T) {
	key, message := privateKey(t, shangmi()), []byte("m")
	raw := signed(t, newSigner(t, SM2SM3, key, Options{Raw: true}), message)
	conf := file(t, "asn1.conf", []byte("asn1=SEQUENCE:s\n[s]\nr=INTEGER:0x"+hex.EncodeToString(raw[:32])+"\ns=INTEGER:0x"+hex.EncodeToString(raw[32:])+"\n"))
	der := filepath.Join(t.TempDir(), "der")
	if out, err := openssl(t, "asn1parse", "-genconf", conf, "-out", der); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	args := append([]string{"pkeyutl", "-verify", "-pubin", "-inkey", publicPEM(t, key), "-sigfile", der, "-in", file(t, "message", message)}, opensslOptions(SM2SM3, Options{})...)
	if out, err := openssl(t, args...); err != nil {
		t.Errorf("openssl refuses: %v: %s", err, out)
	}
}

func TestOpenSSLMakesTheSameHashesAndMACs(t *testing.T) {
	message := []byte("amount=10.50&order_no=20261123&key=192006250b4c09247ec02edce69f6a2d")
	const secret = "192006250b4c09247ec02edce69f6a2d"
	for a, args := range map[Algorithm][]string{
		MD5:        {"-md5"},
		SHA256:     {"-sha256"},
		HMACMD5:    {"-md5", "-mac", "HMAC", "-macopt", "key:" + secret},
		HMACSHA1:   {"-sha1", "-mac", "HMAC", "-macopt", "key:" + secret},
		HMACSHA256: {"-sha256", "-mac", "HMAC", "-macopt", "key:" + secret},
		HMACSHA512: {"-sha512", "-mac", "HMAC", "-macopt", "key:" + secret},
	} {
		out, err := openssl(t, append(append([]string{"dgst", "-r"}, args...), file(t, "message", message))...)
		if err != nil {
			t.Fatalf("openssl: %v: %s", err, out)
		}
		want, _, _ := strings.Cut(out, " ")
		if got := Hex.Encode(signed(t, newSigner(t, a, secretKey(t, secret), Options{}), message)); got != want {
			t.Errorf("%s: %s, openssl says %s", a, got, want)
		}
	}
}

func TestOpenSSLOpensSM4CBC(t *testing.T) {
	key, iv := unhex(t, "0123456789ABCDEFFEDCBA9876543210"), unhex(t, "000102030405060708090A0B0C0D0E0F")
	sealer, err := NewSealer(SM4CBC, NewSecret(key))
	if err != nil {
		t.Fatal(err)
	}
	for _, plain := range []string{"", `{"amount":10.50}`, "fifteen bytes: ", strings.Repeat("long ", 1000)} {
		sealed, err := sealer.Seal(iv, []byte(plain), nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := openssl(t, "enc", "-d", "-sm4-cbc", "-K", hex.EncodeToString(key), "-iv", hex.EncodeToString(iv), "-in", file(t, "sealed", sealed))
		if err != nil || out != plain {
			t.Errorf("openssl opens %q as %q (%v)", plain, out, err)
		}
	}
}

// What a merchant of WeChat Pay v3 does with a resource, in node.
func TestNodeOpensAES256GCM(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not here")
	}
	const script = `
		const crypto = require('crypto');
		const [key, nonce, text, additional] = process.argv.slice(1);
		const sealed = Buffer.from(text, 'base64');
		const d = crypto.createDecipheriv('aes-256-gcm', Buffer.from(key), Buffer.from(nonce));
		d.setAAD(Buffer.from(additional));
		d.setAuthTag(sealed.subarray(-16));
		process.stdout.write(Buffer.concat([d.update(sealed.subarray(0, -16)), d.final()]));`
	const key, nonce, additional, plain = "0123456789abcdef0123456789ABCDEF", "fdasflkja484", "transaction", `{"amount":{"total":100},"附言":"元"}`
	sealer, err := NewSealer(AES256GCM, NewSecret([]byte(key)))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealer.Seal([]byte(nonce), []byte(plain), []byte(additional))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(node, "-e", script, key, nonce, Base64.Encode(sealed), additional).CombinedOutput()
	if err != nil || string(out) != plain {
		t.Errorf("node opens %s (%v)", out, err)
	}
	if out, err := exec.Command(node, "-e", script, key, nonce, Base64.Encode(sealed), "other").CombinedOutput(); err == nil {
		t.Errorf("node opens it with other additional data: %s", out)
	}
}
