package keys

import (
	"crypto/x509/pkix"
	"encoding/asn1"
)

// What opening one import may take. What is imported says itself how expensive its password is to check.
const (
	mostRounds       = 10_000_000 // of hashing, in all: seconds. Scrypt's N*r*p, each of which takes about as long, count too.
	mostScryptMemory = 64 << 20   // bytes
	mostScryptLanes  = 16         // scrypt's p
)

// costs adds up the rounds of key derivation that an import asks for. What cannot be read is left to the library that opens
// it, which then fails before it derives anything.
type costs struct{ rounds int }

func (c *costs) add(rounds int) error {
	if rounds > mostRounds || c.rounds+max(rounds, 0) > mostRounds {
		return fault(FaultUnsupported, "its password takes more than %d iterations to check: encrypt it with fewer, with -iter of openssl pkcs8 or openssl pkcs12", mostRounds)
	}
	c.rounds += max(rounds, 0)
	return nil
}

// parses reads DER as the libraries do: what is behind the values that are wanted does not matter.
func parses(der []byte, into any) bool {
	_, err := asn1.Unmarshal(der, into)
	return err == nil
}

var (
	oidScrypt         = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidData           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEncryptedData  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}
	oidShroudedKeyBag = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}
)

// ofPKCS8 counts an encrypted private key, which PKCS#12 has too.
func (c *costs) ofPKCS8(der []byte) error {
	var key struct {
		Encryption pkix.AlgorithmIdentifier
		Data       []byte
	}
	if !parses(der, &key) {
		return nil
	}
	return c.ofAlgorithm(key.Encryption)
}

// ofAlgorithm counts PBES1, PBES2, PBMAC1 and the PBE of PKCS#12.
func (c *costs) ofAlgorithm(a pkix.AlgorithmIdentifier) error {
	var nested struct{ KDF pkix.AlgorithmIdentifier } // in PBES2 and PBMAC1
	if parses(a.Parameters.FullBytes, &nested) {
		a = nested.KDF
	}
	if a.Algorithm.Equal(oidScrypt) {
		return c.ofScrypt(a.Parameters.FullBytes)
	}
	var counted struct {
		Salt       asn1.RawValue
		Iterations int
	}
	if !parses(a.Parameters.FullBytes, &counted) {
		return nil
	}
	return c.add(counted.Iterations)
}

func (c *costs) ofScrypt(parameters []byte) error {
	var s struct {
		Salt    []byte
		N, R, P int
	}
	if !parses(parameters, &s) {
		return nil
	}
	if s.N < 1 || s.R < 1 || s.P < 1 || s.P > mostScryptLanes || s.N > mostScryptMemory/128/s.R {
		return fault(FaultUnsupported, "its password is checked by scrypt with N %d, r %d and p %d: at most %d MiB of memory (128*N*r bytes) and p %d are allowed: encrypt it with openssl pkcs8 -topk8 -v2 aes-256-cbc",
			s.N, s.R, s.P, mostScryptMemory>>20, mostScryptLanes)
	}
	return c.add(s.N * s.R * s.P)
}

// contentInfo is what PKCS#7 wraps things in.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"tag:0,explicit,optional"`
}

// ofPFX counts PKCS#12: its MAC, its encrypted contents, and the keys outside of these.
func (c *costs) ofPFX(der []byte) error {
	var pfx struct {
		Version int
		Safe    contentInfo
		MAC     struct {
			Digest struct {
				Algorithm pkix.AlgorithmIdentifier
				Digest    []byte
			}
			Salt       []byte
			Iterations int `asn1:"optional,default:1"`
		} `asn1:"optional"`
	}
	if !parses(der, &pfx) {
		return nil
	}
	if err := c.add(pfx.MAC.Iterations); err != nil {
		return err
	}
	if err := c.ofAlgorithm(pfx.MAC.Digest.Algorithm); err != nil { // PBMAC1
		return err
	}
	var safe asn1.RawValue
	var contents []contentInfo
	if !parses(pfx.Safe.Content.Bytes, &safe) {
		return nil
	}
	if !parses(safe.Bytes, &contents) {
		return nil
	}
	for _, content := range contents {
		var err error
		switch {
		case content.Type.Equal(oidData):
			err = c.ofBags(content.Content.Bytes)
		case content.Type.Equal(oidEncryptedData):
			err = c.ofEncryptedData(content.Content.Bytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *costs) ofEncryptedData(der []byte) error {
	var data struct {
		Version int
		Content struct {
			Type       asn1.ObjectIdentifier
			Encryption pkix.AlgorithmIdentifier
		}
	}
	if !parses(der, &data) {
		return nil
	}
	return c.ofAlgorithm(data.Content.Encryption)
}

func (c *costs) ofBags(der []byte) error {
	var data []byte
	var bags []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue `asn1:"tag:0,explicit"`
	}
	if !parses(der, &data) {
		return nil
	}
	if !parses(data, &bags) {
		return nil
	}
	for _, bag := range bags {
		if !bag.ID.Equal(oidShroudedKeyBag) {
			continue
		}
		if err := c.ofPKCS8(bag.Value.Bytes); err != nil {
			return err
		}
	}
	return nil
}
