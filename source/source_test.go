package source

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		patterns []string
		merchant string
		want     bool
	}{
		{[]string{"shop-1"}, "shop-1", true},
		{[]string{"shop-1"}, "shop-12", false},
		{[]string{"shop-1"}, "SHOP-1", false},
		{[]string{"shop-*"}, "shop-", true},
		{[]string{"shop-*"}, "shop-12", true},
		{[]string{"shop-*"}, "shop", false},
		{[]string{"shop-*"}, "my-shop-1", false},
		{[]string{"a", "shop-*"}, "shop-1", true},
		{[]string{"*"}, "anybody", true},
		{nil, "anybody", false},
	} {
		if got := (&Source{Merchants: c.patterns}).Allows(c.merchant); got != c.want {
			t.Errorf("%q for %q: %v", c.patterns, c.merchant, got)
		}
	}
}

func TestChecks(t *testing.T) {
	for pattern, want := range map[string]string{
		"m": "", "m-*": "", "*": "", "*-m": `"*-m": * is allowed at the end only`, "a*b": `"a*b": * is allowed at the end only`, "a**": `"a**": * is allowed at the end only`,
	} {
		if got := fmt.Sprint(CheckMerchant(pattern)); got != want && (want != "" || got != "<nil>") {
			t.Errorf("%q: %s", pattern, got)
		}
	}
	for name, want := range map[string]string{
		"dns:pay.example": "", "uri:spiffe://example/pay": "", "subject:CN=pay,O=Example": "",
		"pay.example":     `"pay.example": want dns:<name>, uri:<URI> or subject:<RFC 2253 subject>`,
		"dns:":            `"dns:": nothing follows dns:`,
		"dns:Pay.example": `"dns:Pay.example": write DNS names in lower case`,
		"DNS:pay.example": `"DNS:pay.example": want dns:<name>, uri:<URI> or subject:<RFC 2253 subject>`,
	} {
		if got := fmt.Sprint(CheckCertificate(name)); got != want && (want != "" || got != "<nil>") {
			t.Errorf("%q: %s", name, got)
		}
	}
}

func TestKeysLive(t *testing.T) {
	now := time.Unix(1790000000, 0)
	s := &Source{Keys: []Key{
		{ID: "for ever", Kind: KindAPIKey},
		{ID: "until now", Kind: KindAPIKey, ExpiresAt: now},
		{ID: "a little longer", Kind: KindAPIKey, ExpiresAt: now.Add(time.Nanosecond)},
		{ID: "another kind", Kind: KindHMAC},
	}}
	var live []string
	for _, k := range s.LiveKeys(KindAPIKey, now) {
		live = append(live, k.ID)
	}
	if diff := cmp.Diff([]string{"for ever", "a little longer"}, live); diff != "" {
		t.Error(diff)
	}
}

// Adding and removing keys leaves the source alone that others read.
func TestKeysComeAndGo(t *testing.T) {
	first, second := NewSecret(KindAPIKey), NewSecret(KindAPIKey)
	none := &Source{ID: "pay"}
	one := none.WithKey(Key{ID: first.KeyID, Kind: KindAPIKey}, first.Kept())
	two := one.WithKey(Key{ID: second.KeyID, Kind: KindAPIKey}, second.Kept())
	left := two.WithoutKeys(func(k Key) bool { return k.ID == first.KeyID })
	for name, c := range map[string]struct {
		s                       *Source
		holdsFirst, holdsSecond bool
	}{
		"none": {none, false, false}, "one": {one, true, false}, "two": {two, true, true}, "left": {left, false, true},
	} {
		if c.s.Holds(first) != c.holdsFirst || c.s.Holds(second) != c.holdsSecond || len(c.s.Keys) != len(c.s.Secrets) {
			t.Errorf("%s: %+v", name, c.s.Keys)
		}
	}
	forged := first
	forged.text = second.text
	if two.Holds(forged) {
		t.Error("one key's secret passes for another's")
	}
	signing := NewSecret(KindHMAC)
	if none.WithKey(Key{ID: signing.KeyID, Kind: KindHMAC}, signing.Kept()).Holds(signing) {
		t.Error("the secret of an HMAC key passes as a credential")
	}
}

