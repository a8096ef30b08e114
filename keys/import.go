package keys

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/emmansun/gmsm/smx509"
)

// MaxImport bounds what is imported, in bytes.
const MaxImport = 1 << 20

const (
	leastRSA     = 1024 // bits; below nobody takes it
	soundRSA     = 2048
	mostRSA      = 8192 // above a signature takes longer than an answer may
	leastWeak    = 8    // bytes of a secret
	leastSecret  = 16
	mostSecret   = 4096
	secretPrefix = "whsec_"
)

// Format says how what is imported is written.
type Format string

// The formats.
const (
	FormatAuto   Format = ""       // found out; a secret only with one of its prefixes
	FormatSecret Format = "secret" // hex:…, base64:…, whsec_…, text:…, or without a prefix the text as it is, without the end of its last line
)

// Options say how to read what is imported, and what it must be good for.
type Options struct {
	Format      Format
	Purpose     Purpose
	Password    []byte
	KeyPassword []byte    // of the key in a JKS, where it has one of its own
	Alias       string    // which entry of several
	AllowWeak   bool      // RSA keys from 1024 bits and secrets from 8 bytes, for what others insist on
	ActiveFrom  time.Time // when it comes into use: its certificate must be valid then
}

// entry is a private key in what is imported. In a JKS it is opened only when it is chosen.
type entry struct {
	alias  string
	signer crypto.Signer
	open   func() (crypto.Signer, error)
	chain  []*smx509.Certificate
}

// bundle is all that was found.
type bundle struct {
	entries      []entry
	certificates []*smx509.Certificate
	publics      []crypto.PublicKey
	seems        string // what it is instead, when nothing was found
	costs        costs
}

// Import reads a private key with its certificates, a public key, or a shared secret, in whatever form it comes: PEM, DER, bare
// base64, PKCS#8 (encrypted too), PKCS#1, SEC 1, PFX, JKS. What it returns has no name, no version and no times of use yet. An
// error is an *ImportError.
func Import(content []byte, o Options) (Key, error) {
	if len(content) > MaxImport {
		return Key{}, fault(FaultTooLarge, "it has %d bytes: at most %d are allowed", len(content), MaxImport)
	}
	if o.Format != FormatAuto && o.Format != FormatSecret {
		return Key{}, fault(FaultUnsupported, "format %q: want %q or none", o.Format, FormatSecret)
	}
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	if o.Format == FormatSecret || prefixed(content) {
		return importSecret(content, o)
	}
	found, err := read(content, o)
	if err != nil {
		return Key{}, err
	}
	return assemble(found, o)
}

func read(content []byte, o Options) (*bundle, error) {
	switch text := bytes.TrimSpace(content); {
	case len(text) == 0:
		return nil, fault(FaultNotAKey, "it is empty")
	case bytes.HasPrefix(content, []byte("\xfe\xed\xfe\xed")):
		return readJKS(content, o)
	case bytes.HasPrefix(content, []byte("\xce\xce\xce\xce")):
		return nil, fault(FaultUnsupported, "it is a JCEKS key store: convert it with keytool -importkeystore -deststoretype pkcs12")
	case bytes.HasPrefix(content, []byte("\xff\xfe")), bytes.HasPrefix(content, []byte("\xfe\xff")):
		return nil, fault(FaultNotAKey, "it is text in UTF-16: save it as plain text")
	case bytes.Contains(text, []byte("-----BEGIN")):
		return readPEM(text, o)
	case content[0] == 0x30:
		return readDER(content, o)
	default:
		if der, ok := bareBase64(text); ok { // as some platforms hand their keys out
			return readDER(der, o)
		}
		return nil, fault(FaultNotAKey, "%s", seems(text))
	}
}

// bareBase64 is DER without its PEM lines.
func bareBase64(text []byte) ([]byte, bool) {
	joined := strings.Join(strings.Fields(string(text)), "")
	der, err := base64.StdEncoding.DecodeString(joined)
	if err != nil {
		der, err = base64.RawStdEncoding.DecodeString(joined)
	}
	return der, err == nil && len(der) > 16 && der[0] == 0x30
}

