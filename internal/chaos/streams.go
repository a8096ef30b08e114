package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/cluster"
	"notifyd/internal/scenario"
	"notifyd/notification/envelope"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// streamless is a node whose streams are deleted behind its back.
type streamless struct {
	*Run
	tb  testing.TB
	ctx context.Context //nolint:containedctx // of the test
	js  jetstream.JetStream
	to  *scenario.Merchant
}

// LoseStreams deletes each of the engine's streams by hand: the engine makes them again, what has a row is told, once, and
// the proof names whatever had none.
func LoseStreams(tb testing.TB, cfg Config) {
	tb.Helper()
	cfg.Nodes = 1
	ctx, cancel := bounded(tb, 3*time.Minute)
	defer cancel()
	s := &streamless{Run: &Run{World: NewWorld(tb, cfg), History: NewHistory(), tb: tb, cfg: cfg}, tb: tb, ctx: ctx, to: scenario.NewMerchant(tb)}
	s.Random, s.js = rand.New(rand.NewPCG(cfg.Seed, 0)), s.NATS[0].Connect(tb)
	n := s.Nodes[0]
	n.adopt(n.Launch(tb, []string{"--roles=intake,ledger"})) // nobody sends yet
	if n.Engine() == nil {
		tb.Fatal("the intake did not start")
	}
	s.put("in-ledger", notifydv1.Persist_PERSIST_LEDGER)
	s.put("in-stream", notifydv1.Persist_PERSIST_STREAM)

	told, gone := s.submit("in-ledger", "before"), s.submit("in-stream", "before")
	s.drop(envelope.NotifyStream)
	told = append(told, s.submit("in-stream", "after")...) // which nothing but a row can take now
	s.awaitStream(envelope.NotifyStream)
	n.Stop(tb)
	if err := n.Start(tb); err != nil {
		tb.Fatal(err)
	}
	s.awaitTold("what the shards had and the ledger has", told)
	s.awaitMissing(gone, len(told))

	s.to.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		if seen.Attempt == "1" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	retried := s.submit("in-stream", "retried")
	s.within("the retries are scheduled", func() bool { return s.inState(retried, notifydv1.State_STATE_RETRYING) })
	for i := range envelope.RetryStreams {
		s.drop(envelope.RetryStream(i))
	}
	s.awaitTold("what the delay window had", retried)
	s.to.AnswerStatus(http.StatusOK)
	for i := range envelope.RetryStreams {
		s.awaitStream(envelope.RetryStream(i))
	}

	s.pause(true)
	resting := s.submit("in-stream", "resting")
	s.within("they rest in their merchant's own queue", func() bool { return s.messages(envelope.MerchantStream) == len(resting) })
	s.drop(envelope.MerchantStream)
	s.pause(false)
	s.awaitTold("what the own queue had", resting)
	s.awaitStream(envelope.MerchantStream)

	s.drop(envelope.SpillStream, envelope.ReservedStream, "KV_"+cluster.Bucket)
	s.awaitStream(envelope.SpillStream)
	s.awaitStream(envelope.ReservedStream)
	s.awaitStream("KV_" + cluster.Bucket)
	s.awaitTold("what comes afterwards", s.submit("in-ledger", "afterwards"))
	s.awaitMissing(gone, len(told)+len(retried)+len(resting)+each)

	requests := s.to.Count()
	for id, count := range requests {
		want := 1
		switch {
		case slices.Contains(gone, id):
			tb.Errorf("%s: taken away, and sent", id)
		case slices.Contains(retried, id):
			want = 2
		}
		if count != want {
			tb.Errorf("%s: %d requests, want %d", id, count, want)
		}
	}
}

func (s *streamless) put(merchant string, persist notifydv1.Persist) {
	s.tb.Helper()
	m := &notifydv1.Merchant{Id: merchant, Name: merchant, NotifyUrl: s.to.URL, Persist: persist, Schedule: &notifydv1.Schedule{Gaps: []*durationpb.Duration{durationpb.New(8 * time.Second), durationpb.New(time.Minute)}}}
	if _, err := s.Nodes[0].Engine().Merchants.PutMerchant(s.ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *streamless) pause(pause bool) {
	s.tb.Helper()
	merchants, err := s.Nodes[0].Engine().Merchants, error(nil)
	if pause {
		_, err = merchants.PauseMerchant(s.ctx, connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: "in-stream"}))
	} else {
		_, err = merchants.ResumeMerchant(s.ctx, connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: "in-stream"}))
	}
	if err != nil {
		s.tb.Fatal(err)
	}
}

// each is how many notifications rest in each stream.
const each = 3

// submit submits some, which must be accepted, and returns their ids.
func (s *streamless) submit(merchant, request string) (ids []string) {
	s.tb.Helper()
	for i := range each {
		request := fmt.Sprintf("%s-%s-%d", merchant, request, i)
		draft := &notifydv1.Notification{Source: source, RequestId: request, MerchantId: merchant, Scene: "payout", EventType: "payment.succeeded", OrderId: request, OrderStatus: "SUCCESS", Terminal: true, Payload: `{}`}
		res, err := s.Nodes[0].Engine().Notifications.Submit(s.ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: draft}))
		if err != nil {
			s.tb.Fatalf("submit %s: %v", request, err)
		}
		ids = append(ids, res.Msg.Id)
	}
	return ids
}

func (s *streamless) drop(streams ...string) {
	s.tb.Helper()
	for _, stream := range streams {
		if err := s.js.DeleteStream(s.ctx, stream); err != nil {
			s.tb.Fatalf("delete stream %s: %v", stream, err)
		}
	}
}

func (s *streamless) messages(stream string) int {
	found, err := s.js.Stream(s.ctx, stream)
	if err != nil {
		return 0
	}
	return int(found.CachedInfo().State.Msgs)
}

func (s *streamless) awaitStream(stream string) {
	s.tb.Helper()
	s.within(stream+" is there again", func() bool {
		_, err := s.js.Stream(s.ctx, stream)
		return !errors.Is(err, jetstream.ErrStreamNotFound)
	})
}

func (s *streamless) within(what string, holds func() bool) {
	s.tb.Helper()
	scenario.Within(s.tb, 40*time.Second, what, holds)
}

func (s *streamless) inState(ids []string, state notifydv1.State) bool {
	return !slices.ContainsFunc(ids, func(id string) bool {
		res, err := s.Nodes[0].Engine().Notifications.GetNotification(s.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
		return err != nil || res.Msg.Notification.State != state
	})
}

func (s *streamless) awaitTold(what string, ids []string) {
	s.tb.Helper()
	began := time.Now()
	s.within(what+" is told", func() bool { return s.inState(ids, notifydv1.State_STATE_DELIVERED) })
	s.tb.Logf("%s is told after %s", what, time.Since(began).Round(time.Millisecond))
}

// awaitMissing waits until the proof names these, and these alone.
func (s *streamless) awaitMissing(ids []string, delivered int) {
	s.tb.Helper()
	slices.Sort(ids)
	var proof *notifydv1.ProveResponse
	var err error
	defer func() {
		if s.tb.Failed() {
			s.tb.Logf("missing are %v; the last proof: %v, %v", ids, proof, err)
		}
	}()
	s.within("the proof names what is lost, and nothing else", func() bool {
		if proof, err = s.Prove(s.ctx); err != nil {
			return false
		}
		slices.Sort(proof.MissingIds)
		return slices.Equal(proof.MissingIds, ids) && proof.Final["delivered"] == int64(delivered)
	})
}
