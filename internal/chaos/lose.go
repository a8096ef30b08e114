package chaos

import (
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/scenario"
	"notifyd/notification/envelope"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// Lose takes an accepted notification out of its stream behind the engine's back, before anybody opened it, and checks
// that the proof names it, and it alone.
func Lose(tb testing.TB, cfg Config) {
	tb.Helper()
	r := &Run{World: NewWorld(tb, cfg), History: NewHistory(), Seed: cfg.Seed, Random: rand.New(rand.NewPCG(cfg.Seed, 0)), tb: tb, cfg: cfg}
	settings := play(tb, r.History)
	n := r.Nodes[0]
	intake := n.Launch(tb, []string{"--roles=intake,ledger"})
	n.adopt(intake)
	if n.Engine() == nil {
		tb.Fatalf("the intake did not start: %s", intake.Output())
	}
	ctx, cancel := bounded(tb, 2*time.Minute)
	defer cancel()
	to := settings[slices.IndexFunc(settings, func(m *notifydv1.Merchant) bool { return m.Persist == notifydv1.Persist_PERSIST_STREAM })]
	if _, err := intake.Merchants.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: to})); err != nil {
		tb.Fatal(err)
	}
	submit := func(request string) string {
		draft := &notifydv1.Notification{Source: source, RequestId: request, MerchantId: to.Id, Scene: "payout", EventType: "payment.succeeded", OrderId: request, OrderStatus: "SUCCESS", Terminal: true, Payload: `{}`}
		r.History.Submitting(idOf(draft), to.Id, sha256.Sum256([]byte(draft.Payload)))
		res, err := intake.Notifications.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: draft}))
		if err != nil {
			tb.Fatal(err)
		}
		r.History.Accepted(res.Msg, time.Now())
		return res.Msg.Id
	}
	stream, err := r.NATS[0].Connect(tb).Stream(ctx, envelope.NotifyStream)
	if err != nil {
		tb.Fatal(err)
	}
	kept := submit("kept")
	lost := submit("lost")
	last, err := stream.Info(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	// Each was an envelope of its own: it was answered before the next was submitted.
	if err := stream.DeleteMsg(ctx, last.State.LastSeq); err != nil {
		tb.Fatal(err)
	}
	var proof *notifydv1.ProveResponse
	tb.Cleanup(func() { tb.Logf("taken away %s, the last proof: %v, %v", lost, proof, err) })
	named := func(delivered int64) func() bool {
		return func() bool {
			proof, err = r.Prove(ctx)
			return err == nil && proof.Missing == 1 && slices.Equal(proof.MissingIds, []string{lost}) && proof.Final["delivered"] == delivered
		}
	}
	// That its caller was answered is on record within seconds of the answer.
	scenario.Within(tb, 30*time.Second, "the proof names what was taken away, and it alone", named(0))
	n.Stop(tb)
	if err := n.Start(tb); err != nil {
		tb.Fatal(err)
	}
	scenario.Within(tb, 30*time.Second, "the other one is delivered, and the proof still names what was taken away", named(1))
	if r.History.Acknowledged(lost) || !r.History.Acknowledged(kept) {
		tb.Error("what was taken away was sent, or the other one was not")
	}
}
