package client_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"notifyd/client"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func TestSubmitFillsTheSourceInItsOwnCopy(t *testing.T) {
	bothWays(t, testSubmitFillsTheSourceInItsOwnCopy)
}

func testSubmitFillsTheSourceInItsOwnCopy(t *testing.T, streamed bool) {
	t.Helper()
	s := &server{streamed: streamed}
	c := s.start(t)
	n := refund(1)
	for _, again := range []bool{false, true} {
		r, err := c.Submit(t.Context(), n)
		if err != nil || r.Id != "ntf_billing_r1" || r.Duplicate != again {
			t.Errorf("%v, %v", r, err)
		}
	}
	n.Source = "own"
	if r, err := c.Submit(t.Context(), n); err != nil || r.Id != "ntf_own_r1" {
		t.Errorf("%v, %v", r, err)
	}
	n.Source = ""
	if _, err := c.Submit(t.Context(), n); err != nil || n.Source != "" {
		t.Errorf("the caller's notification was changed: %v, %v", n, err)
	}
}

func TestConcurrentSubmitsShareCalls(t *testing.T) {
	const callers = 1000
	var inCalls atomic.Int64
	everybodyCame := make(chan struct{})
	s := &server{call: func(_ context.Context, _ int, ns []*client.Notification) error {
		inCalls.Add(int64(len(ns)))
		<-everybodyCame
		return nil
	}}
	c := s.start(t)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			r, err := c.Submit(t.Context(), refund(i))
			if err != nil || r.Id != fmt.Sprintf("ntf_billing_r%d", i) {
				t.Errorf("%d: %v, %v", i, r, err)
			}
		})
	}
	scenario.Within(t, 30*time.Second, "every caller waits for an answer", func() bool { return int(inCalls.Load())+c.Stats().Queued == callers })
	close(everybodyCame)
	all.Wait()
	alone, batches := s.seen()
	t.Logf("%d submissions in %d calls", callers, batches)
	if alone != 0 || batches > 50 || len(s.taken) != callers {
		t.Errorf("%d went alone, %d batches, %d taken", alone, batches, len(s.taken))
	}
}

