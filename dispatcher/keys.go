package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/sony/gobreaker/v2"
	"go.uber.org/zap"

	"notifyd/async"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// Queues knows what the async lane has of isolation keys.
type Queues interface {
	// OwnQueues are those of the whole cluster, by isolation key.
	OwnQueues(ctx context.Context) (map[string]async.OwnQueue, error)
	// InFlight is how many attempts this node makes for a key, and how many it would.
	InFlight(isolationKey string) (n, most int)
}

// RunBreakers shares the breakers with other nodes and forgets what is idle, until ctx ends.
func (d *Dispatcher) RunBreakers(ctx context.Context) error { return d.gate.Run(ctx) }

// LearnBoard takes in what stands on the board of breakers; see Gate.LearnBoard.
func (d *Dispatcher) LearnBoard(name string, value []byte) { d.gate.LearnBoard(name, value) }

func (d *Dispatcher) wakeMerchant(id string) {
	if d.async != nil { // what stands on the board may be learned first
		d.async.Wake(id)
	}
}

// keyState is what this node knows of one key.
type keyState struct {
	key, merchantID string // without a key: what is forced for all of the merchant's
	breaker         notifydv1.BreakerState
	opening         opening
	forced          *forced
	ended, failed   uint32 // in the window
	inARow          uint32
	own             *async.OwnQueue
}

func (s *keyState) troubled() bool {
	return s.breaker != notifydv1.BreakerState_BREAKER_STATE_CLOSED || s.forced != nil || s.own != nil
}

// state is a snapshot.
func (k *guard) state(now time.Time) keyState {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := keyState{key: k.key, merchantID: k.merchantID, breaker: notifydv1.BreakerState_BREAKER_STATE_CLOSED, opening: k.opening, inARow: k.inARow}
	switch {
	case now.Before(k.opening.ProbeAt):
		s.breaker = notifydv1.BreakerState_BREAKER_STATE_OPEN
	case k.isOpen():
		s.breaker = notifydv1.BreakerState_BREAKER_STATE_HALF_OPEN
	case k.breaker.State() == gobreaker.StateClosed: // asking moves its window
		c := k.breaker.Counts()
		s.ended, s.failed = c.TotalSuccesses+c.TotalFailures, c.TotalFailures
	}
	return s
}

// states are all keys that this node knows of.
func (g *Gate) states(now time.Time) map[string]*keyState {
	out, o := map[string]*keyState{}, g.forced.Load()
	for _, k := range g.guards() {
		s := k.state(now)
		s.forced = o.of(s.key, s.merchantID, now)
		out[s.key] = &s
	}
	if o == nil {
		return out
	}
	for name, f := range o.byName {
		if f.Key != "" {
			name = f.Key
		}
		if out[name] == nil && f.holds(now) {
			out[name] = &keyState{key: f.Key, merchantID: f.Merchant, breaker: notifydv1.BreakerState_BREAKER_STATE_CLOSED, forced: f}
		}
	}
	return out
}

// keyStates are the keys of a merchant, or of all, in the order of their pages. Without own queues it comes with an error.
func (s *MerchantService) keyStates(ctx context.Context, merchantID string, onlyTroubled bool) ([]*keyState, error) {
	now := s.now()
	states := s.gate.states(now)
	var err error
	if s.Queues != nil {
		var own map[string]async.OwnQueue
		own, err = s.Queues.OwnQueues(ctx)
		for key, q := range own {
			if states[key] == nil {
				states[key] = &keyState{
					key: key, merchantID: q.MerchantID, breaker: notifydv1.BreakerState_BREAKER_STATE_CLOSED, forced: s.gate.forced.Load().of(key, q.MerchantID, now),
				}
			}
			states[key].own = &q
		}
	}
	var out []*keyState
	for _, k := range states {
		if (merchantID == "" || k.merchantID == merchantID) && (!onlyTroubled || k.troubled()) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *keyState) int { return cmp.Compare(a.page(), b.page()) })
	return out, err
}

// page is where a key stands in the list: merchants' overrides first.
func (s *keyState) page() string {
	if s.key == "" {
		return "0" + s.merchantID
	}
	return "1" + s.key
}

