package dispatcher

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"notifyd/keys"
	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// defaultOverlap is how long a version stays in use beside the one that takes over from it, where nobody says.
const defaultOverlap = 7 * 24 * time.Hour

// MasterKeys says what of the ledger is sealed with which master key.
type MasterKeys interface {
	MasterKeys(ctx context.Context) ([]ledger.MasterKey, error)
}

// KeyService answers for the keys and certificates.
type KeyService struct {
	d       *Dispatcher
	masters MasterKeys
}

// NewKeyService returns the service of a dispatcher that has a KeyStore.
func NewKeyService(d *Dispatcher, masters MasterKeys) *KeyService { return &KeyService{d, masters} }

// ImportKey makes a new name of what is imported.
func (s *KeyService) ImportKey(ctx context.Context, req *connect.Request[notifydv1.ImportKeyRequest]) (*connect.Response[notifydv1.ImportKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m := req.Msg
	name := newName{m.Name, purposes[m.Purpose], m.MerchantId}
	about, err := s.about(ctx, m, "note", m.Note)
	if err != nil {
		return nil, err
	}
	k, err := imported(m.Key, name.purpose, about.from, "key")
	if err != nil {
		return nil, err
	}
	stored, err := s.create(ctx, name, k, about, "import")
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.ImportKeyResponse{Key: storedToProto(stored, s.d.now())}), nil
}

// GenerateKey makes a new name with a fresh key. When its answer is lost the key is there, and nobody has its secret.
func (s *KeyService) GenerateKey(ctx context.Context, req *connect.Request[notifydv1.GenerateKeyRequest]) (*connect.Response[notifydv1.GenerateKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m := req.Msg
	name := newName{m.Name, purposes[m.Purpose], m.MerchantId}
	about, err := s.about(ctx, m, "note", m.Note)
	if err != nil {
		return nil, err
	}
	k, err := generated(m.Key, name.purpose, "key")
	if err != nil {
		return nil, err
	}
	stored, err := s.create(ctx, name, k, about, "generate")
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.GenerateKeyResponse{Key: storedToProto(stored, s.d.now()), Secret: reveal(k)}), nil
}

