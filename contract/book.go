package contract

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"
	"weak"

	"notifyd/contract/answer"
	"notifyd/contract/sign"
	"notifyd/keys"
	"notifyd/merchant"
	"notifyd/notification"
)

// KeyRing knows which keys are in use; see keys.Ring.
type KeyRing interface {
	Live(name string, at time.Time) []*keys.Key
	Check(name, merchantID string, purpose keys.Purpose, at time.Time) error
}

// Book keeps merchants' contracts compiled, and makes their requests. It can be used by many goroutines.
type Book struct {
	ring KeyRing
	pool *sign.Pool

	mu    sync.RWMutex
	pages map[place]*page
	// compiled are contracts by their settings, as long as a page has them: most merchants have the settings of many others,
	// and each would hold four kilobytes.
	compiled map[string]weak.Pointer[Contract]
}

// place is whose contract it is: scenes may have an acknowledgement of their own.
type place struct{ merchant, scene string }

// page is a contract of one version of a merchant's settings.
type page struct {
	version  int64
	contract *Contract
	err      error
	inline   []Key     // of a secret within the settings
	until    time.Time // the second of inline is in use
	ready    sync.Map  // from a key's ID in the ring to Key
	answers  sync.Map  // from a key's ID in the ring to AnswerKey
}

// NewBook returns an empty book.
func NewBook(ring KeyRing, pool *sign.Pool) *Book {
	return &Book{ring: ring, pool: pool, pages: map[place]*page{}, compiled: map[string]weak.Pointer[Contract]{}}
}

// page is the compiled contract of a merchant as a scene sees it. Settings without a version are compiled each time.
func (b *Book) page(m *merchant.Merchant, scene string) (*page, error) {
	if _, own := m.Scenes[scene]; !own {
		scene = ""
	}
	at := place{m.ID, scene}
	b.mu.RLock()
	p := b.pages[at]
	b.mu.RUnlock()
	if p == nil || p.version != m.Version || m.Version == 0 {
		p = b.newPage(m)
		b.mu.Lock()
		b.pages[at] = p
		b.mu.Unlock()
	}
	return p, p.err
}