// ListKeys says how it stands with isolation keys.
func (s *MerchantService) ListKeys(ctx context.Context, req *connect.Request[notifydv1.ListKeysRequest]) (*connect.Response[notifydv1.ListKeysResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	states, err := s.keyStates(ctx, req.Msg.MerchantId, req.Msg.OnlyTroubled)
	if err != nil {
		s.log.Warn("own queues are missing in a list of keys", zap.Error(err))
	}
	page, next, _ := settingsPage(req.Msg, func(after string, limit int) ([]*keyState, error) {
		from, found := slices.BinarySearchFunc(states, after, func(k *keyState, after string) int { return cmp.Compare(k.page(), after) })
		if found {
			from++
		}
		return states[from:min(from+limit, len(states))], nil
	}, (*keyState).page)
	return connect.NewResponse(&notifydv1.ListKeysResponse{Keys: s.keysToProto(page), NextPageToken: next, OwnQueuesUnavailable: err != nil}), nil
}

// ForceBreaker holds breakers open or closed. It is answered when the decision is kept; other nodes know within moments.
func (s *MerchantService) ForceBreaker(ctx context.Context, req *connect.Request[notifydv1.ForceBreakerRequest]) (*connect.Response[notifydv1.ForceBreakerResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	p, now := req.Msg, s.now()
	lift := p.State == notifydv1.ForcedBreaker_FORCED_BREAKER_NONE
	name, merchantID := boardName(onBoardForcedMerchant, p.MerchantId), p.MerchantId
	switch {
	case (p.IsolationKey == "") == (p.MerchantId == ""):
		return nil, invalid("isolation_key", "give isolation_key or merchant_id, and not both")
	case p.IsolationKey != "":
		var ok bool
		if merchantID, ok = merchantOfKey(p.IsolationKey); !ok {
			return nil, invalid("isolation_key", fmt.Sprintf("%q: has no segment m:<merchant>; ListKeys shows keys", p.IsolationKey))
		}
		name = boardName(onBoardForcedKey, p.IsolationKey)
	}
	switch {
	case lift && (p.Reason != "" || p.ExpiresAt != nil):
		return nil, invalid("state", "FORCED_BREAKER_NONE: has no reason and no expires_at; leave them empty")
	case !lift && p.Reason == "":
		return nil, invalid("reason", "is empty: say why, for whoever finds it")
	case timeFault(p.ExpiresAt) != "":
		return nil, invalid("expires_at", timeFault(p.ExpiresAt))
	case p.ExpiresAt != nil && !p.ExpiresAt.AsTime().After(now):
		return nil, invalid("expires_at", fmt.Sprintf("%s: is not in the future (it is %s)", p.ExpiresAt.AsTime().Format(time.RFC3339), now.Format(time.RFC3339)))
	}
	if !lift && s.merchants.Get(merchantID) == nil { // what is known need not be asked for: the ledger may be away
		m, err := s.current(ctx, merchantID)
		if err != nil {
			return nil, err
		}
		if m == nil {
			return nil, notFound("merchant", merchantID)
		}
	}
	var f *forced
	if !lift {
		f = &forced{Key: p.IsolationKey, Merchant: merchantID, Open: p.State == notifydv1.ForcedBreaker_FORCED_BREAKER_OPEN, Reason: p.Reason, By: actor(ctx, p.Operator), At: now}
		if p.ExpiresAt != nil {
			f.Until = p.ExpiresAt.AsTime()
		}
	}
	if err := s.gate.force(ctx, name, f); err != nil {
		return nil, s.unavailable("force breaker", err)
	}
	s.log.Info("breaker is forced", zap.String("isolation_key", p.IsolationKey), zap.String("merchant", merchantID), zap.Stringer("state", p.State),
		zap.String("operator", actor(ctx, p.Operator)), zap.String("reason", p.Reason), zap.Stringp("expires_at", shown(p.ExpiresAt.AsTime(), p.ExpiresAt != nil)))
	return connect.NewResponse(&notifydv1.ForceBreakerResponse{Keys: s.about(ctx, p.IsolationKey, merchantID)}), nil
}

func shown(at time.Time, given bool) *string {
	if !given {
		return nil
	}
	text := at.Format(time.RFC3339)
	return &text
}

// mostAbout bounds what ForceBreaker answers.
const mostAbout = 1000

// about is what this node knows of one key, or of all keys of a merchant.
func (s *MerchantService) about(ctx context.Context, key, merchantID string) []*notifydv1.KeyStatus {
	states, err := s.keyStates(ctx, merchantID, false)
	if err != nil {
		s.log.Debug("own queues are missing in an answer about keys", zap.Error(err))
	}
	if key != "" {
		states = slices.DeleteFunc(states, func(k *keyState) bool { return k.key != key })
	}
	return s.keysToProto(states[:min(len(states), mostAbout)])
}

// merchantOfKey is whose an isolation key is: each has a segment m:<merchant> before any that could look like one.
func merchantOfKey(key string) (string, bool) {
	for segment := range strings.SplitSeq(key, "/") {
		if escaped, ok := strings.CutPrefix(segment, "m:"); ok {
			id, err := url.PathUnescape(escaped)
			return id, err == nil && id != ""
		}
	}
	return "", false
}

func (s *MerchantService) keysToProto(states []*keyState) []*notifydv1.KeyStatus {
	out := make([]*notifydv1.KeyStatus, len(states))
	for i, k := range states {
		p := &notifydv1.KeyStatus{
			IsolationKey: k.key, MerchantId: k.merchantID, Breaker: k.breaker, Openings: int32(k.opening.Times), //nolint:gosec // it would take centuries
			OpenedAt: toTimestamp(k.opening.At), ProbeAt: toTimestamp(k.opening.ProbeAt), Cause: causesToProto[k.opening.Cause],
			Forced: notifydv1.ForcedBreaker_FORCED_BREAKER_NONE, WindowAttempts: int32(k.ended), WindowFailures: int32(k.failed), ConsecutiveFailures: int32(k.inARow), //nolint:gosec // as above
		}
		if f := k.forced; f != nil {
			p.Forced = notifydv1.ForcedBreaker_FORCED_BREAKER_CLOSED
			if f.Open {
				p.Forced = notifydv1.ForcedBreaker_FORCED_BREAKER_OPEN
			}
			p.ForcedBy, p.ForcedReason, p.ForcedAt, p.ForcedUntil = f.By, f.Reason, toTimestamp(f.At), toTimestamp(f.Until)
		}
		if s.Queues != nil && k.key != "" {
			n, most := s.Queues.InFlight(k.key)
			p.InFlight, p.InFlightCap = int32(n), int32(most) //nolint:gosec // bounded by the lane
		}
		if q := k.own; q != nil {
			p.OwnQueue, p.OwnQueueDepth, p.OwnQueueOldest, p.OwnQueueReason = true, q.Depth, toTimestamp(q.Oldest), string(q.Reason)
		}
		out[i] = p
	}
	return out
}

var causesToProto = map[breakerCause]notifydv1.BreakerCause{
	causeInARow: notifydv1.BreakerCause_BREAKER_CAUSE_CONSECUTIVE_FAILURES,
	causeRate:   notifydv1.BreakerCause_BREAKER_CAUSE_FAILURE_RATE,
}
