package main_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/envelope"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// openWorld is an engine on stores that the test can reach behind its back.
type openWorld struct {
	*world
	binary *scenario.Binary
	args   []string
	dir    string
	js     jetstream.JetStream
	db     *pgx.Conn
}

func startOpen(t *testing.T, env ...string) *openWorld {
	t.Helper()
	cfg := chaosConfig(t)
	dir := scenario.DataDir(t)
	nats, postgres := cfg.NATS.Start(t, filepath.Join(dir, "nats"), nil), scenario.StartPostgres(t, filepath.Join(dir, "pg"))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	key, file := filepath.Join(dir, "master.key"), filepath.Join(dir, "node.yaml")
	if out, err := exec.CommandContext(ctx, cfg.Engine.Path(), "keygen", "master", key).CombinedOutput(); err != nil {
		t.Fatalf("keygen master: %v: %s", err, out)
	}
	text := fmt.Sprintf(`
drain_notice: 0s
callers: {required: false}
egress: {allowed_networks: [127.0.0.0/8]}
nats: {url: %q, user: %s, password: %s}
postgres: {url: %q}
ledger: {master_key_file: %q}
`, nats.URL(), scenario.NATSUser, scenario.NATSPassword, postgres.URL, key)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &openWorld{world: &world{t: t, ctx: ctx}, binary: cfg.Engine, args: []string{"--config=" + file, "--set=retry.sweep_every=500ms"}, dir: filepath.Join(dir, "node"), js: nats.Connect(t)}
	var err error
	if o.db, err = pgx.Connect(ctx, postgres.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.db.Close(context.WithoutCancel(ctx)) })
	o.run(env...)
	return o
}

// run starts the engine, also again.
func (o *openWorld) run(env ...string) {
	o.t.Helper()
	o.Engine = o.binary.With(env...).Logging(o.dir+".log").Serve(o.t, o.dir, o.args...)
}

func (o *openWorld) publish(subject string, data []byte) {
	o.t.Helper()
	if _, err := o.js.Publish(o.ctx, subject, data); err != nil {
		o.t.Fatalf("publish to %s: %v", subject, err)
	}
}

func (o *openWorld) exec(sql string, args ...any) {
	o.t.Helper()
	if _, err := o.db.Exec(o.ctx, sql, args...); err != nil {
		o.t.Fatalf("%s: %v", sql, err)
	}
}

// work is a notification to the merchant shop as the lane stores it, with its reservation.
func (o *openWorld) work(request, url string) notification.Work {
	o.t.Helper()
	at := time.Now().UTC().Truncate(time.Microsecond)
	n := &notification.Notification{
		Source: "pay-core", RequestID: request, MerchantID: "shop", Scene: "payout", EventType: "payment.succeeded", OrderID: request,
		NotifyURL: url, Body: []byte(`{}`), ContentType: "application/json", AcceptedAt: at, Origin: "submit",
		Route: notification.Route{Lane: notification.LaneAsync, IsolationKey: "shop", Egress: "direct", Persist: notification.PersistStream, Rule: "default"},
	}
	n.State, n.Reason, n.Generation, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, 1, at
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	o.exec(`insert into reservations (id, digest, accepted_at, answered) values ($1, $2, $3, true)`, [16]byte(n.ID), n.Digest[:], at)
	return notification.Work{Notification: n, Trigger: notification.TriggerAuto}
}

// publishWorks stores one envelope in the shard of its first member.
func (o *openWorld) publishWorks(works ...notification.Work) {
	o.t.Helper()
	data, err := envelope.Encode(works)
	if err != nil {
		o.t.Fatal(err)
	}
	o.publish(envelope.NotifySubject(notification.ShardOf(works[0].Route.IsolationKey)), data)
}

// shows reports whether the metrics have a line.
func (o *openWorld) shows(line string) bool {
	o.t.Helper()
	res, err := http.Get(strings.TrimSuffix(o.Admin, "/readyz") + "/metrics")
	if err != nil {
		return false
	}
	defer res.Body.Close()
	page, _ := io.ReadAll(res.Body)
	return strings.Contains(string(page), "\n"+line+"\n")
}

func (o *openWorld) untilShown(line string) {
	o.t.Helper()
	scenario.Within(o.t, 30*time.Second, "metrics show "+line, func() bool { return o.shows(line) })
}

// deliversNow submits a neighbour and waits until it is delivered.
func (o *openWorld) deliversNow(merchant, request string) {
	o.t.Helper()
	o.until(o.submit(draft(merchant, "payout", request)).Id, notifydv1.State_STATE_DELIVERED)
}

