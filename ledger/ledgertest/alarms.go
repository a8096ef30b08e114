package ledgertest

import (
	"time"

	"notifyd/ledger"
)

func alarms(f *fixture) {
	ctx := f.Context()
	alarm := func(name, subject, node string, raised time.Duration) ledger.Alarm {
		at := Start.Add(raised)
		return ledger.Alarm{Name: name, Subject: subject, Node: node, Severity: "warning", Detail: "since " + raised.String(), RaisedAt: at, SeenAt: at}
	}
	read := func(list []ledger.Alarm, err error) []ledger.Alarm {
		f.Helper()
		f.must(err)
		return list
	}
	f.same("nothing", read(f.OpenAlarms(ctx, "a")), []ledger.Alarm(nil))
	f.must(f.PutAlarms(ctx, nil))

	failing, lagging, other := alarm("merchant_failing", "m-1", "a", 2*time.Second), alarm("ledger_lagging", "", "a", time.Second), alarm("ledger_lagging", "", "b", time.Second)
	f.must(f.PutAlarms(ctx, []ledger.Alarm{failing, lagging, other}))
	f.same("open, oldest first", read(f.OpenAlarms(ctx, "a")), []ledger.Alarm{lagging, failing})
	f.same("open of another node", read(f.OpenAlarms(ctx, "b")), []ledger.Alarm{other})

	seen := lagging
	seen.SeenAt, seen.Detail = Start.Add(time.Minute), "still"
	f.must(f.PutAlarms(ctx, []ledger.Alarm{seen}))
	f.must(f.PutAlarms(ctx, []ledger.Alarm{lagging})) // what was written before comes again
	f.same("seen again", read(f.OpenAlarms(ctx, "a")), []ledger.Alarm{seen, failing})

	cleared := seen
	cleared.ClearedAt = Start.Add(2 * time.Minute)
	again := alarm("ledger_lagging", "", "a", 3*time.Minute)
	f.must(f.PutAlarms(ctx, []ledger.Alarm{again, cleared})) // in any order
	f.must(f.PutAlarms(ctx, []ledger.Alarm{seen}))
	f.same("cleared stays cleared", read(f.OpenAlarms(ctx, "a")), []ledger.Alarm{failing, again})
	f.same("recent", read(f.RecentAlarms(ctx, 3)), []ledger.Alarm{again, failing, other})
	f.same("all", read(f.RecentAlarms(ctx, 10)), []ledger.Alarm{again, failing, other, cleared})
}

// overdue counts what is late and in nobody's hands.
func overdue(f *fixture) {
	late := f.accept(Tried(Plain(1, Start), Start, Start.Add(time.Second)))
	f.accept(Tried(Plain(2, Start), Start, Start.Add(5*time.Second)))
	claimed := f.accept(Tried(Plain(3, Start), Start, Start.Add(time.Second)))
	f.claim(claimed, Start.Add(time.Minute))
	o, err := f.Overdue(f.Context(), Start.Add(2*time.Second))
	f.must(err)
	f.same("overdue", o, ledger.Overdue{Notifications: 1, Oldest: late.NextAt})
	o, err = f.Overdue(f.Context(), Start)
	f.must(err)
	f.same("nothing overdue", o, ledger.Overdue{})
	f.clock.advance(2 * time.Minute)
	o, err = f.Overdue(f.Context(), Start.Add(2*time.Second))
	f.must(err)
	f.same("a claim that lapsed", o.Notifications, 2)
}
