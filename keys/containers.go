package keys

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"strconv"
	"strings"

	"github.com/emmansun/gmsm/pkcs8"
	"github.com/emmansun/gmsm/smx509"
	"github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"
)

// readPEM takes blocks in any order.
func readPEM(text []byte, o Options) (*bundle, error) {
	found := &bundle{}
	blocks := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if err := found.addBlock(block, o); err != nil {
			return nil, err
		}
	}
	if blocks == 0 {
		return nil, fault(FaultDamaged, "it begins like PEM, and no block of it can be read: it is cut off, or its lines are broken")
	}
	for i := range found.entries {
		if len(found.entries) > 1 {
			found.entries[i].alias = strconv.Itoa(i + 1)
		}
	}
	return found, nil
}

func (b *bundle) addBlock(block *pem.Block, o Options) error {
	content := block.Bytes
	if strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
		var err error
		if content, err = decryptPEM(block, o.Password); err != nil {
			return err
		}
	}
	switch block.Type {
	case "CERTIFICATE", "X509 CERTIFICATE", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "SM2 PRIVATE KEY", "PUBLIC KEY", "RSA PUBLIC KEY":
		return b.addDER(content, o)
	case "EC PARAMETERS", "SM2 PARAMETERS", "DH PARAMETERS": // stand beside keys
	case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
		b.seems = "it is a certificate request: import what the certificate authority made of it"
	case "OPENSSH PRIVATE KEY":
		return fault(FaultUnsupported, "it is a key of OpenSSH: convert it with ssh-keygen -p -m pem")
	case "PKCS7", "CMS":
		b.seems = "it is PKCS#7, which holds certificates only: convert it with openssl pkcs7 -print_certs, and add the private key"
	case "X509 CRL":
		b.seems = "it is a list of revoked certificates"
	case "DSA PRIVATE KEY":
		return fault(FaultUnsupported, "it is a DSA key: want RSA, ECDSA, Ed25519 or SM2")
	default:
		b.seems = "it is PEM of a kind that is no key"
	}
	return nil
}

// decryptPEM opens the form from before PKCS#8.
func decryptPEM(block *pem.Block, password []byte) ([]byte, error) {
	if len(password) == 0 {
		return nil, fault(FaultPasswordNeeded, "the private key is encrypted")
	}
	content, err := smx509.DecryptPEMBlock(block, password) //nolint:staticcheck // deprecated for what it cannot prove; merchants have such files
	var shape []asn1.RawValue
	switch {
	case errors.Is(err, smx509.IncorrectPasswordError):
		return nil, wrongPassword()
	case err != nil:
		return nil, fault(FaultUnsupported, "its encryption is not supported: convert it with openssl pkcs8 -topk8 -v2 aes-256-cbc")
	}
	if _, err := asn1.Unmarshal(content, &shape); err != nil { // one wrong password in 256 passes for right
		return nil, wrongPassword()
	}
	return content, nil
}

func wrongPassword() error { return fault(FaultWrongPassword, "the password does not open it") }

func readDER(der []byte, o Options) (*bundle, error) {
	if der[1%len(der)] == 0x80 {
		return nil, fault(FaultUnsupported, "it is BER with indefinite lengths: convert it with openssl pkcs12, first to PEM, then back")
	}
	found := &bundle{}
	return found, found.addDER(der, o)
}

func (b *bundle) addDER(der []byte, o Options) error {
	switch shapeOf(der) {
	case shapePFX:
		return b.addPFX(der, o)
	case shapeEncrypted:
		return b.addEncrypted(der, o.Password)
	case shapePKCS8:
		return b.addPrivate(parsePKCS8(der))
	case shapePKCS1:
		return b.addPrivate(smx509.ParsePKCS1PrivateKey(der))
	case shapeSEC1:
		parsed, err := smx509.ParseTypedECPrivateKey(der)
		signer, _ := parsed.(crypto.Signer)
		return b.addPrivate(signer, err)
	case shapePKCS1Public:
		public, err := smx509.ParsePKCS1PublicKey(der)
		return b.addPublic(public, err)
	case shapePublic:
		public, err := smx509.ParsePKIXPublicKey(der)
		return b.addPublic(public, err)
	case shapeSigned:
		return b.addSigned(der)
	case shapePKCS7:
		b.seems = "it is PKCS#7, which holds certificates only: convert it with openssl pkcs7 -print_certs, and add the private key"
		return nil
	case shapeUnknown:
	}
	return fault(FaultDamaged, "it is DER of no kind of key or certificate, or is cut off")
}

type shape int

