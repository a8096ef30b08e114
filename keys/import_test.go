package keys

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// files are made by openssl and keytool, as operators get them.
type files struct {
	t   *testing.T
	dir string
}

func (f files) run(name string, args ...string) {
	f.t.Helper()
	cmd := exec.CommandContext(f.t.Context(), name, args...)
	cmd.Dir = f.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (f files) openssl(line string) { f.t.Helper(); f.run("openssl", strings.Fields(line)...) }

func (f files) read(name string) []byte {
	f.t.Helper()
	content, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		f.t.Fatal(err)
	}
	return content
}

func (f files) both(names ...string) (all []byte) {
	for _, name := range names {
		all = append(all, f.read(name)...)
	}
	return all
}

func newFiles(t *testing.T) files {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	return files{t, t.TempDir()}
}

// Every form in which a key comes is read, and is the same key.
func TestImportForms(t *testing.T) {
	f := newFiles(t)
	f.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem")
	f.openssl("rsa -in rsa.pem -traditional -out pkcs1.pem")
	f.openssl("rsa -in rsa.pem -traditional -aes128 -passout pass:secret -out legacy.pem")
	f.openssl("pkcs8 -topk8 -in rsa.pem -nocrypt -outform DER -out pkcs8.der")
	f.openssl("rsa -in rsa.pem -traditional -outform DER -out pkcs1.der")
	f.openssl("pkcs8 -topk8 -in rsa.pem -v2 aes-256-cbc -passout pass:secret -out encrypted.pem")
	f.openssl("pkcs8 -topk8 -in rsa.pem -v2 des3 -passout pass:secret -outform DER -out encrypted.der")
	f.openssl("pkcs8 -topk8 -in rsa.pem -scrypt -passout pass:secret -out scrypt.pem")
	f.openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -subj /CN=CA -days 30 -out ca.pem")
	f.openssl("req -new -key rsa.pem -subj /CN=leaf -out leaf.csr")
	f.openssl("x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -set_serial 0x1A2B -days 20 -out leaf.pem")
	for name, args := range map[string]string{
		"modern.pfx": "", "legacy.pfx": "-legacy", "rc2.pfx": "-legacy -keypbe PBE-SHA1-RC2-40 -certpbe PBE-SHA1-RC2-40",
	} {
		f.openssl("pkcs12 -export -inkey rsa.pem -in leaf.pem -certfile ca.pem -passout pass:secret -out " + name + " " + args)
	}
	f.openssl("pkcs12 -export -inkey rsa.pem -in leaf.pem -passout pass: -out open.pfx")
	f.openssl("ecparam -name prime256v1 -genkey -out sec1.pem") // with EC PARAMETERS
	f.openssl("pkcs8 -topk8 -nocrypt -in sec1.pem -out p256.pem")
	f.openssl("genpkey -algorithm ed25519 -out ed25519.pem")
	f.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:SM2 -out sm2.pem")
	f.openssl("req -x509 -new -key sm2.pem -sm3 -subj /CN=SM2 -days 30 -out sm2.crt")
	f.openssl("rsa -in rsa.pem -pubout -out public.pem")
	jks := false
	if _, err := exec.LookPath("keytool"); err == nil {
		jks = true
		f.openssl("pkcs12 -export -name pay -inkey rsa.pem -in leaf.pem -certfile ca.pem -passout pass:secret -out named.pfx")
		f.run("keytool", strings.Fields("-importkeystore -noprompt -srckeystore named.pfx -srcstoretype PKCS12 -srcstorepass secret -destkeystore old.jks -deststoretype JKS -deststorepass secret")...)
		f.run("keytool", strings.Fields("-importkeystore -noprompt -srckeystore named.pfx -srcstoretype PKCS12 -srcstorepass secret -destkeystore new.jks -deststoretype PKCS12 -deststorepass secret")...)
		f.run("keytool", strings.Fields("-genkeypair -alias second -keyalg RSA -keysize 2048 -dname CN=second -keystore old.jks -storetype JKS -storepass secret -keypass otherpass")...)
		f.run("keytool", strings.Fields("-genkeypair -alias second -keyalg RSA -keysize 2048 -dname CN=second -keystore new.jks -storetype PKCS12 -storepass secret")...)
	}
	now := time.Now().Add(time.Minute)
	want, err := Import(f.read("rsa.pem"), Options{Purpose: PurposeSign, ActiveFrom: now})
	if err != nil {
		t.Fatal(err)
	}
	bare := []byte(base64.StdEncoding.EncodeToString(f.read("pkcs8.der")))
	for name, c := range map[string]struct {
		content   []byte
		o         Options
		algorithm Algorithm
		chain     int
	}{
		"PKCS#1":                       {f.read("pkcs1.pem"), Options{}, RSA2048, 0},
		"PKCS#1, DER":                  {f.read("pkcs1.der"), Options{}, RSA2048, 0},
		"PKCS#8, DER":                  {f.read("pkcs8.der"), Options{}, RSA2048, 0},
		"bare base64":                  {bare, Options{}, RSA2048, 0},
		"bare base64, in lines":        {append(bytes.Join([][]byte{bare[:64], bare[64:]}, []byte("\r\n")), '\n'), Options{}, RSA2048, 0},
		"with a byte order mark":       {append([]byte("\xef\xbb\xbf"), f.read("rsa.pem")...), Options{}, RSA2048, 0},
		"with the ends of Windows":     {bytes.ReplaceAll(f.read("rsa.pem"), []byte("\n"), []byte("\r\n")), Options{}, RSA2048, 0},
		"a password that is not used":  {f.read("rsa.pem"), Options{Password: []byte("x")}, RSA2048, 0},
		"encrypted PEM of old":         {f.read("legacy.pem"), Options{Password: []byte("secret")}, RSA2048, 0},
		"encrypted PKCS#8":             {f.read("encrypted.pem"), Options{Password: []byte("secret")}, RSA2048, 0},
		"encrypted PKCS#8, 3DES, DER":  {f.read("encrypted.der"), Options{Password: []byte("secret")}, RSA2048, 0},
		"encrypted PKCS#8, scrypt":     {f.read("scrypt.pem"), Options{Password: []byte("secret")}, RSA2048, 0},
		"key, then certificate":        {f.both("rsa.pem", "leaf.pem"), Options{Purpose: PurposeTLSClient}, RSA2048, 1},
		"issuer, certificate, key":     {f.both("ca.pem", "leaf.pem", "rsa.pem"), Options{Purpose: PurposeTLSClient}, RSA2048, 2},
		"the same key twice":           {f.both("rsa.pem", "leaf.pem", "pkcs1.pem"), Options{}, RSA2048, 1},
		"PFX":                          {f.read("modern.pfx"), Options{Password: []byte("secret"), Purpose: PurposeTLSClient}, RSA2048, 2},
		"PFX, legacy":                  {f.read("legacy.pfx"), Options{Password: []byte("secret")}, RSA2048, 2},
		"PFX, RC2-40":                  {f.read("rc2.pfx"), Options{Password: []byte("secret")}, RSA2048, 2},
		"PFX without a password":       {f.read("open.pfx"), Options{}, RSA2048, 1},
		"SEC 1":                        {f.read("sec1.pem"), Options{}, ECDSAP256, 0},
		"ECDSA":                        {f.read("p256.pem"), Options{}, ECDSAP256, 0},
		"Ed25519":                      {f.read("ed25519.pem"), Options{}, Ed25519, 0},
		"SM2":                          {f.read("sm2.pem"), Options{}, SM2, 0},
		"SM2 with its certificate":     {f.both("sm2.crt", "sm2.pem"), Options{}, SM2, 1},
		"to verify: public key":        {f.read("public.pem"), Options{Purpose: PurposeVerify}, RSA2048, 0},
		"to verify: certificate":       {f.read("leaf.pem"), Options{Purpose: PurposeVerify}, RSA2048, 1},
		"to verify: with its issuer":   {f.both("ca.pem", "leaf.pem"), Options{Purpose: PurposeVerify}, RSA2048, 2},
		"to verify: SM2 certificate":   {f.read("sm2.crt"), Options{Purpose: PurposeVerify}, SM2, 1},
		"JKS":                          {nil, Options{Password: []byte("secret"), Alias: "pay"}, RSA2048, 2},
		"JKS that is a PFX, by alias":  {nil, Options{Password: []byte("secret"), Alias: "PAY"}, RSA2048, 2},
		"JKS, a password of the key's": {nil, Options{Password: []byte("secret"), KeyPassword: []byte("otherpass"), Alias: "second"}, RSA2048, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "JKS") {
				if !jks {
					t.Skip("keytool is not installed")
				}
				c.content = f.read(map[bool]string{true: "new.jks", false: "old.jks"}[strings.Contains(name, "PFX")])
			}
			if c.o.Purpose == "" {
				c.o.Purpose = PurposeSign
			}
			c.o.ActiveFrom = now
			k, err := Import(c.content, c.o)
			if err != nil {
				t.Fatal(err)
			}
			if k.Algorithm != c.algorithm || len(k.Certificates) != c.chain {
				t.Errorf("%s with %d certificates, want %s with %d", k.Algorithm, len(k.Certificates), c.algorithm, c.chain)
			}
			if c.algorithm == RSA2048 && c.o.Alias != "second" && k.Fingerprint != want.Fingerprint {
				t.Errorf("another key: %s, want %s", k.Fingerprint, want.Fingerprint)
			}
			if c.o.Alias == "" && c.algorithm == RSA2048 && c.chain > 0 && (k.SerialNumber != "1A2B" || k.Decimal() != "6699") {
				t.Errorf("serial number %s, %s", k.SerialNumber, k.Decimal())
			}
			if (k.Material.Signer() == nil) != (c.o.Purpose == PurposeVerify) {
				t.Error("a private key where there is none, or none where there is one")
			}
			k.Purpose = c.o.Purpose
			if c.o.Purpose == PurposeTLSClient {
				if pair, err := k.TLSCertificate(); err != nil || pair.Leaf.Subject.CommonName != "leaf" {
					t.Errorf("%v, %v", pair.Leaf, err)
				}
			}
		})
	}
}