// certificate is one as it comes out of parsing, with a subject of O and CN.
func certificate(t *testing.T, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: "pay.example", Organization: []string{"Example, Inc."}}}
	if change != nil {
		change(cert)
	}
	if cert.RawSubject != nil {
		return cert
	}
	var err error
	if cert.RawSubject, err = asn1.Marshal(cert.Subject.ToRDNSequence()); err != nil {
		t.Fatal(err)
	}
	return cert
}

// rdn is one level of a subject: type and value, in turn.
func rdn(pairs ...string) pkix.RelativeDistinguishedNameSET {
	types := map[string]asn1.ObjectIdentifier{"C": {2, 5, 4, 6}, "ST": {2, 5, 4, 8}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "CN": {2, 5, 4, 3}, "DC": {0, 9, 2342, 19200300, 100, 1, 25}}
	var set pkix.RelativeDistinguishedNameSET
	for pair := range slices.Chunk(pairs, 2) {
		set = append(set, pkix.AttributeTypeAndValue{Type: types[pair[0]], Value: pair[1]})
	}
	return set
}

// A subject is compared as it stands in the certificate: nothing in it is dropped, moved or joined, so that none passes
// for another one that an authority would not give to the same holder.
func TestSubjectIsWhole(t *testing.T) {
	for name, c := range map[string]struct {
		levels pkix.RDNSequence
		want   string
	}{
		"one name":               {pkix.RDNSequence{rdn("CN", "pay")}, "CN=pay"},
		"the usual order":        {pkix.RDNSequence{rdn("C", "CN"), rdn("ST", "Hebei"), rdn("O", "Example"), rdn("CN", "pay")}, "CN=pay,O=Example,ST=Hebei,C=CN"},
		"another order":          {pkix.RDNSequence{rdn("CN", "pay"), rdn("O", "Example")}, "O=Example,CN=pay"},
		"two common names":       {pkix.RDNSequence{rdn("CN", "attacker"), rdn("O", "Example"), rdn("CN", "pay")}, "CN=pay,O=Example,CN=attacker"},
		"two in one level":       {pkix.RDNSequence{rdn("O", "Example"), rdn("CN", "pay", "CN", "attacker")}, "CN=pay+CN=attacker,O=Example"},
		"units, one level each":  {pkix.RDNSequence{rdn("OU", "b"), rdn("OU", "a"), rdn("CN", "pay")}, "CN=pay,OU=a,OU=b"},
		"units in one level":     {pkix.RDNSequence{rdn("OU", "a", "OU", "b"), rdn("CN", "pay")}, "CN=pay,OU=a+OU=b"},
		"a value like two names": {pkix.RDNSequence{rdn("CN", "pay,O=Example")}, `CN=pay\,O=Example`},
		"a name without a word":  {pkix.RDNSequence{rdn("DC", "x"), rdn("CN", "pay")}, "CN=pay,0.9.2342.19200300.100.1.25=#130178"},
		"none":                   {pkix.RDNSequence{}, ""},
	} {
		raw, err := asn1.Marshal(c.levels)
		if err != nil {
			t.Fatal(err)
		}
		cert := certificate(t, func(cert *x509.Certificate) {
			cert.RawSubject, cert.Subject = raw, pkix.Name{}
			cert.Subject.FillFromRDNSequence(&c.levels) // as parsing does
		})
		var want []string
		if c.want != "" {
			want = []string{"subject:" + c.want}
		}
		if diff := cmp.Diff(want, CertificateNames(cert)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if got := CertificateNames(&x509.Certificate{RawSubject: []byte("no subject"), Subject: pkix.Name{CommonName: "pay"}}); got != nil {
		t.Errorf("what cannot be read has the names %q", got)
	}
}

func TestByCertificate(t *testing.T) {
	r := NewRegistry()
	r.Learn(
		&Source{ID: "dns", Version: 1, Certificates: []string{"dns:pay.example", "dns:*.pay.example"}},
		&Source{ID: "uri", Version: 2, Certificates: []string{"uri:spiffe://example/pay"}},
		&Source{ID: "subject", Version: 3, Certificates: []string{`subject:CN=pay.example,O=Example\, Inc.`}},
	)
	other := func(c *x509.Certificate) { c.Subject.CommonName = "other" }
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		want   string
	}{
		"subject":                      {nil, "subject"},
		"dns":                          {func(c *x509.Certificate) { other(c); c.DNSNames = []string{"x.example", "pay.example"} }, "dns"},
		"dns in upper case":            {func(c *x509.Certificate) { other(c); c.DNSNames = []string{"PAY.example"} }, "dns"},
		"a wildcard is itself":         {func(c *x509.Certificate) { other(c); c.DNSNames = []string{"*.pay.example"} }, "dns"},
		"a wildcard matches none else": {func(c *x509.Certificate) { other(c); c.DNSNames = []string{"a.pay.example"} }, ""},
		"uri": {func(c *x509.Certificate) {
			other(c)
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/pay"}}
		}, "uri"},
		"uri below": {func(c *x509.Certificate) {
			other(c)
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/pay/x"}}
		}, ""},
		"a common name is no DNS name": {func(c *x509.Certificate) { c.Subject.Organization = nil }, ""},
		"an email that looks like one": {func(c *x509.Certificate) { other(c); c.EmailAddresses = []string{"pay.example"} }, ""},
		"two of them":                  {func(c *x509.Certificate) { c.DNSNames = []string{"pay.example"} }, "ambiguous"},
	} {
		got, err := r.ByCertificate(certificate(t, c.change))
		id := ""
		switch {
		case errors.Is(err, ErrAmbiguous):
			id = "ambiguous"
		case got != nil:
			id = got.ID
		}
		if id != c.want {
			t.Errorf("%s: %q, want %q", name, id, c.want)
		}
	}
}

// Whoever learns what in whatever order: the newest version stays, nobody is forgotten, and what led to an older version
// leads nowhere.
func TestRegistryKeepsTheNewest(t *testing.T) {
	r := NewRegistry()
	if s, _ := r.ByKey("k"); r.Get("s") != nil || s != nil || r.Version() != 0 {
		t.Fatal("not empty")
	}
	var learning sync.WaitGroup
	for version := int64(1); version <= 50; version++ {
		learning.Go(func() {
			r.Learn(
				&Source{ID: "s", Version: version, Keys: []Key{{ID: fmt.Sprint("k", version)}}, Certificates: []string{fmt.Sprint("dns:", version)}},
				&Source{ID: fmt.Sprint("s", version), Version: version},
			)
		})
	}
	learning.Wait()
	r.Learn(&Source{ID: "s", Version: 7, Keys: []Key{{ID: "k7"}}})
	if got := r.Get("s"); got.Version != 50 || r.Len() != 51 || r.Version() != 50 {
		t.Errorf("version %d, %d sources, newest %d", got.Version, r.Len(), r.Version())
	}
	for version := 1; version <= 50; version++ {
		s, _ := r.ByKey(fmt.Sprint("k", version))
		if named := r.NamedBy(fmt.Sprint("dns:", version)); (s != nil) != (version == 50) || (len(named) == 1) != (version == 50) {
			t.Errorf("key and certificate of version %d: %v, %v", version, s, named)
		}
	}
}

func TestExpiring(t *testing.T) {
	now := time.Unix(1790000000, 0)
	key := func(id string, in time.Duration) Key {
		return Key{ID: id, Kind: KindAPIKey, Label: "of " + id, ExpiresAt: now.Add(in)}
	}
	r := NewRegistry()
	r.Learn(
		&Source{ID: "b", Version: 1, Keys: []Key{key("late", 8*24*time.Hour), key("last", 7*24*time.Hour), {ID: "for ever"}}},
		&Source{ID: "a", Version: 2, Keys: []Key{key("gone", 0), key("next", time.Hour)}},
		&Source{ID: "c", Version: 3, Disabled: true, Keys: []Key{key("unused", time.Hour)}},
	)
	want := []ExpiringKey{
		{SourceID: "a", KeyID: "next", Kind: KindAPIKey, Label: "of next", ExpiresAt: now.Add(time.Hour)},
		{SourceID: "b", KeyID: "last", Kind: KindAPIKey, Label: "of last", ExpiresAt: now.Add(7 * 24 * time.Hour)},
	}
	if diff := cmp.Diff(want, r.Expiring(now, 7*24*time.Hour)); diff != "" {
		t.Error(diff)
	}
}