const (
	shapeUnknown shape = iota
	shapePFX
	shapePKCS8
	shapePKCS1
	shapeSEC1
	shapeEncrypted
	shapePublic
	shapePKCS1Public
	shapeSigned // a certificate or a request
	shapePKCS7
)

// shapeOf tells kinds of DER apart by their first values.
func shapeOf(der []byte) shape {
	var parts []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &parts); err != nil || len(bytes.TrimSpace(rest)) > 0 || len(parts) < 2 {
		return shapeUnknown
	}
	tags := func(tags ...int) bool {
		for i, tag := range tags {
			if len(parts) <= i || parts[i].Class != asn1.ClassUniversal || parts[i].Tag != tag {
				return false
			}
		}
		return true
	}
	var number int
	if _, err := asn1.Unmarshal(parts[0].FullBytes, &number); err != nil {
		number = -1
	}
	switch {
	case tags(asn1.TagInteger, asn1.TagSequence, asn1.TagOctetString):
		return shapePKCS8
	case tags(asn1.TagInteger, asn1.TagSequence) && number == 3:
		return shapePFX
	case tags(asn1.TagInteger, asn1.TagOctetString) && number == 1:
		return shapeSEC1
	case tags(asn1.TagInteger, asn1.TagInteger, asn1.TagInteger):
		return shapePKCS1
	case tags(asn1.TagInteger, asn1.TagInteger) && len(parts) == 2:
		return shapePKCS1Public
	case tags(asn1.TagSequence, asn1.TagOctetString):
		return shapeEncrypted
	case tags(asn1.TagSequence, asn1.TagBitString):
		return shapePublic
	case tags(asn1.TagSequence, asn1.TagSequence, asn1.TagBitString):
		return shapeSigned
	case tags(asn1.TagOID):
		return shapePKCS7
	}
	return shapeUnknown
}

func (b *bundle) addPrivate(signer crypto.Signer, err error) error {
	if err != nil || signer == nil {
		return fault(FaultUnsupported, "the private key cannot be read: it is damaged, or neither RSA, ECDSA (P-256, P-384, P-521), Ed25519 nor SM2")
	}
	for _, e := range b.entries { // the same key twice is one
		if (Material{signer: e.signer, public: e.signer.Public()}).Equal(Material{signer: signer, public: signer.Public()}) {
			return nil
		}
	}
	b.entries = append(b.entries, entry{signer: signer})
	return nil
}

func (b *bundle) addPublic(public crypto.PublicKey, err error) error {
	if err != nil {
		return fault(FaultUnsupported, "the public key cannot be read: it is damaged, or neither RSA, ECDSA (P-256, P-384, P-521), Ed25519 nor SM2")
	}
	b.publics = append(b.publics, public)
	return nil
}

// element is DER without the line end that an editor may have put behind it. A signature's last byte may look like one.
func element(der []byte) []byte {
	var first asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &first); err == nil && len(bytes.TrimSpace(rest)) == 0 {
		return first.FullBytes
	}
	return der
}

func (b *bundle) addSigned(der []byte) error {
	c, err := smx509.ParseCertificate(element(der))
	if err == nil {
		b.certificates = append(b.certificates, c)
		return nil
	}
	if _, requested := smx509.ParseCertificateRequest(der); requested == nil {
		b.seems = "it is a certificate request: import what the certificate authority made of it"
		return nil
	}
	return fault(FaultUnsupported, "the certificate cannot be read: it is damaged, or its key is neither RSA, ECDSA, Ed25519 nor SM2")
}

func (b *bundle) addEncrypted(der, password []byte) error {
	if len(password) == 0 {
		return fault(FaultPasswordNeeded, "the private key is encrypted")
	}
	if err := b.costs.ofPKCS8(der); err != nil {
		return err
	}
	parsed, err := pkcs8.ParsePKCS8PrivateKey(der, password)
	switch {
	case errors.Is(err, pkcs8.ErrUnsupportedPBES), err != nil && strings.Contains(err.Error(), "pbes") && strings.Contains(err.Error(), "unsupported"):
		return fault(FaultUnsupported, "its encryption is not supported: convert it with openssl pkcs8 -topk8 -v2 aes-256-cbc")
	case err != nil && (strings.Contains(err.Error(), "elliptic curve") || strings.Contains(err.Error(), "unknown algorithm")):
		return b.addPrivate(nil, err)
	case err != nil:
		return wrongPassword()
	}
	signer, _ := parsed.(crypto.Signer)
	return b.addPrivate(signer, nil)
}