// seems says what something looks like that is no key, without quoting it.
func seems(text []byte) string {
	lower := strings.ToLower(string(text[:min(len(text), 256)]))
	switch {
	case strings.HasPrefix(lower, "<!doctype html"), strings.HasPrefix(lower, "<html"):
		return "it seems to be an HTML page"
	case strings.HasPrefix(lower, "<"):
		return "it seems to be XML"
	case strings.HasPrefix(lower, "{"), strings.HasPrefix(lower, "["):
		return "it seems to be JSON"
	case strings.HasPrefix(lower, "ssh-"), strings.HasPrefix(lower, "ecdsa-sha2-"):
		return "it seems to be a public key of SSH"
	case strings.HasPrefix(lower, "putty-user-key"):
		return "it seems to be a key of PuTTY"
	case strings.HasPrefix(lower, "pk\x03\x04"):
		return "it seems to be a ZIP archive"
	case utf8.Valid(text):
		return "it is text that is no PEM; if it is a shared secret, say so with the format secret"
	}
	return "it is binary and neither DER, PFX nor JKS"
}

func prefixed(content []byte) bool {
	for _, prefix := range []string{secretPrefix, "hex:", "base64:", "text:"} {
		if bytes.HasPrefix(content, []byte(prefix)) {
			return true
		}
	}
	return false
}

// importSecret takes what is written as a secret. An end of line at its end belongs to the file, not to the secret.
func importSecret(content []byte, o Options) (Key, error) {
	text := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	var secret []byte
	var err error
	if digits, ok := strings.CutPrefix(text, "hex:"); ok {
		if secret, err = hex.DecodeString(strings.TrimSpace(digits)); err != nil {
			return Key{}, fault(FaultDamaged, "what follows hex: is no even number of hexadecimal digits")
		}
	} else if coded, prefix, ok := base64Secret(text); ok {
		if secret, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(coded), "=")); err != nil {
			return Key{}, fault(FaultDamaged, "what follows %s is no base64", prefix)
		}
	} else {
		secret = []byte(strings.TrimPrefix(text, "text:"))
	}
	least := leastSecret
	if o.AllowWeak {
		least = leastWeak
	}
	switch {
	case len(secret) < least && !o.AllowWeak && len(secret) >= leastWeak:
		return Key{}, fault(FaultTooSmall, "the secret has %d bytes: want at least %d, or allow_weak from %d", len(secret), leastSecret, leastWeak)
	case len(secret) < least:
		return Key{}, fault(FaultTooSmall, "the secret has %d bytes: want at least %d", len(secret), least)
	case len(secret) > mostSecret:
		return Key{}, fault(FaultTooLarge, "the secret has %d bytes: at most %d are allowed", len(secret), mostSecret)
	case o.Purpose == PurposeTLSClient:
		return Key{}, fault(FaultNoCertificate, "a shared secret proves nobody over TLS: want a private key and its certificate")
	}
	return describeSecret(secret), nil
}

func base64Secret(text string) (coded, prefix string, ok bool) {
	for _, prefix := range []string{"base64:", secretPrefix} {
		if coded, ok := strings.CutPrefix(text, prefix); ok {
			return coded, prefix, true
		}
	}
	return "", "", false
}

// assemble makes one key of what was found.
func assemble(found *bundle, o Options) (Key, error) {
	if len(found.entries) == 0 {
		return assemblePublic(found, o)
	}
	if o.Purpose == PurposeVerify {
		return Key{}, fault(FaultPrivateKey, "it holds a private key: to verify, import the certificate or the public key alone")
	}
	chosen, err := choose(found.entries, o.Alias)
	if err != nil {
		return Key{}, err
	}
	signer := chosen.signer
	if chosen.open != nil {
		if signer, err = chosen.open(); err != nil {
			return Key{}, err
		}
	}
	k, err := asymmetric(Material{signer: signer, public: signer.Public()})
	if err != nil {
		return Key{}, err
	}
	if err := checkSize(k.Material.public, o.AllowWeak); err != nil {
		return Key{}, err
	}
	if err := k.attach(append(chosen.chain, found.certificates...)); err != nil {
		return Key{}, err
	}
	if o.Purpose == PurposeTLSClient {
		switch {
		case len(k.Certificates) == 0:
			return Key{}, fault(FaultNoCertificate, "it holds a private key and no certificate: a TLS client needs both")
		case k.Algorithm == SM2:
			return Key{}, fault(FaultUnsupported, "an SM2 certificate cannot be used with TLS: that would be TLCP")
		}
	}
	return k, k.checkTimes(o.ActiveFrom)
}

