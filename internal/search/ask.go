package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/internal/search/fill"
	"notifyd/ledger"
	"notifyd/notification"
)

const page = 50

// question is something that is asked many times, with other values each time.
type question struct {
	name string
	// n is drawn at random each time; its values are what is asked for.
	ask func(ctx context.Context, n *notification.Notification) (found int, err error)
}

// ask vacuums as autovacuum would have done over the days, then asks everything.
func (m *measurement) ask(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, m.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	began := time.Now()
	for _, table := range []string{"notifications", "attempts", "reservations"} {
		if _, err := conn.Exec(ctx, "vacuum (analyze) "+table); err != nil {
			return err
		}
	}
	fmt.Printf("vacuumed in %s\n", time.Since(began).Round(time.Second))
	if err := m.sizes(ctx, conn); err != nil {
		return err
	}
	fmt.Printf("\n| question | found | first ms | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|---|\n")
	for _, q := range m.questions() {
		if err := m.measure(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", q.name, err)
		}
	}
	return nil
}

// measure prints the first answer's time, when nothing has been read for this kind yet, and how the others are spread.
func (m *measurement) measure(ctx context.Context, q question) error {
	var took []time.Duration
	var first time.Duration
	found, tooLong := 0, 0
	for round := range m.rounds {
		drawn, err := m.draw(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		n, err := q.ask(ctx, drawn)
		took = append(took, time.Since(began))
		if errors.Is(err, ledger.ErrTooLong) {
			tooLong++
		} else if err != nil {
			return err
		}
		if round == 0 {
			first = took[0]
		}
		found += n
	}
	slices.Sort(took)
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }
	note := ""
	if tooLong > 0 {
		note = fmt.Sprintf(" (%d ended by the timeout)", tooLong)
	}
	fmt.Printf("| %s%s | %.0f | %s | %s | %s | %s |\n", q.name, note, float64(found)/float64(m.rounds), ms(first), ms(took[len(took)/2]), ms(took[len(took)*99/100]), ms(took[len(took)-1]))
	return nil
}

