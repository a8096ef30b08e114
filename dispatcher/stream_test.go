package dispatcher

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sdk "notifyd/client"
	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/source"
	synclane "notifyd/sync"
)

type submitStream = connect.BidiStreamForClient[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]

// open opens a stream and reads its greeting.
func (c client) open(t *testing.T) (*submitStream, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	call := c.notifications.SubmitStream(ctx)
	t.Cleanup(func() {
		cancel()
		_, _ = call.CloseRequest(), call.CloseResponse()
	})
	if err := call.Send(nil); err != nil {
		return nil, err
	}
	hello, err := call.Receive()
	if err == nil && len(hello.Results) != 0 {
		t.Errorf("the greeting is %v", hello)
	}
	return call, err
}

func streamed(number uint64, p *notifydv1.Notification) *notifydv1.StreamedNotification {
	return &notifydv1.StreamedNotification{Number: number, Notification: p}
}

func send(t *testing.T, call *submitStream, items ...*notifydv1.StreamedNotification) {
	t.Helper()
	must(t, call.Send(&notifydv1.SubmitStreamRequest{Notifications: items}))
}

// answers reads until there are so many, by number.
func answers(t *testing.T, call *submitStream, n int) map[uint64]*notifydv1.SubmitResult {
	t.Helper()
	out := map[uint64]*notifydv1.SubmitResult{}
	for len(out) < n {
		msg, err := call.Receive()
		must(t, err)
		for _, r := range msg.Results {
			if out[r.Number] != nil {
				t.Errorf("%d is answered twice", r.Number)
			}
			out[r.Number] = r.Result
		}
	}
	return out
}

// askingLane is a sync lane whose merchants answer as ask does.
type askingLane struct {
	ask func(ctx context.Context, w notification.Work) (synclane.Answer, error)
}

func (askingLane) Enter(string) (*synclane.Place, error) { return &synclane.Place{}, nil }

func (l askingLane) Ask(ctx context.Context, _ *synclane.Place, w notification.Work, _ time.Time) (synclane.Answer, error) {
	return l.ask(ctx, w)
}

func delivered(w notification.Work) synclane.Answer {
	n := *w.Notification
	n.State = notification.StateDelivered
	return synclane.Answer{Verdict: notification.Verdict{After: &n}}
}

// Whoever may submit may stream, in each protocol; whoever signs may not, and is told what to do.
func TestStreamByWhomAndHow(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, signing := f.pay(t)
	for protocol, opts := range protocols {
		for who, c := range map[string]struct {
			prove prover
			told  string
		}{
			"api key":  {bearer(api.Reveal()), ""},
			"operator": {bearer(operatorKey), ""},
			"nobody":   {nobody, "no credential"},
			"no key":   {bearer("nk_x"), "the credential is not valid"},
			"signing": {func(req *http.Request) error {
				value, err := signing.SignRequest(req.Method, req.URL.EscapedPath(), nil, f.clock.now())
				req.Header.Set("Authorization", value)
				return err
			}, "a stream needs an API key or a certificate"},
		} {
			call, err := f.client(t, c.prove, opts...).open(t)
			if c.told != "" {
				wantError(t, protocol+", "+who, err, connect.CodeUnauthenticated, c.told, "")
				continue
			}
			must(t, err)
			send(t, call, streamed(7, payment(protocol+who, final)), streamed(8, payment(protocol+who, final, from("other"))))
			got := answers(t, call, 2)
			if got[7].GetResponse().GetState() != notifydv1.State_STATE_ACCEPTED {
				t.Errorf("%s, %s: %v", protocol, who, got)
			}
			if refused := got[8].GetError().GetCode() == "permission_denied"; refused != (who == "api key") {
				t.Errorf("%s, %s: another source's: %v", protocol, who, got[8])
			}
			must(t, call.CloseRequest())
			if _, err := call.Receive(); !errors.Is(err, io.EOF) {
				t.Errorf("%s, %s: it ends with %v", protocol, who, err)
			}
		}
	}
}