// assemblePublic makes a key of a certificate or a public key alone, which is enough to verify, and to encrypt.
func assemblePublic(found *bundle, o Options) (Key, error) {
	public := o.Purpose == PurposeVerify || o.Purpose == PurposeEncrypt
	switch {
	case len(found.certificates)+len(found.publics) == 0 && found.seems != "":
		return Key{}, fault(FaultNotAKey, "%s", found.seems)
	case len(found.certificates)+len(found.publics) == 0:
		return Key{}, fault(FaultNotAKey, "there is no key in it")
	case !public && len(found.certificates) > 0:
		return Key{}, fault(FaultNoPrivateKey, "it holds a certificate and no private key")
	case !public:
		return Key{}, fault(FaultNoPrivateKey, "it holds a public key and no private one")
	}
	of, err := onePublic(found)
	if err != nil {
		return Key{}, err
	}
	k, err := asymmetric(Material{public: of})
	if err != nil {
		return Key{}, err
	}
	if err := checkSize(of, o.AllowWeak); err != nil {
		return Key{}, err
	}
	if err := k.attach(found.certificates); err != nil {
		return Key{}, err
	}
	return k, k.checkTimes(o.ActiveFrom)
}

func onePublic(found *bundle) (crypto.PublicKey, error) {
	if len(found.publics) > 1 {
		return nil, fault(FaultSeveralEntries, "it holds %d public keys: import one", len(found.publics))
	}
	if len(found.publics) == 1 {
		return found.publics[0], nil
	}
	for _, c := range found.certificates {
		if !issues(c, found.certificates) {
			return c.PublicKey, nil
		}
	}
	return found.certificates[0].PublicKey, nil
}

// issues reports whether a certificate is another one's issuer.
func issues(c *smx509.Certificate, of []*smx509.Certificate) bool {
	for _, other := range of {
		if other != c && bytes.Equal(other.RawIssuer, c.RawSubject) && !bytes.Equal(other.Raw, c.Raw) {
			return true
		}
	}
	return false
}

func choose(entries []entry, alias string) (entry, error) {
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.alias
		if alias != "" && strings.EqualFold(alias, e.alias) {
			return e, nil
		}
	}
	switch {
	case alias != "" && (len(entries) > 1 || entries[0].alias != ""):
		return entry{}, fault(FaultNoSuchAlias, "there is no entry %q: there are %q", alias, names)
	case alias != "":
		return entry{}, fault(FaultNoSuchAlias, "there is no entry %q: the only entry has no name; leave the alias empty", alias)
	case len(entries) > 1:
		return entry{}, fault(FaultSeveralEntries, "it holds %d private keys: choose one by its alias: %q", len(entries), names)
	}
	return entries[0], nil
}

// attach finds the certificate of a key and its issuers.
func (k *Key) attach(pool []*smx509.Certificate) error {
	if len(pool) == 0 {
		return nil
	}
	var own *smx509.Certificate
	for _, c := range pool {
		spki, err := smx509.MarshalPKIXPublicKey(c.PublicKey)
		if err == nil && bytes.Equal(spki, k.Public) && (own == nil || c.NotAfter.After(own.NotAfter)) {
			own = c // of a renewed one the newer
		}
	}
	if own == nil {
		return fault(FaultNoPair, "the certificate of %q is not one of this key", pool[0].Subject.String())
	}
	k.NotBefore, k.NotAfter = own.NotBefore.UTC(), own.NotAfter.UTC()
	k.SerialNumber = strings.ToUpper(own.SerialNumber.Text(16))
	for next := own; next != nil && len(k.Certificates) < maxChain; {
		k.Certificates = append(k.Certificates, next.Raw)
		next = issuerOf(next, pool)
	}
	return nil
}

const maxChain = 8

func issuerOf(c *smx509.Certificate, pool []*smx509.Certificate) *smx509.Certificate {
	if bytes.Equal(c.RawIssuer, c.RawSubject) {
		return nil
	}
	for _, issuer := range pool {
		if bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil {
			return issuer
		}
	}
	return nil
}

// checkTimes holds a certificate to the instant from which its key is used.
func (k *Key) checkTimes(from time.Time) error {
	switch {
	case len(k.Certificates) == 0:
		return nil
	case !from.Before(k.NotAfter):
		return fault(FaultExpired, "the certificate has ended on %s", k.NotAfter.Format(time.RFC3339))
	case from.Before(k.NotBefore):
		return fault(FaultNotYetValid, "the certificate begins on %s: set active_from to that or later", k.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func checkSize(public crypto.PublicKey, allowWeak bool) error {
	p, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil
	}
	switch bits := p.N.BitLen(); {
	case bits < leastRSA:
		return fault(FaultTooSmall, "the RSA key has %d bits: want at least %d", bits, soundRSA)
	case bits < soundRSA && !allowWeak:
		return fault(FaultTooSmall, "the RSA key has %d bits: want at least %d, or allow_weak from %d", bits, soundRSA, leastRSA)
	case bits > mostRSA:
		return fault(FaultUnsupported, "the RSA key has %d bits: at most %d are supported", bits, mostRSA)
	}
	return nil
}