// What nobody can read is set aside once, wherever it lies, and stands in nobody's way.
func TestPoisonedMessages(t *testing.T) {
	t.Parallel()
	o := startOpen(t)
	m := scenario.NewMerchant(t)
	o.merchant("shop", m.URL, nil)
	shard := notification.ShardOf("shop")
	o.deliversNow("shop", "before")
	garbage := []byte{0xff, 0x00, 'g', 'a', 'r', 'b', 'a', 'g', 'e'}
	id := (&notification.Notification{Source: "nobody", RequestID: "garbage"}).DeriveID()
	for _, subject := range []string{
		envelope.NotifySubject(shard), envelope.DueSubject(shard), envelope.OwnQueueSubject("shop"), envelope.SpillSubject(id), envelope.ReservedSubject(id),
	} {
		o.publish(subject, garbage)
	}
	// Between two that can be read, one of which a request cannot be made and one that Postgres refuses.
	first, bad, refused, last := o.work("first", m.URL), o.work("no request", "http://[::1"), o.work("refused", m.URL), o.work("last", m.URL)
	refused.OrderStatus = "\x00"
	o.publishWorks(first, bad, refused, last)

	o.untilShown(`notifyd_queue_depth{place="undecodable"} 5`)
	o.untilShown(`notifyd_set_aside_total 5`)
	o.untilShown(`notifyd_ledger_quarantined_total 1`)
	for _, w := range []notification.Work{first, last} {
		o.until(w.ID.String(), notifydv1.State_STATE_DELIVERED)
	}
	dead := o.until(bad.ID.String(), notifydv1.State_STATE_DEAD)
	if len(dead.Attempts) != 1 || dead.Attempts[0].Reason != string(notification.ReasonBadNotifyURL) {
		t.Errorf("of which no request can be made: %v", dead)
	}
	o.deliversNow("shop", "after")
	proof := o.prove()
	if proof.Missing != 0 || proof.Waiting["quarantine"] != 1 || proof.Final["dead"] != 1 {
		t.Errorf("proof: %v", proof)
	}
	o.Stop(t)
	o.run()
	o.deliversNow("shop", "after a restart")
	o.untilShown(`notifyd_queue_depth{place="undecodable"} 5`)
	if n := m.Count()[refused.ID.String()]; n != 1 {
		t.Errorf("what Postgres refuses was sent %d times", n)
	}
	o.Stop(t)
}

// A merchant that is gone is a reason to end, once.
func TestMerchantDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	o := startOpen(t)
	m := scenario.NewMerchant(t)
	o.merchant("gone", m.URL, nil)
	o.merchant("stays", m.URL, nil)
	o.pause("gone")
	id := o.submit(draft("gone", "payout", "waits")).Id
	scenario.Within(t, 30*time.Second, "it waits in its own queue", func() bool {
		return o.get(id).Notification.StateReason == string(notification.ReasonMerchantPaused)
	})
	o.Stop(t)
	o.exec(`delete from merchants where id = 'gone'`)
	o.run()
	dead := o.until(id, notifydv1.State_STATE_DEAD)
	if dead.Notification.StateReason != string(notification.ReasonMerchantMissing) || len(dead.Attempts) != 0 {
		t.Errorf("%v", dead)
	}
	o.deliversNow("stays", "neighbour")
	scenario.Within(t, 30*time.Second, "the proof finds both final", func() bool {
		proof := o.prove()
		return proof.Missing == 0 && len(proof.Waiting) == 0 && proof.Final["dead"] == 1 && proof.Final["delivered"] == 1
	})
	o.Stop(t)
}

// A bug ends the attempt that it is in, on record, and nothing else: not its neighbours, and not for ever.
func TestPanicIsContained(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"send.before", "classify.after"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			o := startOpen(t, "NOTIFYD_FAULTS="+point+"=panic@3")
			m := scenario.NewMerchant(t)
			o.merchant("shop", m.URL, nil)
			var ids []string
			for i := range 8 {
				ids = append(ids, o.submit(draft("shop", "payout", fmt.Sprintf("%s-%d", point, i))).Id)
			}
			hit := 0
			for _, id := range ids {
				var last *notifydv1.GetNotificationResponse
				scenario.Within(t, 60*time.Second, id+" is told", func() bool {
					last = o.get(id)
					return last.Notification.State == notifydv1.State_STATE_DELIVERED || last.Notification.State == notifydv1.State_STATE_DEAD
				})
				if first := last.Attempts[0]; first.Reason == string(notification.ReasonInternal) {
					hit++
					if !strings.Contains(first.Detail, "panic") || len(last.Attempts) > 2 {
						t.Errorf("%v", last)
					}
				} else if len(last.Attempts) != 1 {
					t.Errorf("a neighbour was hurt: %v", last)
				}
			}
			if hit != 1 {
				t.Errorf("%d were hit", hit)
			}
			o.untilShown(`notifyd_panics_total{place="attempt"} 1`)
			o.Stop(t)
		})
	}
}