func TestStreamByCertificate(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"m"}, Certificates: []string{"dns:pay.example"}})
	ours := newAuthority(t)
	transport := ours.transport(t, func(c *x509.Certificate) { c.DNSNames = []string{"pay.example"} })
	transport.ForceAttemptHTTP2 = true
	call, err := newClient(t, f.overTLS(t, ours), transport, nobody).open(t)
	must(t, err)
	send(t, call, streamed(1, payment("a", final)))
	answers(t, call, 1)
	f.clock.advance(2 * time.Hour) // the certificate has ended
	_, err = call.Receive()
	wantError(t, "after its end", err, connect.CodeUnauthenticated, "the credential is not valid", "")
}

func TestStreamItemsHaveTheirOwnErrors(t *testing.T) {
	f := newFront(t, CallersConfig{})
	call, err := f.client(t, nobody).open(t)
	must(t, err)
	unary := f.client(t, nobody)
	bad := payment("bad", func(p *notifydv1.Notification) { p.Payload = "{" })
	send(t, call,
		streamed(1, payment("good")), streamed(2, bad), streamed(3, nil), streamed(4, payment("x", to("nobody"))), streamed(5, payment("good")),
		&notifydv1.StreamedNotification{Number: 6, Notification: payment("w"), Wait: durationpb.New(-time.Second)},
		&notifydv1.StreamedNotification{Number: 7, Notification: payment("w"), Wait: &durationpb.Duration{Seconds: 1, Nanos: -1}})
	got := answers(t, call, 7)
	for number, want := range map[uint64]string{2: "invalid_argument", 3: "invalid_argument", 4: "not_found", 6: "invalid_argument", 7: "invalid_argument"} {
		if e := got[number].GetError(); e.GetCode() != want {
			t.Errorf("%d: %v, want %s", number, got[number], want)
		}
	}
	if got[1].GetResponse() == nil || !got[5].GetResponse().GetDuplicate() {
		t.Errorf("%v", got)
	}
	batch, err := unary.notifications.SubmitBatch(t.Context(), connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: []*notifydv1.Notification{bad}}))
	must(t, err)
	if !proto.Equal(batch.Msg.Results[0], got[2]) {
		t.Errorf("a batch says %v, a stream %v", batch.Msg.Results[0], got[2])
	}
	if v := got[6].GetError().GetViolations(); len(v) != 1 || v[0].Field != "wait" || !strings.Contains(v[0].Description, "-1s") {
		t.Errorf("%v", v)
	}
}

func TestStreamSyncLaneHoldsBackNobody(t *testing.T) {
	f := newFront(t, CallersConfig{})
	release, ended := make(chan struct{}), make(chan error, 1)
	f.Connect(&fakeAsync{log: &journal{}}, askingLane{func(ctx context.Context, w notification.Work) (synclane.Answer, error) {
		if w.RequestID == "slow" {
			<-release
			ended <- ctx.Err()
		}
		if w.RequestID == "waits" {
			<-ctx.Done()
			return synclane.Answer{TimedOut: true}, nil
		}
		return delivered(w), nil
	}})
	call, err := f.client(t, nobody).open(t)
	must(t, err)
	asking := func(number uint64, request string) *notifydv1.StreamedNotification {
		return &notifydv1.StreamedNotification{Number: number, Notification: payment(request, scan), AllowSync: true}
	}
	waits := asking(2, "waits")
	waits.Wait = durationpb.New(50 * time.Millisecond)
	send(t, call, asking(1, "slow"), waits, asking(3, "quick"), streamed(4, payment("async")), streamed(5, payment("unasked", scan)))
	got := answers(t, call, 4)
	for number, want := range map[uint64]notifydv1.State{2: notifydv1.State_STATE_ACCEPTED, 3: notifydv1.State_STATE_DELIVERED, 4: notifydv1.State_STATE_ACCEPTED, 5: notifydv1.State_STATE_ACCEPTED} {
		if got[number].GetResponse().GetState() != want {
			t.Errorf("%d: %v", number, got[number])
		}
	}
	if got[2].GetResponse().GetStateReason() != "awaiting_answer" || got[5].GetResponse().GetLane() != notifydv1.Lane_LANE_ASYNC {
		t.Errorf("%v", got)
	}
	must(t, call.CloseRequest()) // and what is under way is answered still
	close(release)
	if got := answers(t, call, 1); got[1].GetResponse().GetState() != notifydv1.State_STATE_DELIVERED {
		t.Errorf("%v", got)
	}
	must(t, <-ended)
}