// addPFX reads PKCS#12.
func (b *bundle) addPFX(der []byte, o Options) error {
	if err := b.costs.ofPFX(der); err != nil {
		return err
	}
	private, own, others, err := pkcs12.DecodeChain(der, string(o.Password))
	if err == nil {
		signer, _ := private.(crypto.Signer)
		if err := b.addPrivate(signer, nil); err != nil {
			return err
		}
		if err := b.addSigned(own.Raw); err != nil {
			return err
		}
		for _, c := range others {
			if err := b.addSigned(c.Raw); err != nil {
				return err
			}
		}
		return nil
	}
	if _, ok := errors.AsType[pkcs12.NotImplementedError](err); ok {
		return fault(FaultUnsupported, "a PFX of this kind is not supported: convert it to PEM with openssl pkcs12 -nodes")
	}
	if errors.Is(err, pkcs12.ErrIncorrectPassword) || errors.Is(err, pkcs12.ErrDecryption) {
		if len(o.Password) == 0 {
			return fault(FaultPasswordNeeded, "the PFX is encrypted")
		}
		return wrongPassword()
	}
	return b.addBags(der, o, strings.Contains(err.Error(), "private key missing")) // or several, or a key alone
}

// addBags reads a PFX that does not hold one key and its certificates. Keys and their certificates share an id.
func (b *bundle) addBags(der []byte, o Options, noKey bool) error {
	blocks, err := pkcs12.ToPEM(der, string(o.Password)) //nolint:staticcheck // deprecated for its PEM, which is only a way to the bags here
	if err != nil && noKey {
		return fault(FaultNoPrivateKey, "the PFX holds certificates and no private key; to verify, import them as PEM")
	}
	if err != nil {
		return fault(FaultUnsupported, "the PFX is damaged, or holds a key that is neither RSA nor ECDSA, or several keys of other kinds: convert it to PEM with openssl pkcs12 -nodes")
	}
	for _, block := range blocks {
		before := len(b.entries)
		if err := b.addDER(block.Bytes, o); err != nil {
			return err
		}
		if len(b.entries) > before {
			alias := block.Headers["friendlyName"]
			if alias == "" {
				alias = strconv.Itoa(len(b.entries))
			}
			b.entries[before].alias = alias
		}
	}
	return nil
}

// readJKS reads the key store of Java before 9. What is named .jks since then is a PFX, and is read as one.
func readJKS(content []byte, o Options) (*bundle, error) {
	store := keystore.New(keystore.WithOrderedAliases())
	if err := store.Load(bytes.NewReader(content), o.Password); err != nil {
		switch {
		case !strings.Contains(err.Error(), "invalid digest"):
			return nil, fault(FaultDamaged, "the JKS key store cannot be read: it is cut off or damaged")
		case len(o.Password) == 0:
			return nil, fault(FaultPasswordNeeded, "the JKS key store has one")
		}
		return nil, wrongPassword()
	}
	found := &bundle{seems: "the JKS key store is empty"}
	password := o.KeyPassword
	if len(password) == 0 {
		password = o.Password
	}
	for _, alias := range store.Aliases() {
		if store.IsTrustedCertificateEntry(alias) {
			trusted, err := store.GetTrustedCertificateEntry(alias)
			if err == nil && found.addSigned(trusted.Certificate.Content) != nil {
				continue // one that nobody asked for
			}
			continue
		}
		chain, err := store.GetPrivateKeyEntryCertificateChain(alias)
		if err != nil {
			return nil, fault(FaultDamaged, "entry %q cannot be read", alias)
		}
		e := entry{alias: alias, open: func() (crypto.Signer, error) { return openJKS(store, alias, password) }}
		for _, c := range chain {
			if parsed, err := smx509.ParseCertificate(c.Content); err == nil {
				e.chain = append(e.chain, parsed)
			}
		}
		found.entries = append(found.entries, e)
	}
	if len(found.entries) > 0 {
		found.certificates = nil // those trusted are of others
	}
	return found, nil
}

func openJKS(store keystore.KeyStore, alias string, password []byte) (crypto.Signer, error) {
	opened, err := store.GetPrivateKeyEntry(alias, password)
	if err != nil {
		return nil, fault(FaultWrongPassword, "the key store's password does not open entry %q: give its key_password", alias)
	}
	signer, err := parsePKCS8(opened.PrivateKey)
	if err != nil {
		return nil, fault(FaultUnsupported, "the private key of entry %q is neither RSA, ECDSA (P-256, P-384, P-521), Ed25519 nor SM2", alias)
	}
	return signer, nil
}
