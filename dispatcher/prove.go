package dispatcher

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"notifyd/ledger"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const (
	proofPage = 5000
	// proofSettle is how long ago a notification must have been accepted to be looked for, unless the caller says otherwise.
	proofSettle = 30 * time.Second
	// missingPerAnswer bounds one answer.
	missingPerAnswer = 1000
)

// proof counts where every reservation of a span stands (P2).
type proof struct {
	before   time.Time
	accepted int64
	final    map[string]int64
	waiting  map[string]int64
	missing  int64
	cutShort int64                               // reserved, and nobody was told of an acceptance
	suspects map[notification.ID]ledger.ProofRow // not final: to be found in a named place
}

// Prove checks every id accepted before a cut-off against an independent count, the reservations: it is final, or it is
// found waiting in a named place; whatever is not, is listed by id.
func (d *Dispatcher) Prove(ctx context.Context, req *connect.Request[notifydv1.ProveRequest], stream *connect.ServerStream[notifydv1.ProveResponse]) error {
	p := &proof{before: fromTimestamp(req.Msg.AcceptedBefore), final: map[string]int64{}, waiting: map[string]int64{}, suspects: map[notification.ID]ledger.ProofRow{}}
	if p.before.IsZero() {
		p.before = d.now().Add(-proofSettle)
	}
	from := fromTimestamp(req.Msg.AcceptedFrom)
	if !from.Before(p.before) {
		return invalid("accepted_from", "is not before accepted_before")
	}
	var after ledger.ProofCursor
	for {
		rows, next, err := d.ledger.Reservations(ctx, from, p.before, after, proofPage)
		if err != nil {
			return d.unavailable("read reservations", err)
		}
		for _, row := range rows {
			p.count(row)
		}
		if err := stream.Send(p.answer(nil, false)); err != nil {
			return err
		}
		if next.IsZero() {
			break
		}
		after = next
	}
	if err := d.findSuspects(ctx, p); err != nil {
		return err
	}
	ids := make([]string, 0, len(p.suspects))
	for id, row := range p.suspects {
		if row.State == 0 && !row.Answered {
			p.cutShort++
			continue
		}
		ids = append(ids, id.String())
	}
	p.missing = int64(len(ids))
	for len(ids) > missingPerAnswer {
		if err := stream.Send(p.answer(ids[:missingPerAnswer], false)); err != nil {
			return err
		}
		ids = ids[missingPerAnswer:]
	}
	return stream.Send(p.answer(ids, true))
}

// count files one reservation. A row that says when it is due is found by the sweep; everything else that is not final
// must be seen.
func (p *proof) count(row ledger.ProofRow) {
	p.accepted++
	switch {
	case row.State.Final():
		p.final[row.State.String()]++
	case row.State != 0 && !row.Resting && !row.NextAt.IsZero():
		p.waiting["due_index"]++
	case row.State != 0 && !row.Resting && row.Reason == notification.ReasonAwaitingPredecessor: // its predecessor is looked for like all others
		p.waiting["line"]++
	default:
		p.suspects[row.ID] = row
	}
}

// findSuspects looks for what is not final: in this process, in the streams, and once more in the ledger, since it may
// have moved while the proof was reading.
func (d *Dispatcher) findSuspects(ctx context.Context, p *proof) error {
	found := func(id notification.ID, place string) {
		if _, ok := p.suspects[id]; ok {
			delete(p.suspects, id)
			p.waiting[place]++
		}
	}
	for id := range p.suspects {
		if _, ok := d.hand.Find(id); ok {
			found(id, "in_hand")
		}
	}
	if len(p.suspects) == 0 {
		return nil
	}
	for range 2 { // what moves from one stream to another while they are read is found the second time
		if len(p.suspects) == 0 {
			break
		}
		if err := d.places.Waiting(ctx, found); err != nil {
			return d.unavailable("read streams", err)
		}
	}
	if err := d.findQuarantined(ctx, found); err != nil {
		return err
	}
	ids := make([]notification.ID, 0, len(p.suspects))
	for id := range p.suspects {
		ids = append(ids, id)
	}
	for len(ids) > 0 {
		page := ids[:min(len(ids), 500)]
		ids = ids[len(page):]
		rows, err := d.ledger.FindMany(ctx, page)
		if err != nil {
			return d.unavailable("look up suspects", err)
		}
		for id, n := range rows {
			switch {
			case n.State.Final():
				delete(p.suspects, id)
				p.final[n.State.String()]++
			case !n.Resting && !n.NextAt.IsZero():
				found(id, "due_index")
			case !n.Resting && n.Reason == notification.ReasonAwaitingPredecessor:
				found(id, "line")
			}
		}
	}
	return nil
}

func (d *Dispatcher) findQuarantined(ctx context.Context, found func(id notification.ID, place string)) error {
	for after := int64(0); ; {
		page, err := d.ledger.Quarantine(ctx, after, 500)
		if err != nil {
			return d.unavailable("read quarantine", err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, q := range page {
			found(q.ID, "quarantine")
			after = q.Number
		}
	}
}

func (p *proof) answer(missing []string, done bool) *notifydv1.ProveResponse {
	return &notifydv1.ProveResponse{
		Accepted: p.accepted, Final: p.final, Waiting: p.waiting, Missing: p.missing, Unanswered: p.cutShort, MissingIds: missing, Done: done,
		AcceptedBefore: toTimestamp(p.before),
	}
}