// Neither the caller's leaving nor its connection's end reaches the merchant's request.
func TestStreamsEndCancelsNothing(t *testing.T) {
	f := newFront(t, CallersConfig{})
	asked, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f.Connect(&fakeAsync{log: &journal{}}, askingLane{func(ctx context.Context, w notification.Work) (synclane.Answer, error) {
		close(asked)
		<-release
		ended <- ctx.Err()
		return delivered(w), nil
	}})
	c := f.client(t, nobody)
	call, err := c.open(t)
	must(t, err)
	send(t, call, &notifydv1.StreamedNotification{Number: 1, Notification: payment("a", scan), AllowSync: true})
	<-asked
	_ = call.CloseResponse()
	c.http.CloseIdleConnections()
	close(release)
	must(t, <-ended)
	scenario.Within(t, 20*time.Second, "the stream is over", func() bool { return f.openStreams() == 0 })
}

func (f *front) openStreams() int {
	f.streams.mu.Lock()
	defer f.streams.mu.Unlock()
	return len(f.streams.open)
}

// heldAsync accepts when it is let.
type heldAsync struct {
	fakeAsync
	release chan struct{}
}

func (a *heldAsync) Accept(_ notification.Work, accepted func(error)) {
	go func() {
		<-a.release
		accepted(nil)
	}()
}

func TestStreamBoundsWhatIsUnanswered(t *testing.T) {
	f := newFront(t, CallersConfig{})
	lane := &heldAsync{release: make(chan struct{})}
	f.Connect(lane, nil)
	_, err := f.memory.PutMerchant(t.Context(), &merchant.Merchant{ID: "plain", NotifyURL: "https://m.test/notify"}, nil)
	must(t, err)
	must(t, f.LearnMerchants(t.Context()))
	call, err := f.client(t, nobody).open(t)
	must(t, err)
	number := uint64(0)
	for range 11 {
		var items []*notifydv1.StreamedNotification
		for range maxStreamed {
			number++
			items = append(items, streamed(number, payment(strconv.FormatUint(number, 10), to("plain"))))
		}
		send(t, call, items...)
	}
	refused := answers(t, call, maxStreamed)
	for number, r := range refused {
		if e := r.GetError(); number <= maxUnanswered || e.GetCode() != "resource_exhausted" || e.GetRetryAfter().AsDuration() <= 0 || !strings.Contains(e.GetMessage(), "10000 notifications of this stream have no answer yet") {
			t.Fatalf("%d: %v", number, r)
		}
	}
	close(lane.release)
	for number, r := range answers(t, call, maxUnanswered) {
		if number > maxUnanswered || r.GetResponse() == nil {
			t.Fatalf("%d: %v", number, r)
		}
	}
	send(t, call, streamed(1, payment("after", to("plain"))))
	if r := answers(t, call, 1)[1]; r.GetResponse() == nil {
		t.Errorf("when there is room again: %v", r)
	}
}

func TestStreamRefusesWhatIsNoMessage(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"*"}, Limits: source.Limits{MaxRequestBytes: 4096}})
	api := f.key(t, "pay", source.KindAPIKey)
	many := make([]*notifydv1.StreamedNotification, maxStreamed+1)
	for i := range many {
		many[i] = &notifydv1.StreamedNotification{}
	}
	long := payment("long", final, func(p *notifydv1.Notification) { p.Payload = `"` + strings.Repeat("a", 5000) + `"` })
	for name, c := range map[string]struct {
		items []*notifydv1.StreamedNotification
		code  connect.Code
		told  string
	}{
		"too many": {many, connect.CodeInvalidArgument, "notifications: has 1001 items: at most 1000 are allowed"},
		"too long": {[]*notifydv1.StreamedNotification{streamed(2, long)}, connect.CodeResourceExhausted, `a message has more than 4096 bytes, the most that source "pay" may send in one`},
	} {
		call, err := f.client(t, bearer(api.Reveal())).open(t)
		must(t, err)
		for i := range 5 { // a stream may be longer than one of its messages
			send(t, call, streamed(1, payment(fmt.Sprint(name, i), final, func(p *notifydv1.Notification) { p.Payload = `"` + strings.Repeat("a", 3000) + `"` })))
			answers(t, call, 1)
		}
		send(t, call, c.items...)
		_, err = call.Receive()
		wantError(t, name, err, c.code, c.told, "")
	}
	for name, junk := range map[string]struct{ bytes, told string }{
		"garbage":           {"\x00\x00\x00\x00\x03\xff\xff\xff", "invalid_argument"},
		"half a message":    {"\x00\x00\x00\x10\x00abc", "canceled"},
		"no message at all": {"GET / HTTP/1.1\r\n", "canceled"},
		"gigabytes":         {"\x00\xff\xff\xff\xff" + strings.Repeat("x", 8192), "resource_exhausted"},
	} {
		answer := f.raw(t, api.Reveal(), strings.NewReader(junk.bytes))
		if !strings.Contains(answer, junk.told) {
			t.Errorf("%s: %q", name, answer)
		}
	}
	scenario.Within(t, 20*time.Second, "no stream is left", func() bool { return f.openStreams() <= 2 }) // those of the cleanups
}