// RotateKey makes the next version.
func (s *KeyService) RotateKey(ctx context.Context, req *connect.Request[notifydv1.RotateKeyRequest]) (*connect.Response[notifydv1.RotateKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m := req.Msg
	about, err := s.about(ctx, m, "note", m.Note)
	if err != nil {
		return nil, err
	}
	if about.overlap = defaultOverlap; m.Overlap != nil {
		about.overlap = m.Overlap.AsDuration()
	}
	known, err := s.known(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	var k keys.Key
	if m.GetGenerate() != nil {
		k, err = generated(m.GetGenerate(), known.Purpose, "generate")
	} else {
		k, err = imported(m.GetImport(), known.Purpose, about.from, "import")
	}
	if err != nil {
		return nil, err
	}
	ifVersion, err := versionOf(m.Etag)
	if err != nil {
		return nil, err
	}
	stored, err := s.change(ctx, m.Name, ifVersion, func(set *keys.Set, now time.Time) (*keys.Set, error) {
		if newest := set.Newest(); newest != nil && newest.Material.Equal(k.Material) && slices.EqualFunc(newest.Certificates, k.Certificates, bytes.Equal) && !newest.Retired(now) {
			return nil, errSame // the same call again, whose answer was lost
		}
		next, err := set.With(about.onto(k), about.overlap, now)
		return marked(next, about.by, "rotate"), err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.RotateKeyResponse{Key: storedToProto(stored, s.d.now()), Secret: revealIf(m.GetGenerate() != nil, k)}), nil
}

// RetireKey ends a version.
func (s *KeyService) RetireKey(ctx context.Context, req *connect.Request[notifydv1.RetireKeyRequest]) (*connect.Response[notifydv1.RetireKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m := req.Msg
	switch {
	case !printable(m.Reason):
		return nil, invalid("reason", fmt.Sprintf("%q: control characters are not allowed", m.Reason))
	case timeFault(m.RetireAt) != "":
		return nil, invalid("retire_at", timeFault(m.RetireAt))
	}
	ifVersion, err := versionOf(m.Etag)
	if err != nil {
		return nil, err
	}
	stored, err := s.change(ctx, m.Name, ifVersion, func(set *keys.Set, now time.Time) (*keys.Set, error) {
		if set.Get(int(m.Number)) == nil {
			return nil, notFound("key", fmt.Sprintf("%s/%d", m.Name, m.Number))
		}
		next, err := set.Retire(int(m.Number), fromTimestamp(m.RetireAt), now)
		return marked(next, actor(ctx, m.Operator), fmt.Sprintf("retire version %d: %s", m.Number, m.Reason)), err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.RetireKeyResponse{Key: storedToProto(stored, s.d.now())}), nil
}

// GetKey returns what is open of a name.
func (s *KeyService) GetKey(ctx context.Context, req *connect.Request[notifydv1.GetKeyRequest]) (*connect.Response[notifydv1.GetKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	known, err := s.known(ctx, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.GetKeyResponse{Key: storedToProto(known, s.d.now())}), nil
}

// ListKeys lists by name.
func (s *KeyService) ListKeys(ctx context.Context, req *connect.Request[notifydv1.KeyServiceListKeysRequest]) (*connect.Response[notifydv1.KeyServiceListKeysResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m, now := req.Msg, s.d.now()
	if fault := timeFault(m.ExpiringBefore); fault != "" {
		return nil, invalid("expiring_before", fault)
	}
	if err := s.d.LearnKeys(ctx); err != nil {
		return nil, s.d.unavailable("read keys", err)
	}
	before := fromTimestamp(m.ExpiringBefore)
	found, next, _ := settingsPage(m, func(after string, limit int) ([]*keys.Set, error) {
		matching := slices.DeleteFunc(s.d.keys.List(), func(set *keys.Set) bool {
			return set.Name <= after || !strings.HasPrefix(set.Name, m.NamePrefix) || m.MerchantId != "" && set.MerchantID != m.MerchantId ||
				m.Purpose != 0 && set.Purpose != purposes[m.Purpose] || !before.IsZero() && !endsBefore(set, before, now)
		})
		return matching[:min(limit, len(matching))], nil
	}, func(set *keys.Set) string { return set.Name })
	out := &notifydv1.KeyServiceListKeysResponse{NextPageToken: next}
	for _, set := range found {
		p := storedToProto(set, now)
		for _, v := range p.Versions {
			v.CertificateChain = ""
		}
		out.Keys = append(out.Keys, p)
	}
	return connect.NewResponse(out), nil
}

func endsBefore(set *keys.Set, before, now time.Time) bool {
	return slices.ContainsFunc(set.Keys, func(k keys.Key) bool { return !k.NotAfter.IsZero() && k.NotAfter.Before(before) && !k.Retired(now) })
}

// ListKeyChanges lists newest first.
func (s *KeyService) ListKeyChanges(ctx context.Context, req *connect.Request[notifydv1.ListKeyChangesRequest]) (*connect.Response[notifydv1.ListKeyChangesResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	changes, next, err := settingsPage(req.Msg, func(after string, limit int) ([]ledger.KeyChange, error) {
		before := int64(0)
		if after != "" {
			var err error
			if before, err = strconv.ParseInt(after, 10, 64); err != nil || before < 1 || before == math.MaxInt64 {
				return nil, invalid("page_token", fmt.Sprintf("%q: is not one of ours", after))
			}
		}
		found, err := s.d.keyStore.KeyChanges(ctx, req.Msg.Name, before, limit)
		if err != nil {
			return nil, s.d.unavailable("read changes", err)
		}
		return found, nil
	}, func(c ledger.KeyChange) string { return strconv.FormatInt(c.Number, 10) })
	if err != nil {
		return nil, err
	}
	out := &notifydv1.ListKeyChangesResponse{NextPageToken: next}
	for _, c := range changes {
		after := storedToProto(&c.After, c.At)
		after.Etag = ""
		out.Changes = append(out.Changes, &notifydv1.KeyChange{Number: c.Number, At: toTimestamp(c.At), By: c.After.UpdatedBy, What: c.After.Change, After: after})
	}
	return connect.NewResponse(out), nil
}

// GetMasterKeys says what seals what.
func (s *KeyService) GetMasterKeys(ctx context.Context, _ *connect.Request[notifydv1.GetMasterKeysRequest]) (*connect.Response[notifydv1.GetMasterKeysResponse], error) {
	found, err := s.masters.MasterKeys(ctx)
	if err != nil {
		return nil, s.d.unavailable("read master keys", err)
	}
	out := &notifydv1.GetMasterKeysResponse{}
	for _, k := range found {
		out.Keys = append(out.Keys, &notifydv1.MasterKey{Id: k.ID, InUse: k.InUse, Sealed: k.Sealed, Held: k.Held, MissingOn: int32(k.MissingOn)}) //nolint:gosec // a count of processes
	}
	return connect.NewResponse(out), nil
}

// newName is what is fixed about a name.
type newName struct {
	name     string
	purpose  keys.Purpose
	merchant string
}

// about is what stands beside a new version.
type about struct {
	by, note  string
	now, from time.Time
	overlap   time.Duration
}

func (a about) onto(k keys.Key) keys.Key {
	k.ActiveFrom, k.CreatedAt, k.CreatedBy, k.Note = a.from, a.now, a.by, a.note
	return k
}

func (s *KeyService) about(ctx context.Context, m activated, field, note string) (about, error) {
	a := about{by: actor(ctx, m.GetOperator()), note: note, now: s.d.now(), from: fromTimestamp(m.GetActiveFrom())}
	switch {
	case !printable(note):
		return a, invalid(field, fmt.Sprintf("%q: control characters are not allowed", note))
	case timeFault(m.GetActiveFrom()) != "":
		return a, invalid("active_from", timeFault(m.GetActiveFrom()))
	case a.from.IsZero():
		a.from = a.now
	case a.from.Before(a.now):
		return a, invalid("active_from", a.from.Format(time.RFC3339)+": is in the past; leave it empty for now")
	}
	return a, nil
}

// create stores a name that is new. What is there already with the same material is the same call again.
func (s *KeyService) create(ctx context.Context, n newName, k keys.Key, a about, what string) (*keys.Set, error) {
	if !printable(n.merchant) {
		return nil, invalid("merchant_id", fmt.Sprintf("%q: control characters are not allowed", n.merchant))
	}
	if err := s.d.LearnKeys(ctx); err != nil {
		return nil, s.d.unavailable("read keys", err)
	}
	if known := s.d.keys.Get(n.name); known != nil {
		if known.Purpose == n.purpose && known.MerchantID == n.merchant && known.Newest().Material.Equal(k.Material) && slices.EqualFunc(known.Newest().Certificates, k.Certificates, bytes.Equal) && !known.Newest().Retired(a.now) {
			return known, nil
		}
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("name: %q: is there already; RotateKey makes its next version", n.name))
	}
	set, err := (&keys.Set{Name: n.name, Purpose: n.purpose, MerchantID: n.merchant}).With(a.onto(k), 0, a.now)
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return s.put(ctx, marked(set, a.by, what), 0)
}

var errSame = errors.New("nothing changes")

// change replaces a name's keys by what apply makes of them. When somebody else has changed them meanwhile, on any node, it
// begins again, unless the caller insists on a version. apply changes nothing of what it gets.
func (s *KeyService) change(ctx context.Context, name string, ifVersion *int64, apply func(*keys.Set, time.Time) (*keys.Set, error)) (*keys.Set, error) {
	for try := 1; ; try++ {
		known, err := s.known(ctx, name)
		if err != nil {
			return nil, err
		}
		next, err := apply(known, s.d.now())
		refused, answered := errors.AsType[*connect.Error](err)
		switch {
		case errors.Is(err, errSame):
			return known, nil
		case ifVersion != nil && *ifVersion != known.Version:
			return nil, stale("key", name)
		case answered:
			return nil, refused
		case err != nil:
			return nil, connect.NewError(connect.CodeFailedPrecondition, err)
		}
		stored, err := s.put(ctx, next, known.Version)
		if connect.CodeOf(err) != connect.CodeAborted || ifVersion != nil || try == changeTries {
			return stored, err
		}
	}
}

// put stores over a version, and holds what is stored on this node when it returns.
func (s *KeyService) put(ctx context.Context, set *keys.Set, over int64) (*keys.Set, error) {
	stored, err := s.d.keyStore.PutKeys(ctx, set, &over)
	switch {
	case errors.Is(err, ledger.ErrConflict):
		return nil, stale("key", set.Name)
	case err != nil:
		return nil, s.d.unavailable("store key", err)
	}
	if err := s.d.LearnKeys(ctx); err != nil { // made good within a second
		s.d.log.Debug("a change is stored; the snapshot does not have it yet", zap.Error(err))
	}
	newest := stored.Newest()
	s.d.log.Info("a key has changed", zap.String("key", stored.Name), zap.String("what", stored.Change), zap.Int("newest", newest.Version),
		zap.String("algorithm", string(newest.Algorithm)), zap.String("fingerprint", newest.Fingerprint), zap.String("by", stored.UpdatedBy))
	return stored, nil
}

// known is a name as the ledger has it now.
func (s *KeyService) known(ctx context.Context, name string) (*keys.Set, error) {
	if err := s.d.LearnKeys(ctx); err != nil {
		return nil, s.d.unavailable("read keys", err)
	}
	known := s.d.keys.Get(name)
	if known == nil {
		return nil, notFound("key", name)
	}
	return known, nil
}

func marked(set *keys.Set, by, what string) *keys.Set {
	if set != nil {
		set.UpdatedBy, set.Change = by, what
	}
	return set
}

func imported(p *notifydv1.ImportedKey, purpose keys.Purpose, from time.Time, field string) (keys.Key, error) {
	o := keys.Options{Purpose: purpose, Password: []byte(p.Password), KeyPassword: []byte(p.KeyPassword), Alias: p.Alias, AllowWeak: p.AllowWeak, ActiveFrom: from}
	if p.Secret {
		o.Format = keys.FormatSecret
	}
	k, err := keys.Import(p.Content, o)
	if err != nil {
		return k, importFault(err, field)
	}
	return k, nil
}

// importFault names the field that a fault is about.
func importFault(err error, field string) error {
	fault, ok := errors.AsType[*keys.ImportError](err)
	if !ok {
		return invalid(field, err.Error())
	}
	switch fault.Fault { //nolint:exhaustive // whatever is not about another field is about the content
	case keys.FaultWrongPassword, keys.FaultPasswordNeeded:
		field += ".password"
	case keys.FaultSeveralEntries, keys.FaultNoSuchAlias:
		field += ".alias"
	case keys.FaultNotYetValid:
		field = "active_from"
	default:
		field += ".content"
	}
	return invalid(field, fault.Error())
}

func generated(p *notifydv1.GeneratedKey, purpose keys.Purpose, field string) (keys.Key, error) {
	algorithm := keys.Algorithm(p.Algorithm)
	switch {
	case purpose == keys.PurposeTLSClient:
		return keys.Key{}, invalid(field+".algorithm", fmt.Sprintf("%q: a TLS client needs a certificate, which cannot be generated here: import both", algorithm))
	case purpose == keys.PurposeVerify && algorithm != keys.Symmetric:
		return keys.Key{}, invalid(field+".algorithm", fmt.Sprintf("%q: the merchant has the private key of what it signs: import its public key; only symmetric can be generated", algorithm))
	case algorithm != keys.Symmetric && p.SecretBytes != 0:
		return keys.Key{}, invalid(field+".secret_bytes", fmt.Sprintf("%d: goes with symmetric only", p.SecretBytes))
	}
	k, err := keys.Generate(algorithm, int(p.SecretBytes))
	if fault, ok := errors.AsType[*keys.ImportError](err); ok {
		return k, invalid(field+".secret_bytes", fault.Detail)
	}
	return k, err
}

// reveal is the secret of a key that was generated by this very call; of any other there is no way to it.
func reveal(k keys.Key) string {
	if k.Algorithm != keys.Symmetric {
		return ""
	}
	return "base64:" + base64.StdEncoding.EncodeToString(k.Material.Secret())
}

func revealIf(generated bool, k keys.Key) string {
	if !generated {
		return ""
	}
	return reveal(k)
}