func TestLingerWaitsForCompany(t *testing.T) {
	s := &server{}
	c := s.start(t, client.WithLinger(time.Hour), client.WithBatch(3, 1<<20))
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			if _, err := c.Submit(t.Context(), refund(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait() // well before the hour is over: the batch is full
	if _, batches := s.seen(); batches != 1 {
		t.Errorf("%d batches", batches)
	}
	late := make(chan error, 1)
	go func() { _, err := c.Submit(t.Context(), refund(3)); late <- err }()
	eventually(t, "one waits for company", func() bool { return c.Stats().Queued == 1 })
	if err := c.Close(t.Context()); err != nil || <-late != nil {
		t.Errorf("nobody else can come, but it was not sent: %v", err)
	}
}

func TestWhoWaitsForTheMerchantGoesAlone(t *testing.T) {
	for name, test := range map[string]struct {
		scene string
		lane  notifydv1.Lane
		alone int
	}{
		"scan":                   {"scan", notifydv1.Lane_LANE_UNSPECIFIED, 1},
		"netbank":                {"netbank", notifydv1.Lane_LANE_UNSPECIFIED, 1},
		"further scene":          {"kiosk", notifydv1.Lane_LANE_UNSPECIFIED, 1},
		"sync lane":              {"refund", notifydv1.Lane_LANE_SYNC, 1},
		"refund":                 {"refund", notifydv1.Lane_LANE_UNSPECIFIED, 0},
		"scan in the async lane": {"scan", notifydv1.Lane_LANE_ASYNC, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{}
			var left time.Duration
			s.call = func(ctx context.Context, _ int, _ []*client.Notification) error {
				deadline, _ := ctx.Deadline()
				left = time.Until(deadline)
				return nil
			}
			c := s.start(t, client.WithSyncScenes("kiosk"))
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			n := refund(1)
			n.Scene, n.Lane = test.scene, test.lane
			if _, err := c.Submit(ctx, n); err != nil {
				t.Fatal(err)
			}
			if alone, batches := s.seen(); alone != test.alone || batches != 1-test.alone {
				t.Errorf("%d alone, %d batches", alone, batches)
			}
			if left <= 0 || left > 3*time.Second {
				t.Errorf("the server believes that the caller waits for %v", left)
			}
		})
	}
}

func TestNeighboursAreAnsweredAtOnce(t *testing.T) { bothWays(t, testNeighboursAreAnsweredAtOnce) }

func testNeighboursAreAnsweredAtOnce(t *testing.T, streamed bool) {
	t.Helper()
	s := &server{streamed: streamed, item: func(n *client.Notification, _ int) error {
		switch n.RequestId {
		case "r1":
			return failed(connect.CodeResourceExhausted, "queue of the merchant is full", time.Hour)
		case "r2":
			return failed(connect.CodeNotFound, `merchant "shop-7": not found`, 0)
		}
		return nil
	}}
	c := s.start(t, client.WithLinger(time.Hour), client.WithBatch(4, 1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	full := make(chan error, 1)
	go func() { _, err := c.Submit(ctx, refund(1)); full <- err }()
	var others sync.WaitGroup
	for i := 2; i <= 4; i++ {
		others.Go(func() {
			if _, err := c.Submit(t.Context(), refund(i)); (connect.CodeNotFound == code(err)) != (i == 2) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	others.Wait()
	eventually(t, "the first waits to be tried again", func() bool { return c.Stats().Retrying == 1 })
	cancel()
	err := <-full
	e := errorOf(t, err)
	if !errors.Is(err, context.Canceled) || e.Uncertain || e.Tries != 1 || !strings.Contains(e.Message, "queue of the merchant is full") {
		t.Errorf("%+v", e)
	}
}

func code(err error) connect.Code {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Code
	}
	return 0
}

func TestWhoLeavesDoesNotStopTheBatch(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := &server{call: func(context.Context, int, []*client.Notification) error { entered <- struct{}{}; <-release; return nil }}
	c := s.start(t, client.WithLinger(time.Hour), client.WithBatch(2, 1<<20), client.WithParallel(1))
	ctx, cancel := context.WithCancel(t.Context())
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { _, err := c.Submit(ctx, refund(1)); left <- err }()
	go func() { _, err := c.Submit(t.Context(), refund(2)); stayed <- err }()
	<-entered
	cancel()
	err := <-left
	if !errors.Is(err, context.Canceled) || !errors.Is(err, client.ErrUncertain) || !strings.Contains(err.Error(), "submitting the same again is safe") {
		t.Errorf("who left heard %v", err)
	}
	waits, cancel := context.WithCancel(t.Context()) // and one that never gets into a batch
	go func() { _, err := c.Submit(waits, refund(3)); left <- err }()
	eventually(t, "it is queued", func() bool { return c.Stats().Queued == 1 })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrUncertain) || errorOf(t, err).Tries != 0 {
		t.Errorf("what was never sent: %v", err)
	}
	close(release)
	if err := <-stayed; err != nil {
		t.Errorf("who stayed heard %v", err)
	}
	if s.taken["r1"] != 1 || s.taken["r3"] != 0 {
		t.Errorf("taken: %v", s.taken)
	}
}

func TestABatchLastsAsLongAsItsMostPatientMember(t *testing.T) {
	for name, test := range map[string]struct {
		patience    time.Duration // of the second; 0: no deadline
		least, most time.Duration
	}{
		"a deadline": {5 * time.Second, 3 * time.Second, 5 * time.Second},
		"none":       {0, 6 * time.Second, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			lasts := make(chan time.Duration, 1)
			short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			s := &server{call: func(ctx context.Context, _ int, _ []*client.Notification) error {
				deadline, _ := ctx.Deadline()
				lasts <- time.Until(deadline)
				<-short.Done() // the impatient one is gone before the answer
				return nil
			}}
			c := s.start(t, client.WithLinger(time.Hour), client.WithBatch(2, 1<<20), client.WithCallTimeout(8*time.Second))
			long := t.Context()
			if test.patience > 0 {
				long, cancel = context.WithTimeout(long, test.patience)
				defer cancel()
			}
			var both sync.WaitGroup
			both.Go(func() {
				if _, err := c.Submit(short, refund(1)); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, client.ErrUncertain) {
					t.Errorf("the impatient one: %v", err)
				}
			})
			both.Go(func() {
				if _, err := c.Submit(long, refund(2)); err != nil {
					t.Errorf("the patient one: %v", err)
				}
			})
			both.Wait()
			if got := <-lasts; got < test.least || got > test.most {
				t.Errorf("the call may last %v", got)
			}
		})
	}
}

func TestNoTryFitsBeforeTheDeadline(t *testing.T) { bothWays(t, testNoTryFitsBeforeTheDeadline) }

func testNoTryFitsBeforeTheDeadline(t *testing.T, streamed bool) {
	t.Helper()
	s := &server{streamed: streamed, item: func(*client.Notification, int) error {
		return failed(connect.CodeResourceExhausted, "full", time.Minute)
	}}
	for kind, n := range map[string]*client.Notification{"batch": refund(1), "alone": scan(1)} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		_, err := s.start(t).Submit(ctx, n)
		if e := errorOf(t, err); e.Code != connect.CodeResourceExhausted || e.RetryAfter != time.Minute || e.Uncertain || time.Since(began) > 10*time.Second {
			t.Errorf("%s: %+v", kind, e)
		}
	}
}

func TestRetryForGivesUp(t *testing.T) { bothWays(t, testRetryForGivesUp) }

func testRetryForGivesUp(t *testing.T, streamed bool) {
	t.Helper()
	s := &server{streamed: streamed, item: func(*client.Notification, int) error { return failed(connect.CodeUnavailable, "no postgres", 0) }}
	if _, err := s.start(t, client.WithRetryFor(0)).Submit(t.Context(), refund(1)); errorOf(t, err).Tries != 1 {
		t.Errorf("%+v", err)
	}
	_, err := s.start(t, client.WithRetryFor(2*time.Second)).Submit(t.Context(), refund(1))
	if e := errorOf(t, err); e.Tries < 3 || !e.Uncertain || !strings.Contains(err.Error(), "tries); it is not known") {
		t.Errorf("%v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	s := &server{}
	s.start(t)
	c := newClient(t, "http://127.0.0.1:1", client.WithRetryFor(0))
	_, err := c.Submit(t.Context(), refund(1))
	if e := errorOf(t, err); !e.Unreached() || e.Uncertain || e.Answered || !e.Temporary() {
		t.Errorf("%+v", e)
	}
}

func TestPlacesAreBounded(t *testing.T) { bothWays(t, testPlacesAreBounded) }

func testPlacesAreBounded(t *testing.T, streamed bool) {
	t.Helper()
	entered, release := make(chan struct{}, 9), make(chan struct{})
	s := &server{streamed: streamed, call: func(context.Context, int, []*client.Notification) error { entered <- struct{}{}; <-release; return nil }}
	c := s.start(t, client.WithMaxWaiting(2))
	var inside sync.WaitGroup
	for i := range 2 {
		inside.Go(func() {
			if _, err := c.Submit(t.Context(), scan(i)); err != nil {
				t.Error(err)
			}
		})
	}
	<-entered
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Submit(ctx, scan(3))
	if e := errorOf(t, err); !errors.Is(err, context.DeadlineExceeded) || e.Tries != 0 || e.Uncertain {
		t.Errorf("%+v", e)
	}
	close(release)
	inside.Wait()
	if _, err := c.Submit(t.Context(), scan(3)); err != nil {
		t.Error(err)
	}
}

func TestCloseFlushes(t *testing.T) {
	entered, release := make(chan struct{}, 9), make(chan struct{})
	s := &server{call: func(context.Context, int, []*client.Notification) error { entered <- struct{}{}; <-release; return nil }}
	c := s.start(t, client.WithParallel(1))
	var inside sync.WaitGroup
	submit := func(n *client.Notification) {
		inside.Go(func() {
			if _, err := c.Submit(t.Context(), n); err != nil {
				t.Error(err)
			}
		})
	}
	submit(refund(0))
	submit(scan(100))
	<-entered
	<-entered
	for i := range 20 {
		submit(refund(i + 1))
	}
	eventually(t, "twenty are queued", func() bool { return c.Stats().Queued == 20 })
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- c.Close(t.Context()) }()
	}
	eventually(t, "nothing more is taken", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := c.Submit(ctx, scan(7))
		return errors.Is(err, client.ErrClosed)
	})
	close(release)
	for range 2 {
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
	inside.Wait()
	for i := range 21 {
		if s.taken[refund(i).RequestId] == 0 {
			t.Errorf("%d was not taken", i)
		}
	}
	for _, a := range c.SubmitAll(t.Context(), []*client.Notification{refund(1)}) {
		if !errors.Is(a.Err, client.ErrClosed) {
			t.Errorf("after the close: %v", a.Err)
		}
	}
}

func TestCloseWithoutPatience(t *testing.T) {
	entered := make(chan struct{}, 9)
	s := &server{call: func(ctx context.Context, _ int, _ []*client.Notification) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}}
	c := s.start(t, client.WithParallel(1))
	inside := make(chan error, 4)
	go func() { _, err := c.Submit(t.Context(), refund(1)); inside <- err }()
	<-entered
	go func() { inside <- c.SubmitAll(t.Context(), []*client.Notification{refund(2)})[0].Err }()
	go func() { _, err := c.Submit(t.Context(), scan(3)); inside <- err }()
	<-entered
	go func() { _, err := c.Submit(t.Context(), refund(4)); inside <- err }()
	eventually(t, "one is queued", func() bool { return c.Stats().Queued == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	uncertain := 0
	for range 4 {
		err := <-inside
		if !errors.Is(err, client.ErrClosed) {
			t.Errorf("%v", err)
		}
		if errors.Is(err, client.ErrUncertain) {
			uncertain++
		}
	}
	if uncertain != 2 {
		t.Errorf("%d are uncertain, want those two that were sent", uncertain)
	}
}

func TestSubmitAllAnswersEach(t *testing.T) {
	s := &server{item: func(n *client.Notification, try int) error {
		switch {
		case n.RequestId == "r3":
			return failed(connect.CodeAlreadyExists, "other content", 0)
		case n.RequestId == "r4" && try == 1:
			return failed(connect.CodeUnavailable, "not now", 0)
		}
		return nil
	}}
	c := s.start(t, client.WithBatch(10, 1<<20))
	ns := make([]*client.Notification, 25)
	for i := range ns {
		ns[i] = scan(i)
	}
	ns[5] = nil
	ns[6].Payload = strings.Repeat("x", client.MaxNotificationBytes)
	for i, a := range c.SubmitAll(t.Context(), ns) {
		switch i {
		case 3:
			if !errors.Is(a.Err, client.ErrConflict) {
				t.Errorf("3: %v", a.Err)
			}
		case 5, 6:
			if code(a.Err) != connect.CodeInvalidArgument {
				t.Errorf("%d: %v", i, a.Err)
			}
		default:
			if a.Err != nil || a.Result.Id != fmt.Sprintf("ntf_billing_r%d", i) {
				t.Errorf("%d: %v, %v", i, a.Result, a.Err)
			}
		}
	}
	sizes := map[int]int{}
	for _, b := range s.batches {
		sizes[len(b)]++
	}
	if diff := cmp.Diff(map[int]int{10: 2, 3: 1, 1: 1}, sizes); diff != "" || len(s.alone) != 0 {
		t.Errorf("sizes of batches, the last one is the retry: %s", diff)
	}
	if got := c.SubmitAll(t.Context(), nil); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestBatchesAreBoundedInBytes(t *testing.T) {
	big := func(i int) *client.Notification {
		n := refund(i)
		n.Payload = `"` + strings.Repeat("x", 100<<10) + `"`
		return n
	}
	var ns []*client.Notification
	for i := range 7 {
		ns = append(ns, big(i))
	}
	var mu sync.Mutex
	var sizes []int
	s := &server{call: func(_ context.Context, _ int, ns []*client.Notification) error {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, len(ns))
		return nil
	}}
	c := s.start(t, client.WithBatch(1000, 250<<10))
	c.SubmitAll(t.Context(), ns)
	slices.Sort(sizes)
	if diff := cmp.Diff([]int{1, 2, 2, 2}, sizes); diff != "" {
		t.Error(diff)
	}
	sizes = nil
	var all sync.WaitGroup
	for _, n := range ns {
		all.Go(func() {
			if _, err := c.Submit(t.Context(), n); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(sizes) == 0 || slices.Max(sizes) > 2 {
		t.Errorf("batches of %v", sizes)
	}
}

func TestAnswerGraceCountsWhatIsUnderWay(t *testing.T) {
	for name, grace := range map[string]time.Duration{"none": 0, "some": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			entered, release := make(chan struct{}, 1), make(chan struct{})
			s := &server{call: func(context.Context, int, []*client.Notification) error { entered <- struct{}{}; <-release; return nil }}
			c := s.start(t, client.WithAnswerGrace(grace), client.WithParallel(1), client.WithBatch(2, 1<<20))
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan []client.Answer, 1)
			go func() { got <- c.SubmitAll(ctx, []*client.Notification{refund(1), refund(2), refund(3)}) }()
			<-entered
			cancel()
			if grace == 0 {
				defer close(release)
			} else {
				close(release)
			}
			answers := <-got
			for i, a := range answers {
				sent := i < 2
				if ok := a.Err == nil; ok != (sent && grace > 0) {
					t.Errorf("%d: %v", i, a.Err)
				}
				if errors.Is(a.Err, client.ErrUncertain) != (sent && grace == 0) {
					t.Errorf("%d: %v", i, a.Err)
				}
			}
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for want, opts := range map[string][]client.Option{
		"WithBatch: 1001 notifications: want 1 to 1000":  {client.WithBatch(1001, 1)},
		"WithBatch: 0 bytes":                             {client.WithBatch(1, 0)},
		"WithLinger: -1s":                                {client.WithLinger(-time.Second)},
		"WithParallel: 0":                                {client.WithParallel(0)},
		"WithMaxWaiting: 0":                              {client.WithMaxWaiting(0)},
		"WithCallTimeout: 0s":                            {client.WithCallTimeout(0)},
		"WithRetryWaits: 2s to 1s":                       {client.WithRetryWaits(2*time.Second, time.Second)},
		"WithRetryFor: -1s":                              {client.WithRetryFor(-time.Second)},
		"WithAnswerGrace: -1s":                           {client.WithAnswerGrace(-time.Second)},
		"WithAPIKey: parse key":                          {client.WithAPIKey("no_key")},
		"WithHMACKey: want a key that begins with nh_":   {client.WithHMACKey(anAPIKey)},
		"WithAPIKey: want a key that begins with nk_":    {client.WithAPIKey(anHMACKey)},
		"WithOperatorKey: want an operator's key":        {client.WithOperatorKey("nk_x")},
		"WithHMACKey: is given together with WithAPIKey": {client.WithAPIKey(anAPIKey), client.WithHMACKey(anHMACKey)},
	} {
		_, err := client.New("http://127.0.0.1:8700", opts...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		for _, secret := range []string{anAPIKey, anHMACKey, "no_key", "nk_x"} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%v holds a key", err)
			}
		}
	}
	if _, err := client.New("https://h:1/api/", client.WithRetryFor(math.MaxInt64)); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"", "ftp://x", "127.0.0.1:8700", "http://", "http://a?b=c", "http://a#b", "http://user:hidden@a"} {
		if _, err := client.New(url); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