// raw sends a body to a stream and returns what is answered, the greeting included.
func (f *front) raw(t *testing.T, key string, body io.Reader) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+notifydv1connect.NotificationServiceSubmitStreamProcedure, body)
	must(t, err)
	req.Header.Set("Content-Type", "application/connect+proto")
	req.Header.Set("Connect-Protocol-Version", "1")
	prove := nobody
	if key != "" {
		prove = bearer(key)
	}
	c := f.client(t, prove)
	res, err := c.http.Do(req)
	must(t, err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	must(t, err)
	return string(answer)
}

func TestStreamOfARevokedKeyEnds(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	api, _ := f.pay(t)
	call, err := f.client(t, bearer(api.Reveal())).open(t)
	must(t, err)
	send(t, call, streamed(1, payment("a", final)))
	answers(t, call, 1)
	f.put(t, f.sources.Get("pay").WithoutKeys(func(k source.Key) bool { return k.ID == api.KeyID }))
	began := time.Now()
	_, err = call.Receive()
	wantError(t, "a revoked key", err, connect.CodeUnauthenticated, "the credential is not valid", "")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestStreamOfASlowSenderEnds(t *testing.T) {
	f := newFront(t, CallersConfig{})
	idle, err := f.client(t, nobody).open(t)
	must(t, err)
	slow, dripping := io.Pipe()
	answered := make(chan string, 1)
	go func() { answered <- f.raw(t, "", slow) }()
	_, err = dripping.Write([]byte("\x00\x00\x00\x10\x00abc"))
	must(t, err)
	scenario.Within(t, 20*time.Second, "a message is begun", func() bool {
		f.streams.mu.Lock()
		defer f.streams.mu.Unlock()
		begun := 0
		for g := range f.streams.open {
			if g.reading.Load() != 0 {
				begun++
			}
		}
		return begun == 1
	})
	f.clock.advance(streamBound + time.Second)
	if answer := <-answered; !strings.Contains(answer, "a message was begun and not finished within 30s") {
		t.Errorf("%q", answer)
	}
	must(t, dripping.Close())
	send(t, idle, streamed(1, payment("a"))) // it was idle, which is no fault
	answers(t, idle, 1)
}

func TestStreamOfWhoTakesNoAnswersEnds(t *testing.T) {
	f := newFront(t, CallersConfig{})
	base := &http.Transport{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 16, MaxReceiveBufferPerConnection: 1 << 16}}
	base.Protocols.SetUnencryptedHTTP2(true)
	call, err := newClient(t, f.url, base, nobody, connect.WithAcceptCompression("gzip", nil, nil)).open(t)
	must(t, err)
	items := make([]*notifydv1.StreamedNotification, maxStreamed)
	for i := range items {
		items[i] = streamed(uint64(i), nil) // refused, at length
	}
	for range 5 {
		send(t, call, items...)
	}
	last, same := int64(0), 0
	scenario.Within(t, 30*time.Second, "an answer is not taken", func() bool {
		f.streams.mu.Lock()
		defer f.streams.mu.Unlock()
		for g := range f.streams.open {
			if at := g.writing.Load(); at != last || at == 0 {
				last, same = at, 0
			}
		}
		f.clock.advance(time.Microsecond) // so that each send has an instant of its own
		same++
		return same > 100
	})
	f.clock.advance(streamBound + time.Second)
	scenario.Within(t, 20*time.Second, "the stream is over", func() bool { return f.openStreams() == 0 })
	for err == nil {
		_, err = call.Receive()
	}
	if errors.Is(err, io.EOF) {
		t.Error("the stream ended as if all was well")
	}
}