// draw picks a notification at random.
func (m *measurement) draw(ctx context.Context) (*notification.Notification, error) {
	at := m.plan.At(1 + rand.IntN(m.rows-1))
	list, _, err := m.ledger.List(ctx, ledger.Filter{To: at}, 1, ledger.Cursor{})
	if err == nil && len(list) == 0 {
		err = errors.New("draw a notification: nothing there")
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

func (m *measurement) questions() []question {
	type states = []notification.State
	dead := states{notification.StateDead}
	waiting := states{notification.StateAccepted, notification.StateRetrying, notification.StateHeld}
	span := func(n *notification.Notification, f ledger.Filter) ledger.Filter {
		f.From, f.To = n.AcceptedAt.Add(-12*time.Hour), n.AcceptedAt.Add(12*time.Hour)
		return f
	}
	type made = func(n *notification.Notification) ledger.Filter
	fixed := func(f ledger.Filter) made { return func(*notification.Notification) ledger.Filter { return f } }
	var out []question
	for _, c := range []struct {
		name   string
		filter made
	}{
		{"everything", fixed(ledger.Filter{})},
		{"id", func(n *notification.Notification) ledger.Filter { return ledger.Filter{ID: n.ID} }},
		{"request id of a source", func(n *notification.Notification) ledger.Filter {
			return ledger.Filter{RequestID: n.RequestID, Source: n.Source}
		}},
		{"request id", func(n *notification.Notification) ledger.Filter { return ledger.Filter{RequestID: n.RequestID} }},
		{"order", func(n *notification.Notification) ledger.Filter { return ledger.Filter{OrderID: n.OrderID} }},
		{"merchant", func(n *notification.Notification) ledger.Filter { return ledger.Filter{MerchantID: n.MerchantID} }},
		{"merchant, a day", func(n *notification.Notification) ledger.Filter {
			return span(n, ledger.Filter{MerchantID: n.MerchantID})
		}},
		{"dead", fixed(ledger.Filter{States: dead})},
		{"canceled", fixed(ledger.Filter{States: states{notification.StateCanceled}})},
		{"waiting", fixed(ledger.Filter{States: waiting})},
		{"delivered", fixed(ledger.Filter{States: states{notification.StateDelivered}})},
		{"reason", func(n *notification.Notification) ledger.Filter { return ledger.Filter{Reason: n.Reason} }},
		{"reason of 20", fixed(ledger.Filter{Reason: fill.RareReason})},
		{"reason that nothing has", fixed(ledger.Filter{Reason: notification.ReasonDNSFailure})},
		{"batch", func(n *notification.Notification) ledger.Filter { return ledger.Filter{BatchID: n.BatchID} }},
		{"source", func(n *notification.Notification) ledger.Filter { return ledger.Filter{Source: n.Source} }},
		{"source of 20", fixed(ledger.Filter{Source: fill.RareSource})},
		{"no such source", fixed(ledger.Filter{Source: "none"})},
		{"scene", func(n *notification.Notification) ledger.Filter { return ledger.Filter{Scene: n.Scene} }},
		{"scene of 20", fixed(ledger.Filter{Scene: fill.RareScene})},
		{"no such scene", fixed(ledger.Filter{Scene: "none"})},
		{"merchant, dead", func(n *notification.Notification) ledger.Filter {
			return ledger.Filter{MerchantID: n.MerchantID, States: dead}
		}},
		{"merchant without failures, dead", fixed(ledger.Filter{MerchantID: fill.Unfailing, States: dead})},
		{"merchant, waiting", func(n *notification.Notification) ledger.Filter {
			return ledger.Filter{MerchantID: n.MerchantID, States: waiting}
		}},
		{"merchant, reason, a day", func(n *notification.Notification) ledger.Filter {
			return span(n, ledger.Filter{MerchantID: n.MerchantID, Reason: notification.ReasonScheduleExhausted})
		}},
		{"merchant without failures, reason", fixed(ledger.Filter{MerchantID: fill.Unfailing, Reason: notification.ReasonHTTPServerError})},
		{"source, reason", func(n *notification.Notification) ledger.Filter {
			return ledger.Filter{Source: n.Source, Reason: notification.ReasonGone}
		}},
		{"source, dead", func(n *notification.Notification) ledger.Filter {
			return ledger.Filter{Source: n.Source, States: dead}
		}},
		{"source, merchant", func(n *notification.Notification) ledger.Filter {
			return ledger.Filter{Source: n.Source, MerchantID: n.MerchantID}
		}},
		{"large merchant, no such source", fixed(ledger.Filter{Source: "none-of-its", MerchantID: "merchant-0000"})},
		{"largest source, scene of 20", fixed(ledger.Filter{Source: "source-00", Scene: fill.RareScene})},
		{"scene, merchant, a day", func(n *notification.Notification) ledger.Filter {
			return span(n, ledger.Filter{Scene: n.Scene, MerchantID: n.MerchantID})
		}},
		{"batch of 100,000, dead", fixed(ledger.Filter{BatchID: "payday-0", States: dead})},
		{"batch of 100,000, accepted", fixed(ledger.Filter{BatchID: "payday-0", States: states{notification.StateAccepted}})},
	} {
		out = append(out, m.lists(c.name, c.filter)...)
	}
	return append(out, m.others()...)
}

// lists asks for the first page of a filter, and for one that starts at a random place.
func (m *measurement) lists(name string, filter func(*notification.Notification) ledger.Filter) []question {
	ask := func(after bool) func(context.Context, *notification.Notification) (int, error) {
		return func(ctx context.Context, n *notification.Notification) (int, error) {
			cursor := ledger.Cursor{}
			if after {
				cursor = ledger.Cursor{AcceptedAt: n.AcceptedAt.Add(time.Microsecond)}
			}
			f := filter(n)
			if f.BatchID == "" && name == "batch" {
				f.BatchID = fmt.Sprint("batch-", rand.IntN(max(m.rows/5000, 1)))
			}
			list, _, err := m.ledger.List(ctx, f, page, cursor)
			return len(list), err
		}
	}
	out := []question{{name, ask(false)}}
	if !strings.Contains(name, "id") || name == "merchant" {
		out = append(out, question{name + "; later page", ask(true)})
	}
	return out
}

func (m *measurement) others() []question {
	now := time.Now()
	return []question{
		{"GetNotification", func(ctx context.Context, n *notification.Notification) (int, error) {
			_, attempts, err := m.ledger.Find(ctx, n.ID)
			return len(attempts), err
		}},
		{"GetBatch of 500", func(ctx context.Context, _ *notification.Notification) (int, error) {
			b, err := m.ledger.Batch(ctx, fmt.Sprint("batch-", rand.IntN(max(m.rows/5000, 1))), "")
			if errors.Is(err, ledger.ErrNotFound) { // its place is a large batch's
				return 0, nil
			} else if err != nil {
				return 0, err
			}
			return int(b.Accepted), nil
		}},
		{"GetBatch of 100,000", func(ctx context.Context, _ *notification.Notification) (int, error) {
			b, err := m.ledger.Batch(ctx, fmt.Sprint("payday-", rand.IntN(max(m.rows/1_000_000, 1))), "")
			if err != nil {
				return 0, err
			}
			return int(b.Accepted), nil
		}},
		{"sweep: feed 500", func(ctx context.Context, _ *notification.Notification) (int, error) {
			list, err := m.ledger.Feed(ctx, now.Add(20*time.Hour), 500)
			return len(list), err
		}},
		{"sweep: rescue 500", func(ctx context.Context, _ *notification.Notification) (int, error) {
			list, err := m.ledger.Rescue(ctx, now, now, 500)
			return len(list), err
		}},
	}
}

// sizes prints what each kind of index takes.
func (m *measurement) sizes(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `select p.relname, sum(pg_relation_size(i.inhrelid))::bigint, (sum(pg_relation_size(i.inhrelid)) / $1)::float8
		from pg_index x join pg_class p on p.oid = x.indexrelid join pg_inherits i on i.inhparent = p.oid
		where p.relkind = 'I' group by 1 order by 2 desc`, m.rows)
	if err != nil {
		return err
	}
	var name string
	var bytes int64
	var each float64
	fmt.Printf("\n| index | MiB | bytes for each row |\n|---|---|---|\n")
	_, err = pgx.ForEachRow(rows, []any{&name, &bytes, &each}, func() error {
		fmt.Printf("| %s | %d | %.1f |\n", name, bytes>>20, each)
		return nil
	})
	return err
}