func (b *Book) newPage(m *merchant.Merchant) *page {
	p := &page{version: m.Version}
	if p.contract, p.err = b.compile(m.Contract); p.err != nil { // stored by a version that knows more, or was less strict
		p.err = fmt.Errorf("%w: %w", ErrSettings, p.err)
		return p
	}
	p.until = m.Secrets.PreviousUntil
	var err error
	if p.inline, err = p.contract.inlineKeys(m); err != nil {
		p.err = fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	return p
}

// compile shares a contract among those with equal settings.
func (b *Book) compile(settings merchant.Contract) (*Contract, error) {
	text, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	key := string(text)
	if c := b.known(key); c != nil {
		return c, nil
	}
	c, err := Compile(settings)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.compiled[key] = weak.Make(c)
	runtime.AddCleanup(c, b.forget, key)
	return c, nil
}

func (b *Book) known(key string) *Contract {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.compiled[key].Value()
}

// forget drops a contract that no page has any more; another one with its settings may have been compiled since.
func (b *Book) forget(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.compiled[key].Value() == nil {
		delete(b.compiled, key)
	}
}

// inlineKeys are the secrets within a merchant's settings, the newest first.
func (c *Contract) inlineKeys(m *merchant.Merchant) (all []Key, err error) {
	if c.algorithm.KeyKind() != sign.KeySecret {
		return nil, nil
	}
	for i, text := range []string{m.Secrets.SigningSecret, m.Secrets.PreviousSecret} {
		if text == "" {
			continue
		}
		secret, err := c.profile.parse(text)
		if err != nil {
			return nil, err
		}
		key, err := sign.SecretKey(secret)
		if err != nil {
			return nil, err
		}
		id := m.Contract.Signer.KeyID
		if i > 0 && id != "" {
			id += " (before)"
		}
		ready, err := c.Prepare(id, key)
		if err != nil {
			return nil, err
		}
		all = append(all, ready)
	}
	return all, nil
}

// keys are those in use at an instant.
func (b *Book) keys(p *page, at time.Time) (Keys, error) {
	c, s := p.contract, p.contract.settings
	var out Keys
	switch {
	case c.algorithm == sign.None:
	case len(p.inline) > 0:
		if out.Sign = p.inline; len(p.inline) > 1 && !at.Before(p.until) {
			out.Sign = p.inline[:1]
		}
	default:
		for _, key := range b.ring.Live(s.Signer.KeyID, at) {
			ready, err := p.prepare(key)
			if err != nil {
				return Keys{}, fmt.Errorf("%w: %w", ErrNoKey, err)
			}
			if wants := c.certificate; wants != "" && key.SerialNumber == "" {
				return Keys{}, fmt.Errorf("%w: key %s has no certificate, and %s", ErrNoKey, key.ID(), wants)
			}
			out.Sign = append(out.Sign, ready)
		}
	}
	if c.inner != nil {
		if live := b.ring.Live(s.Encryption.KeyID, at); len(live) > 0 {
			out.Seal, out.SealID = sign.NewSecret(live[0].Material.Secret()), live[0].ID()
		}
	}
	if c.answers != nil && c.answers.keyID != "" {
		for _, key := range b.ring.Live(c.answers.keyID, at) {
			ready, err := p.prepareAnswer(key)
			if err != nil {
				return Keys{}, fmt.Errorf("%w: %w", ErrNoKey, err)
			}
			out.Answer = append(out.Answer, ready)
		}
	}
	return out, nil
}

func (p *page) prepare(key *keys.Key) (Key, error) {
	if known, ok := p.ready.Load(key.ID()); ok {
		if ready, ok := known.(Key); ok {
			return ready, nil
		}
	}
	material, err := signKey(key)
	if err != nil {
		return Key{}, err
	}
	ready, err := p.contract.Prepare(key.ID(), material)
	if err != nil {
		return Key{}, fmt.Errorf("key %s: %w", key.ID(), err)
	}
	ready.Serial, ready.SerialDecimal = key.SerialNumber, key.Decimal()
	p.ready.Store(key.ID(), ready)
	return ready, nil
}

func (p *page) prepareAnswer(key *keys.Key) (AnswerKey, error) {
	if known, ok := p.answers.Load(key.ID()); ok {
		if ready, ok := known.(AnswerKey); ok {
			return ready, nil
		}
	}
	ready, err := p.contract.prepareAnswer(key)
	if err == nil {
		p.answers.Store(key.ID(), ready)
	}
	return ready, err
}

func (c *Contract) prepareAnswer(key *keys.Key) (AnswerKey, error) {
	material, err := verifyKey(key)
	if err != nil {
		return AnswerKey{}, err
	}
	ready, err := c.PrepareAnswer(key.ID(), material)
	if err != nil {
		return AnswerKey{}, fmt.Errorf("key %s: %w", key.ID(), err)
	}
	return ready, nil
}

func verifyKey(key *keys.Key) (sign.Key, error) {
	if secret := key.Material.Secret(); len(secret) > 0 {
		return sign.SecretKey(sign.NewSecret(secret))
	}
	if public := key.Material.Public(); public != nil {
		return sign.PublicKey(public)
	}
	return sign.Key{}, fmt.Errorf("key %s: has nothing to verify with", key.ID())
}

func signKey(key *keys.Key) (sign.Key, error) {
	if secret := key.Material.Secret(); len(secret) > 0 {
		return sign.SecretKey(sign.NewSecret(secret))
	}
	if private := key.Material.Signer(); private != nil {
		return sign.PrivateKey(private)
	}
	return sign.Key{}, fmt.Errorf("key %s: has nothing to sign with", key.ID())
}

// Request makes the request of one attempt for a merchant, with entropy of its own where none is given; see Contract.Request for its errors.
func (b *Book) Request(ctx context.Context, m *merchant.Merchant, told Told, o Options) (Request, error) {
	p, err := b.page(m, told.Notification.Scene)
	if err != nil {
		return Request{}, err
	}
	inUse, err := b.keys(p, told.At)
	if err != nil {
		return Request{}, err
	}
	if p.contract.usesEntropy && told.Entropy == [32]byte{} {
		_, _ = rand.Read(told.Entropy[:]) // never fails: it ends the process instead
	}
	return p.contract.Request(ctx, told, inUse, func(ctx context.Context, signer *sign.Signer, message []byte) ([]byte, error) {
		return b.pool.Sign(ctx, m.ID, signer, message)
	}, o)
}

// Check refuses a notification that its merchant's contract cannot carry.
func (b *Book) Check(m *merchant.Merchant, n *notification.Notification) error {
	p, err := b.page(m, n.Scene)
	if err != nil {
		return err
	}
	return p.contract.Check(n)
}

// Acknowledgement is the rule for the answer to what was told, which was asked with the keys of that time; nil: the contract cannot be
// compiled, so nothing was asked.
func (b *Book) Acknowledgement(m *merchant.Merchant, told Told) *answer.Acknowledgement {
	p, err := b.page(m, told.Notification.Scene)
	switch {
	case err != nil || p.contract == nil:
		return nil
	case p.contract.answers == nil: // most are
		return p.contract.acknowledgement
	}
	inUse, err := b.keys(p, told.At)
	if err != nil {
		inUse = Keys{} // so that nothing verifies
	}
	return p.contract.Acknowledgement(told, inUse)
}

// CheckSettings refuses what cannot work at an instant: see Errors. The secret is the merchant's own, if it has one.
func (b *Book) CheckSettings(m *merchant.Merchant, at time.Time) error {
	c, err := Compile(m.Contract)
	if err != nil {
		return err
	}
	var errs []error
	refuse := func(field string, err error) {
		errs = append(errs, &FieldError{field, strings.TrimPrefix(err.Error(), "secret: ")})
	}
	s := c.settings
	secret := m.Secrets.SigningSecret != ""
	switch {
	case c.algorithm == sign.None && (secret || s.Signer.KeyID != ""):
		refuse("signer.algorithm", errors.New("none signs nothing: leave out the secret and the key"))
	case c.algorithm == sign.None:
	case secret && c.algorithm.KeyKind() != sign.KeySecret:
		refuse("signer.secret", fmt.Errorf("%s signs with a private key: import one, and name it as signer.key_id", c.algorithm))
	case secret:
		if _, err := c.inlineKeys(m); err != nil {
			refuse("signer.secret", err)
		}
	case s.Signer.KeyID == "":
		rule := "must name a key in the key store: " + c.algorithm.String() + " signs with it"
		if c.algorithm.KeyKind() == sign.KeySecret {
			rule += ", or with signer.secret"
		}
		refuse("signer.key_id", errors.New(rule))
	default:
		if err := b.checkKey(c, s.Signer.KeyID, m.ID, at); err != nil {
			refuse("signer.key_id", err)
		}
	}
	if wants := c.wantsCertificate(); wants != "" && secret {
		refuse("signer.key_id", errors.New(wants+", which a secret has not: name a key with a certificate"))
	}
	if where := c.uses("key_id"); where != "" && s.Signer.KeyID == "" && c.algorithm != sign.None {
		refuse("signer.key_id", fmt.Errorf("must be given: %s has it", where))
	}
	if c.inner != nil {
		if err := b.checkSealing(c, m.ID, at); err != nil {
			refuse("encryption.key_id", err)
		}
	}
	if c.answers != nil && c.answers.keyID != "" {
		if err := b.checkAnswerKey(c, m.ID, at); err != nil {
			refuse(answerField+"key_id", err)
		}
	}
	return errors.Join(errs...)
}

func (b *Book) checkAnswerKey(c *Contract, merchantID string, at time.Time) error {
	name := c.answers.keyID
	if err := b.ring.Check(name, merchantID, keys.PurposeVerify, at); err != nil {
		return err
	}
	for _, key := range b.ring.Live(name, at) {
		if _, err := c.prepareAnswer(key); err != nil {
			return err
		}
	}
	return nil
}

func (b *Book) checkKey(c *Contract, name, merchantID string, at time.Time) error {
	if err := b.ring.Check(name, merchantID, keys.PurposeSign, at); err != nil {
		return err
	}
	for _, key := range b.ring.Live(name, at) {
		material, err := signKey(key)
		if err == nil {
			_, err = c.Prepare(key.ID(), material)
		}
		if err != nil {
			return err
		}
		if wants := c.wantsCertificate(); wants != "" && key.SerialNumber == "" {
			return fmt.Errorf("%q: %s, and the key has no certificate: import it with one", name, wants)
		}
	}
	return nil
}

// wantsCertificate says why the contract needs a key's serial number; empty: it does not.
func (c *Contract) wantsCertificate() string {
	for _, name := range []string{"serial", "serial_decimal"} {
		if where := c.uses(name); where != "" {
			return where + " has the certificate's serial number"
		}
	}
	for _, add := range c.profile.adds {
		if _, own := c.settings.Encoding.Fields[add.name]; !own && strings.HasPrefix(add.source, "@serial") {
			return "field " + add.name + " has the certificate's serial number"
		}
	}
	return ""
}

func (b *Book) checkSealing(c *Contract, merchantID string, at time.Time) error {
	name := c.settings.Encryption.KeyID
	if err := b.ring.Check(name, merchantID, keys.PurposeEncrypt, at); err != nil {
		return err
	}
	for _, key := range b.ring.Live(name, at) {
		if _, err := sign.NewSealer(c.cipher, sign.NewSecret(key.Material.Secret())); err != nil {
			return err
		}
	}
	return nil
}

// MakesSecret reports whether a merchant without a secret gets one: its contract has a secret, and names no key in the store.
func (b *Book) MakesSecret(m *merchant.Merchant, at time.Time) bool {
	c, err := Compile(m.Contract)
	return err == nil && c.profile.makesSecret && b.takesSecret(c, m, at)
}

// TakesSecret reports whether a merchant's contract signs with a secret that is not in the key store.
func (b *Book) TakesSecret(m *merchant.Merchant, at time.Time) bool {
	c, err := Compile(m.Contract)
	return err == nil && b.takesSecret(c, m, at)
}

func (b *Book) takesSecret(c *Contract, m *merchant.Merchant, at time.Time) bool {
	name := c.settings.Signer.KeyID
	return c.algorithm.KeyKind() == sign.KeySecret && (name == "" || b.ring.Check(name, m.ID, keys.PurposeSign, at) != nil)
}