func TestEndStreams(t *testing.T) {
	f := newFront(t, CallersConfig{})
	lane := &heldAsync{release: make(chan struct{})}
	f.Connect(lane, nil)
	c := f.client(t, nobody)
	call, err := c.open(t)
	must(t, err)
	idle, err := c.open(t)
	must(t, err)
	_, err = f.memory.PutMerchant(t.Context(), &merchant.Merchant{ID: "plain", NotifyURL: "https://m.test/notify"}, nil)
	must(t, err)
	must(t, f.LearnMerchants(t.Context()))
	send(t, call, streamed(1, payment("a", to("plain"))))
	scenario.Within(t, 20*time.Second, "it is under way", func() bool {
		rows, _, err := f.memory.Reservations(t.Context(), time.Time{}, f.clock.now().Add(time.Hour), ledger.ProofCursor{}, 10)
		return err == nil && len(rows) == 1
	})
	f.EndStreams()
	if _, err := idle.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("an idle stream ends with %v", err)
	}
	_, err = c.open(t)
	wantError(t, "a new stream", err, connect.CodeUnavailable, "this node is stopping", "")
	_ = call.Send(&notifydv1.SubmitStreamRequest{Notifications: []*notifydv1.StreamedNotification{streamed(2, payment("unread", to("plain")))}})
	close(lane.release)
	if got := answers(t, call, 1); got[1].GetResponse() == nil {
		t.Errorf("%v", got)
	}
	if _, err := call.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("it ends with %v", err)
	}
	if rows, _, err := f.memory.Reservations(t.Context(), time.Time{}, f.clock.now().Add(time.Hour), ledger.ProofCursor{}, 10); err != nil || len(rows) != 1 {
		t.Errorf("what was not read is not accepted: %v, %v", rows, err)
	}
}

// Nodes stop and are lost while callers submit through one client: in the end each notification was accepted, once.
func TestStreamsOverRestarts(t *testing.T) {
	const callers, each = 32, 30
	f := newFront(t, CallersConfig{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	listen := func(n *front, l net.Listener) *httptest.Server {
		s := httptest.NewUnstartedServer(n.handler)
		s.Listener.Close()
		s.Listener, s.Config.Protocols = l, new(http.Protocols)
		s.Config.Protocols.SetHTTP1(true)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		return s
	}
	server := listen(f, listener)
	c, err := sdk.New("http://"+address, sdk.WithRetryWaits(5*time.Millisecond, 50*time.Millisecond))
	must(t, err)
	var done, streamed atomic.Int64
	var all sync.WaitGroup
	for w := range callers {
		all.Go(func() {
			for i := range each {
				if _, err := c.Submit(t.Context(), payment(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Errorf("%d-%d: %v", w, i, err)
				}
				done.Add(1)
				streamed.Add(int64(c.Stats().Streams))
			}
		})
	}
	node := f
	for restart := range 4 {
		scenario.Within(t, 30*time.Second, "some are through", func() bool { return done.Load() >= int64(callers*each*(restart+1)/6) })
		server.Listener.Close()
		if restart%2 == 0 { // it stops; else it is lost
			node.EndStreams()
			must(t, server.Config.Shutdown(t.Context()))
		}
		server.CloseClientConnections()
		node = newNode(t, CallersConfig{}, f.memory, f.clock)
		again, err := net.Listen("tcp", address)
		must(t, err)
		server = listen(node, again)
		t.Cleanup(server.Close)
	}
	all.Wait()
	must(t, c.Close(t.Context()))
	rows, _, err := f.memory.Reservations(t.Context(), time.Time{}, f.clock.now().Add(time.Hour), ledger.ProofCursor{}, 2*callers*each)
	must(t, err)
	if len(rows) != callers*each {
		t.Errorf("%d of %d were accepted", len(rows), callers*each)
	}
	if streamed.Load() == 0 {
		t.Error("no stream was ever open")
	}
}
