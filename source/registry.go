package source

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Registry is the live snapshot of all sources: read without a lock by every call, replaced whole on change.
type Registry struct {
	snapshot atomic.Pointer[snapshot]
	learned  atomic.Bool
}

// Learned reports whether Learn was ever called: before that nobody is known, and nobody is a stranger either.
func (r *Registry) Learned() bool { return r.learned.Load() }

// snapshot is the sources and what leads to them. Nobody changes it.
type snapshot struct {
	version       int64
	byID          map[string]*Source
	byKey         map[string]*Source   // by key id
	byCertificate map[string][]*Source // by a text of Certificates
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	r := &Registry{}
	r.snapshot.Store(&snapshot{})
	return r
}

// Get returns a source that nobody may change, or nil.
func (r *Registry) Get(id string) *Source { return r.snapshot.Load().byID[id] }

// Len is the number of sources known.
func (r *Registry) Len() int { return len(r.snapshot.Load().byID) }

// Version is the newest version that the snapshot holds.
func (r *Registry) Version() int64 { return r.snapshot.Load().version }

// ByKey returns the source that has a key, and the key, which may be expired; nil: no source has it.
func (r *Registry) ByKey(keyID string) (*Source, Key) {
	s := r.snapshot.Load().byKey[keyID]
	if s == nil {
		return nil, Key{}
	}
	return s, s.Keys[slices.IndexFunc(s.Keys, func(k Key) bool { return k.ID == keyID })]
}

// ErrAmbiguous says that a certificate proves several sources, and so none.
var ErrAmbiguous = errors.New("the certificate proves several sources")

// ByCertificate returns the source that a certificate proves, or nil. Whether to trust the certificate has been decided.
func (r *Registry) ByCertificate(cert *x509.Certificate) (*Source, error) {
	known := r.snapshot.Load().byCertificate
	var found *Source
	for _, name := range CertificateNames(cert) {
		for _, s := range known[name] {
			if found != nil && found != s {
				return nil, ErrAmbiguous
			}
			found = s
		}
	}
	return found, nil
}

// NamedBy are the ids of the sources that a text of Certificates proves.
func (r *Registry) NamedBy(certificate string) []string {
	var ids []string
	for _, s := range r.snapshot.Load().byCertificate[certificate] {
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	return ids
}

// CertificateNames are the texts of Certificates that a certificate matches. The common name alone is none: what it
// means is the issuer's affair, and a subject is compared whole, as it stands in the certificate.
func CertificateNames(cert *x509.Certificate) []string {
	var names []string
	for _, name := range cert.DNSNames {
		names = append(names, byDNS+strings.ToLower(name))
	}
	for _, uri := range cert.URIs {
		names = append(names, byURI+uri.String())
	}
	// Not cert.Subject: it puts names into an order of its own, and of several common names it keeps the last.
	var subject pkix.RDNSequence
	if rest, err := asn1.Unmarshal(cert.RawSubject, &subject); err != nil || len(rest) > 0 || len(subject) == 0 {
		return names
	}
	return append(names, bySubject+subject.String())
}

// Learn adds or replaces sources; an older version never replaces a newer one.
func (r *Registry) Learn(sources ...*Source) {
	defer r.learned.Store(true)
	for len(sources) > 0 {
		before := r.snapshot.Load()
		byID := maps.Clone(before.byID)
		if byID == nil {
			byID = map[string]*Source{}
		}
		for _, s := range sources {
			if known := byID[s.ID]; known == nil || known.Version < s.Version {
				byID[s.ID] = s
			}
		}
		if r.snapshot.CompareAndSwap(before, index(byID)) {
			return
		}
	}
}

func index(byID map[string]*Source) *snapshot {
	out := &snapshot{byID: byID, byKey: map[string]*Source{}, byCertificate: map[string][]*Source{}}
	for _, s := range byID {
		out.version = max(out.version, s.Version)
		for _, k := range s.Keys {
			out.byKey[k.ID] = s
		}
		for _, name := range s.Certificates {
			if !slices.Contains(out.byCertificate[name], s) {
				out.byCertificate[name] = append(out.byCertificate[name], s)
			}
		}
	}
	return out
}

// ExpiringKey is a key whose end is near.
type ExpiringKey struct {
	SourceID  string
	KeyID     string
	Kind      Kind
	Label     string
	ExpiresAt time.Time
}

// Expiring are the keys that live now and end within a span, the next to end first. A disabled source's do not count.
func (r *Registry) Expiring(now time.Time, within time.Duration) []ExpiringKey {
	var out []ExpiringKey
	for _, s := range r.snapshot.Load().byID {
		if s.Disabled {
			continue
		}
		for _, k := range s.Keys {
			if !k.ExpiresAt.IsZero() && k.Live(now) && !k.ExpiresAt.After(now.Add(within)) {
				out = append(out, ExpiringKey{SourceID: s.ID, KeyID: k.ID, Kind: k.Kind, Label: k.Label, ExpiresAt: k.ExpiresAt})
			}
		}
	}
	slices.SortFunc(out, func(a, b ExpiringKey) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.SourceID, b.SourceID), cmp.Compare(a.KeyID, b.KeyID))
	})
	return out
}
