package keys

import (
	"encoding/asn1"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// der builds what openssl would need minutes or all memory for.
type der struct{ t *testing.T }

func (d der) value(v any) []byte {
	d.t.Helper()
	out, err := asn1.Marshal(v)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func (d der) wrap(class, tag int, parts ...[]byte) []byte {
	d.t.Helper()
	var all []byte
	for _, part := range parts {
		all = append(all, part...)
	}
	return d.value(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: all})
}

func (d der) seq(parts ...[]byte) []byte {
	d.t.Helper()
	return d.wrap(asn1.ClassUniversal, asn1.TagSequence, parts...)
}
func (d der) explicit(part []byte) []byte { return d.wrap(asn1.ClassContextSpecific, 0, part) }
func (d der) octets(content []byte) []byte {
	d.t.Helper()
	return d.value(content)
}
func (d der) oid(numbers ...int) []byte { return d.value(asn1.ObjectIdentifier(numbers)) }

func (d der) scrypt(n, r, p int) []byte {
	return d.seq(d.oid(oidScrypt...), d.seq(d.octets(make([]byte, 8)), d.value(n), d.value(r), d.value(p)))
}

func (d der) pbkdf2(iterations int) []byte {
	return d.seq(d.oid(1, 2, 840, 113549, 1, 5, 12), d.seq(d.octets(make([]byte, 8)), d.value(iterations), d.value(32)))
}

// pbes2 is an algorithm with AES-256-CBC.
func (d der) pbes2(kdf []byte) []byte {
	return d.seq(d.oid(1, 2, 840, 113549, 1, 5, 13), d.seq(kdf, d.seq(d.oid(2, 16, 840, 1, 101, 3, 4, 1, 42), d.octets(make([]byte, 16)))))
}

func (d der) pbe(iterations int, oid ...int) []byte {
	return d.seq(d.oid(oid...), d.seq(d.octets(make([]byte, 8)), d.value(iterations)))
}

func (d der) pkcs8(algorithm []byte) []byte { return d.seq(algorithm, d.octets(make([]byte, 32))) }

func (d der) mac(algorithm []byte, iterations int) []byte {
	return d.seq(d.seq(algorithm, d.octets(make([]byte, 20))), d.octets(make([]byte, 8)), d.value(iterations))
}

func (d der) pfx(mac []byte, contents ...[]byte) []byte {
	return d.seq(d.value(3), d.seq(d.oid(oidData...), d.explicit(d.octets(d.seq(contents...)))), mac)
}

func TestImportBoundsKeyDerivation(t *testing.T) {
	d := der{t}
	sha1 := d.seq(d.oid(1, 3, 14, 3, 2, 26), asn1.NullBytes)
	cheap := d.mac(sha1, 1)
	tripleDES := []int{1, 2, 840, 113549, 1, 12, 1, 3}
	bag := func(iterations int) []byte {
		return d.seq(d.oid(oidShroudedKeyBag...), d.explicit(d.pkcs8(d.pbe(iterations, tripleDES...))))
	}
	bags := func(all ...[]byte) []byte { return d.seq(d.oid(oidData...), d.explicit(d.octets(d.seq(all...)))) }
	encrypted := func(algorithm []byte) []byte {
		return d.seq(d.oid(oidEncryptedData...), d.explicit(d.seq(d.value(0), d.seq(d.oid(oidData...), algorithm, d.value(asn1.RawValue{Class: asn1.ClassContextSpecific, Bytes: make([]byte, 32)})))))
	}
	pbmac1 := d.seq(d.oid(1, 2, 840, 113549, 1, 5, 14), d.seq(d.pbkdf2(mostRounds+1), d.seq(d.oid(1, 2, 840, 113549, 2, 9))))
	for name, c := range map[string]struct {
		content []byte
		fault   Fault
		says    string
	}{
		"scrypt, much memory":        {d.pkcs8(d.pbes2(d.scrypt(1<<17, 8, 1))), FaultUnsupported, "N 131072, r 8 and p 1: at most 64 MiB"},
		"scrypt, all memory":         {d.pkcs8(d.pbes2(d.scrypt(1<<36, 8, 1))), FaultUnsupported, "64 MiB"},
		"scrypt, more than a number": {d.pkcs8(d.pbes2(d.scrypt(1<<62, math.MaxInt, 1))), FaultUnsupported, "64 MiB"},
		"scrypt, many lanes":         {d.pkcs8(d.pbes2(d.scrypt(2, 1, 17))), FaultUnsupported, "p 16"},
		"scrypt, at the bound":       {d.pkcs8(d.pbes2(d.scrypt(1<<16, 8, 1))), FaultWrongPassword, ""},
		"PBKDF2":                     {d.pkcs8(d.pbes2(d.pbkdf2(mostRounds + 1))), FaultUnsupported, "10000000 iterations"},
		"PBKDF2 of SM":               {d.pkcs8(d.seq(d.oid(1, 2, 156, 10197, 6, 4, 1, 5, 2), d.seq(d.pbkdf2(math.MaxInt), d.seq(d.oid(1, 2))))), FaultUnsupported, "iterations"},
		"PBKDF2, cheap":              {d.pkcs8(d.pbes2(d.pbkdf2(2048))), FaultWrongPassword, ""},
		"PBES1":                      {d.pkcs8(d.pbe(mostRounds+1, 1, 2, 840, 113549, 1, 5, 10)), FaultUnsupported, "iterations"},
		"MAC":                        {d.pfx(d.mac(sha1, mostRounds+1)), FaultUnsupported, "iterations"},
		"PBMAC1":                     {d.pfx(d.mac(pbmac1, 1)), FaultUnsupported, "iterations"},
		"key bag":                    {d.pfx(cheap, bags(bag(mostRounds+1))), FaultUnsupported, "iterations"},
		"encrypted contents":         {d.pfx(cheap, encrypted(d.pbe(mostRounds+1, tripleDES...))), FaultUnsupported, "iterations"},
		"encrypted contents, PBES2":  {d.pfx(cheap, encrypted(d.pbes2(d.pbkdf2(mostRounds+1)))), FaultUnsupported, "iterations"},
		"many key bags":              {d.pfx(cheap, bags(bag(mostRounds/2), bag(-mostRounds), bag(mostRounds/2))), FaultUnsupported, "iterations"},
		"PFX, cheap":                 {d.pfx(cheap, encrypted(d.pbe(2048, tripleDES...)), bags(bag(2048))), FaultWrongPassword, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Import(c.content, Options{Purpose: PurposeSign, Password: []byte("secret"), ActiveFrom: time.Unix(1_800_000_000, 0)})
			var fault *ImportError
			if !errors.As(err, &fault) || fault.Fault != c.fault || !strings.Contains(fault.Detail, c.says) {
				t.Errorf("%v, want %s: …%s…", err, c.fault, c.says)
			}
		})
	}
}