// What cannot be taken is named, without quoting anything of it.
func TestImportFaults(t *testing.T) {
	f := newFiles(t)
	f.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out a.pem")
	f.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out b.pem")
	f.openssl("genrsa -out small.pem 1024")
	f.openssl("genrsa -out tiny.pem 512")
	f.openssl("req -x509 -new -key a.pem -subj /CN=a -days 30 -out a.crt")
	f.openssl("req -x509 -new -key b.pem -subj /CN=b -days 30 -out b.crt")
	f.openssl("req -new -key a.pem -subj /CN=a -out a.csr")
	f.openssl("rsa -in a.pem -pubout -out public.pem")
	f.openssl("rsa -in a.pem -traditional -des3 -passout pass:secret -out legacy.pem")
	f.openssl("pkcs8 -topk8 -in a.pem -v2 aes-256-cbc -passout pass:secret -out encrypted.pem")
	f.openssl("pkcs8 -topk8 -in a.pem -v1 PBE-SHA1-3DES -passout pass:secret -out pbe.pem")
	f.openssl("pkcs12 -export -inkey a.pem -in a.crt -passout pass:secret -out a.pfx")
	f.openssl("pkcs12 -export -nokeys -in a.crt -passout pass:secret -out certs.pfx")
	f.openssl("ecparam -name secp256k1 -genkey -noout -out k1.pem")
	f.openssl("crl2pkcs7 -nocrl -certfile a.crt -out a.p7b")
	f.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:SM2 -out sm2.pem")
	f.openssl("req -x509 -new -key sm2.pem -sm3 -subj /CN=SM2 -days 30 -out sm2.crt")
	now, day := time.Now().Add(time.Minute), 24*time.Hour
	pass := []byte("wrong password")
	for name, c := range map[string]struct {
		content []byte
		o       Options
		fault   Fault
		says    string
	}{
		"empty":                          {nil, Options{}, FaultNotAKey, "empty"},
		"blank":                          {[]byte(" \n"), Options{}, FaultNotAKey, "empty"},
		"an HTML page":                   {[]byte("<!DOCTYPE html><p>please sign in"), Options{}, FaultNotAKey, "an HTML page"},
		"JSON":                           {[]byte(`{"key": 1}`), Options{}, FaultNotAKey, "JSON"},
		"an SSH key":                     {[]byte("ssh-rsa AAAAB3NzaC1yc2E x@y"), Options{}, FaultNotAKey, "SSH"},
		"text":                           {[]byte("a merchant's shared secret"), Options{}, FaultNotAKey, "format secret"},
		"a request":                      {f.read("a.csr"), Options{}, FaultNotAKey, "certificate request"},
		"PKCS#7":                         {f.read("a.p7b"), Options{}, FaultNotAKey, "PKCS#7"},
		"cut off":                        {f.read("a.pem")[:200], Options{}, FaultDamaged, "cut off"},
		"UTF-16":                         {[]byte("\xff\xfe-\x00-\x00"), Options{}, FaultNotAKey, "UTF-16"},
		"JCEKS":                          {[]byte("\xce\xce\xce\xce\x00\x00\x00\x02"), Options{}, FaultUnsupported, "keytool -importkeystore"},
		"a broken JKS":                   {[]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00"), Options{}, FaultDamaged, "JKS"},
		"too large":                      {bytes.Repeat([]byte("x"), MaxImport+1), Options{}, FaultTooLarge, "1048577 bytes"},
		"no password, PEM of old":        {f.read("legacy.pem"), Options{}, FaultPasswordNeeded, ""},
		"wrong password, PEM of old":     {f.read("legacy.pem"), Options{Password: pass}, FaultWrongPassword, ""},
		"no password, PKCS#8":            {f.read("encrypted.pem"), Options{}, FaultPasswordNeeded, ""},
		"wrong password, PKCS#8":         {f.read("encrypted.pem"), Options{Password: pass}, FaultWrongPassword, ""},
		"PKCS#8 with PBE of PKCS#12":     {f.read("pbe.pem"), Options{Password: pass}, FaultUnsupported, "openssl pkcs8 -topk8"},
		"no password, PFX":               {f.read("a.pfx"), Options{}, FaultPasswordNeeded, ""},
		"wrong password, PFX":            {f.read("a.pfx"), Options{Password: pass}, FaultWrongPassword, ""},
		"certificates in a PFX":          {f.read("certs.pfx"), Options{Password: []byte("secret")}, FaultNoPrivateKey, "certificate"},
		"several keys":                   {f.both("a.pem", "b.pem"), Options{}, FaultSeveralEntries, `"1" "2"`},
		"an alias that is not there":     {f.both("a.pem", "b.pem"), Options{Alias: "x"}, FaultNoSuchAlias, `"x"`},
		"an alias for a nameless one":    {f.read("a.pem"), Options{Alias: "x"}, FaultNoSuchAlias, "leave the alias empty"},
		"no pair":                        {f.both("a.pem", "b.crt"), Options{}, FaultNoPair, "CN=b"},
		"expired":                        {f.both("a.pem", "a.crt"), Options{ActiveFrom: now.Add(31 * day)}, FaultExpired, "ended"},
		"not yet valid":                  {f.both("a.pem", "a.crt"), Options{ActiveFrom: now.Add(-day)}, FaultNotYetValid, "active_from"},
		"small":                          {f.read("small.pem"), Options{}, FaultTooSmall, "1024 bits"},
		"tiny, though weak ones may be":  {f.read("tiny.pem"), Options{AllowWeak: true}, FaultTooSmall, "512 bits"},
		"another curve":                  {f.read("k1.pem"), Options{}, FaultUnsupported, "ECDSA"},
		"a certificate alone":            {f.read("a.crt"), Options{}, FaultNoPrivateKey, "certificate"},
		"a public key alone":             {f.read("public.pem"), Options{}, FaultNoPrivateKey, "public key"},
		"TLS without a certificate":      {f.read("a.pem"), Options{Purpose: PurposeTLSClient}, FaultNoCertificate, ""},
		"TLS with SM2":                   {f.both("sm2.pem", "sm2.crt"), Options{Purpose: PurposeTLSClient}, FaultUnsupported, "TLCP"},
		"TLS with a secret":              {[]byte("hex:00112233445566778899aabbccddeeff"), Options{Purpose: PurposeTLSClient}, FaultNoCertificate, ""},
		"a private key to verify with":   {f.read("a.pem"), Options{Purpose: PurposeVerify}, FaultPrivateKey, ""},
		"a short secret":                 {[]byte("text:12345678"), Options{}, FaultTooSmall, "allow_weak"},
		"a very short secret":            {[]byte("text:1234567"), Options{AllowWeak: true}, FaultTooSmall, "7 bytes"},
		"hex with an odd digit":          {[]byte("hex:001122334455667788 9"), Options{}, FaultDamaged, "hex"},
		"base64 that is none":            {[]byte("whsec_!!!!"), Options{}, FaultDamaged, "whsec_"},
		"a long secret":                  {append([]byte("text:"), bytes.Repeat([]byte("x"), 4097)...), Options{}, FaultTooLarge, "4097"},
		"a format that nobody knows":     {[]byte("x"), Options{Format: "pgp"}, FaultUnsupported, `"pgp"`},
		"DER that is cut off":            {[]byte("\x30\x82\x04\xa4\x02\x01\x00"), Options{}, FaultDamaged, "DER"},
		"one byte of DER":                {[]byte("\x30"), Options{}, FaultDamaged, "DER"},
		"wrong password, and a long one": {f.read("a.pfx"), Options{Password: bytes.Repeat([]byte("é"), 5000)}, FaultWrongPassword, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if c.o.Purpose == "" {
				c.o.Purpose = PurposeSign
			}
			if c.o.ActiveFrom.IsZero() {
				c.o.ActiveFrom = now
			}
			k, err := Import(c.content, c.o)
			var fault *ImportError
			if !errors.As(err, &fault) || fault.Fault != c.fault || !strings.Contains(fault.Detail, c.says) {
				t.Fatalf("%v, want %s: …%s…", err, c.fault, c.says)
			}
			if k.Material.Signer() != nil && c.fault != FaultExpired && c.fault != FaultNotYetValid {
				t.Error("a key comes with the fault")
			}
			if strings.Contains(err.Error(), "wrong password") || len(c.content) > 20 && strings.Contains(err.Error(), string(c.content[:20])) {
				t.Errorf("it quotes what it is about: %s", err)
			}
		})
	}
	if _, err := Import(f.read("small.pem"), Options{Purpose: PurposeSign, AllowWeak: true, ActiveFrom: now}); err != nil {
		t.Errorf("a weak one that is allowed: %v", err)
	}
}

