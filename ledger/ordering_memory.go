package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"notifyd/notification"
)

// memoryPlace is a row of lines.
type memoryPlace struct {
	line     [16]byte
	at       time.Time
	id       notification.ID
	standing place
	by       notification.ID
}

func (p *memoryPlace) before(o *memoryPlace) bool {
	return p.line == o.line && cmp.Or(p.at.Compare(o.at), slices.Compare(p.id[:], o.id[:])) < 0
}

// memoryLines are the places, in the order in which they were taken.
type memoryLines []*memoryPlace

func (ls memoryLines) of(id notification.ID, line [16]byte) *memoryPlace {
	for _, p := range ls {
		if p.id == id && p.line == line {
			return p
		}
	}
	return nil
}

// someBefore reports whether somebody who stands so is before a place.
func (ls memoryLines) someBefore(o *memoryPlace, standing place) bool {
	return slices.ContainsFunc(ls, func(p *memoryPlace) bool { return p.standing == standing && p.before(o) })
}

// first is the open one before all others; nil: there is none.
func (ls memoryLines) first(line [16]byte) *memoryPlace {
	var first *memoryPlace
	for _, p := range ls {
		if p.line == line && p.standing == placeOpen && (first == nil || p.before(first)) {
			first = p
		}
	}
	return first
}

// add gives a notification the places that it has not, and returns whom it supersedes.
func (ls *memoryLines) add(n *notification.Notification, late bool) (superseded []notification.ID) {
	for _, line := range [][16]byte{orderingLine(n), supersedeLine(n)} {
		if line == [16]byte{} {
			continue
		}
		own := ls.of(n.ID, line)
		if own == nil {
			own = &memoryPlace{line: line, at: n.AcceptedAt, id: n.ID, standing: placeOpen}
			for _, p := range *ls {
				if !late && p.line == line && p.standing == placeOpen && !own.at.After(p.at) {
					own.at = p.at.Add(time.Microsecond)
				}
			}
			*ls = append(*ls, own)
		}
		if line != supersedeLine(n) {
			continue
		}
		for _, p := range *ls {
			if p.standing == placeOpen && p.by.IsZero() && p.before(own) {
				p.by = n.ID
				superseded = append(superseded, p.id)
			}
		}
	}
	return superseded
}

// end ends the places of a final notification.
func (ls memoryLines) end(n *notification.Notification) {
	for _, own := range ls {
		if own.id != n.ID || own.standing == placeEnded {
			continue
		}
		own.standing = placeEnded
		if n.State == notification.StateDead && own.line == orderingLine(n) {
			own.standing = placeDead
		}
		for _, p := range ls {
			if n.State == notification.StateDelivered && p.standing == placeDead && p.before(own) {
				p.standing = placeEnded
			}
		}
	}
}

// LineUp does what Postgres.LineUp does.
func (m *Memory) LineUp(ctx context.Context, list []*notification.Notification) ([]Lined, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Lined, len(list))
	for i, given := range list {
		n := *given
		r := Record{Notification: &n, New: true, Unreserved: true, Unfed: n.Reason == notification.ReasonNotBefore}
		if reservation, reserved := m.reservations[n.ID]; reserved {
			n.AcceptedAt = reservation.AcceptedAt
			if n.Digest != reservation.Digest {
				out[i].Err = &QuarantinedError{n.ID, errOtherContent}
				continue
			}
		}
		if err := checkRecord(&pending{Record: r, acceptedAt: n.AcceptedAt}); err != nil {
			out[i].Err = &QuarantinedError{n.ID, err}
			continue
		}
		out[i] = Lined{Row: &n, Superseded: m.lines.add(&n, false)}
		if own := m.lines.of(n.ID, orderingLine(&n)); own != nil && own.standing == placeOpen && m.lines.someBefore(own, placeOpen) {
			out[i].Waits = true
			wait(&n)
		}
		if m.rows[n.ID] != nil {
			continue
		}
		if err := m.store(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Turn does what Postgres.Turn does.
func (m *Memory) Turn(ctx context.Context, n *notification.Notification) (turn Turn, err error) {
	if err := ctx.Err(); err != nil {
		return Turn{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(m.lines, func(p *memoryPlace) bool { return p.id == n.ID }) {
		if row := m.rows[n.ID]; row == nil || !row.n.State.Final() {
			m.lines.add(n, true)
		}
	}
	if own := m.lines.of(n.ID, orderingLine(n)); own != nil && own.standing == placeOpen {
		turn.Behind, turn.BehindDead = m.lines.someBefore(own, placeOpen), m.lines.someBefore(own, placeDead)
	}
	if own := m.lines.of(n.ID, supersedeLine(n)); own != nil && own.standing == placeOpen {
		turn.SupersededBy = own.by
	}
	return turn, nil
}

// Next does what Postgres.Next does.
func (m *Memory) Next(ctx context.Context, ended []*notification.Notification, now time.Time) ([]*notification.Notification, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*notification.Notification
	for _, n := range ended {
		first := m.lines.first(orderingLine(n))
		if n.OrderingKey == "" || first == nil {
			continue
		}
		row := m.rows[first.id]
		if row == nil || row.fed || !due(row.n.Progress, microseconds(now)) {
			continue
		}
		row.fed = true
		out = append(out, row.read())
	}
	return out, nil
}

// Supersede does what Postgres.Supersede does.
func (m *Memory) Supersede(ctx context.Context, id, by notification.ID, now time.Time) (*notification.Notification, error) {
	return m.operate(ctx, fmt.Sprintf("supersede by %s", by), id, "", now, supersededBy(by))
}

// moveLine does what Postgres.moveLines does, for one.
func (m *Memory) moveLine(told *notification.Notification) {
	if !movesLine(told) {
		return
	}
	if row := m.rows[told.ID]; row != nil && row.n.State.Final() {
		m.lines.end(row.n)
	}
	m.callFirst(orderingLine(told))
}

// callFirst makes due who is first in a line and waits.
func (m *Memory) callFirst(line [16]byte) {
	first := m.lines.first(line)
	if line == [16]byte{} || first == nil {
		return
	}
	row, now := m.rows[first.id], microseconds(m.now())
	if row == nil || row.n.State.Final() || row.n.Resting || row.n.Reason != notification.ReasonAwaitingPredecessor ||
		!row.n.NextAt.IsZero() && !row.n.NextAt.After(now) {
		return
	}
	p := row.n.Progress
	p.Reason, p.NextAt, p.UpdatedAt = notification.ReasonQueued, latest(now, row.n.NotBefore), latest(now, p.UpdatedAt)
	row.move(p)
	row.fed = false
}

// leaveLine does what Postgres.leaveLines does.
func (m *Memory) leaveLine(n *notification.Notification) {
	for _, p := range m.lines {
		if p.id == n.ID {
			p.standing = placeEnded
		}
	}
	m.callFirst(orderingLine(n))
}