func TestImportSecrets(t *testing.T) {
	for given, want := range map[string]string{
		"hex:00112233445566778899aabbccddeeff\n": "\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
		"base64:MDEyMzQ1Njc4OWFiY2RlZg==":        "0123456789abcdef",
		"whsec_MDEyMzQ1Njc4OWFiY2RlZg":           "0123456789abcdef",
		"text:hex:0123456789abcdef":              "hex:0123456789abcdef",
		"0123456789abcdef\r\n":                   "0123456789abcdef",
		"0123456789abcdef \n\n":                  "0123456789abcdef \n", // what stands before the last end of line is the secret
	} {
		k, err := Import([]byte(given), Options{Format: FormatSecret, Purpose: PurposeSign})
		if err != nil || string(k.Material.Secret()) != want || k.Algorithm != Symmetric {
			t.Errorf("%q: %q, %v", given, k.Material.Secret(), err)
		}
		again, _ := Import([]byte(given), Options{Format: FormatSecret, Purpose: PurposeSign})
		if again.Fingerprint == k.Fingerprint || !again.Material.Equal(k.Material) {
			t.Error("the fingerprint of a secret can be compared from outside, or the secret cannot from inside")
		}
	}
}

// Nothing that formats a key, its set or its sealed form shows what is secret.
func TestMaterialIsNeverShown(t *testing.T) {
	secret := "0123456789abcdef0123456789abcdef"
	k, err := Import([]byte("text:"+secret), Options{Purpose: PurposeSign})
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := Generate(RSA2048, 0)
	if err != nil {
		t.Fatal(err)
	}
	set := &Set{Name: "n", Purpose: PurposeSign, Keys: []Key{k, rsaKey}}
	sealings, err := set.Sealings()
	if err != nil {
		t.Fatal(err)
	}
	core, lines := observer.New(zapcore.DebugLevel)
	zap.New(core).Info("x", zap.Any("key", k), zap.Any("material", k.Material), zap.Any("set", set), zap.Stringer("m", k.Material), zap.Reflect("r", &k))
	text, err := json.Marshal([]any{k, set, k.Material, rsaKey.Material, map[string]any{"m": &k.Material}})
	if err != nil {
		t.Fatal(err)
	}
	shown := string(text) + fmt.Sprintf("%v %+v %#v %s %x %q %d", k, k, k, k.Material, k.Material, k.Material, k.Material) +
		fmt.Sprintf("%v %+v %#v", set, *set, set.Keys) + fmt.Sprintf("%v %+v %#v", sealings, sealings, sealings)
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{})
	var logged bytes.Buffer
	for _, line := range lines.All() {
		buf, err := enc.EncodeEntry(line.Entry, line.Context)
		if err != nil {
			t.Fatal(err)
		}
		logged.Write(buf.Bytes())
	}
	shown += logged.String()
	for _, hidden := range []string{secret, fmt.Sprintf("%x", secret), base64.StdEncoding.EncodeToString([]byte(secret)), "48 49 50", "0x30, 0x31"} {
		if strings.Contains(shown, hidden) {
			t.Fatalf("shown as %q in %s", hidden, shown)
		}
	}
}

func FuzzImport(f *testing.F) {
	k, err := Generate(Ed25519, 0)
	if err != nil {
		f.Fatal(err)
	}
	set := &Set{Keys: []Key{k}}
	sealed, err := set.Sealings()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed[0].PKCS8, "")
	for _, seed := range []string{"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x01\x00\x01a", "hex:00", "\x30\x80\x02\x01\x03", "MIIB"} {
		f.Add([]byte(seed), "secret")
	}
	f.Fuzz(func(t *testing.T, content []byte, password string) {
		for _, purpose := range Purposes() {
			k, err := Import(content, Options{Purpose: purpose, Password: []byte(password), ActiveFrom: time.Unix(1_800_000_000, 0)})
			var fault *ImportError
			if err != nil && !errors.As(err, &fault) {
				t.Fatalf("%T: %v", err, err)
			}
			if err == nil && (k.Fingerprint == "" || k.Algorithm == "") {
				t.Fatal("taken, and no key")
			}
		}
	})
}
