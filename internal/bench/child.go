package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"notifyd/egress"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// child is one of the processes beside the engine. Each waits for lines on its input: a line starts a turn, the answer
// says that it has ended.
func child(role string, args []string) error {
	switch role {
	case "sink":
		return sink()
	case "floor":
		return turns(func(n int) error { return floor(args[0], args[1], n) })
	case "load":
		return load(args)
	}
	return fmt.Errorf("%q: no such role", role)
}

// sink plays every merchant: it reads a request and answers 200.
func sink() error {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "success")
	})}
	return srv.Serve(l)
}

// turns answers each line with a number on standard input by doing that many.
func turns(do func(n int) error) error {
	for {
		var n int
		if _, err := fmt.Scanln(&n); errors.Is(err, io.EOF) {
			return nil // the run is over
		} else if err != nil {
			return err
		}
		began := time.Now()
		if err := do(n); err != nil {
			return err
		}
		fmt.Println(time.Since(began).Microseconds())
	}
}

var floorClient = http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}

// floor posts signed bodies with a bare keep-alive net/http client, 64 at a time.
func floor(url, size string, n int) error {
	length, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	body := payload(length, 0)
	secret, err := egress.ParseSecret(egress.GenerateSecret())
	if err != nil {
		return err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, 64)
	for range 64 {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				if err := post(url, secret, body); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func post(url string, secret egress.Secret, body []byte) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	now := time.Now()
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("webhook-id", "floor")
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", secret.Sign("floor", now, body))
	res, err := floorClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

func payload(size, i int) []byte {
	head := fmt.Sprintf(`{"order":"%012d","amount":10.50,"pad":"`, i)
	return []byte(head + strings.Repeat("x", max(0, size-len(head)-2)) + `"}`)
}

// loader submits for one run.
type loader struct {
	client    notifydv1connect.NotificationServiceClient
	run       string
	batch     int
	callers   int
	merchants int
	size      int
}

// load submits: arguments are intake URL, case, batch size, callers, merchants, payload bytes, run name.
func load(args []string) error {
	l := loader{client: notifydv1connect.NewNotificationServiceClient(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}, args[0]), run: args[6]}
	for i, to := range []*int{&l.batch, &l.callers, &l.merchants, &l.size} {
		n, err := strconv.Atoi(args[2+i])
		if err != nil {
			return err
		}
		*to = n
	}
	serial := 0
	return turns(func(n int) error {
		from := serial
		serial += n
		switch args[1] {
		case "unary":
			return l.submitEach("payout", from, n)
		case "sync":
			return l.submitEach("scan", from, n)
		default:
			return l.submitBatches(from, n)
		}
	})
}

func (l *loader) draft(scene string, i int) *notifydv1.Notification {
	return &notifydv1.Notification{
		Source: l.run, RequestId: strconv.Itoa(i), MerchantId: fmt.Sprintf("bench-%d", i%l.merchants), Scene: scene, EventType: "payment.succeeded",
		OrderId: fmt.Sprintf("order-%d", i), OrderStatus: "SUCCESS", Terminal: true, Payload: string(payload(l.size, i)),
		Amount: &notifydv1.Amount{Currency: "CNY", MinorUnits: int64(i)},
	}
}

func (l *loader) submitBatches(from, n int) error {
	var next atomic.Int64
	return together(4, func() error {
		for {
			at := int(next.Add(int64(l.batch))) - l.batch
			if at >= n {
				return nil
			}
			req := &notifydv1.SubmitBatchRequest{}
			for i := at; i < min(at+l.batch, n); i++ {
				req.Notifications = append(req.Notifications, l.draft("payout", from+i))
			}
			res, err := l.client.SubmitBatch(context.Background(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, r := range res.Msg.Results {
				if e := r.GetError(); e != nil {
					return fmt.Errorf("refused: %s %s", e.Code, e.Message)
				}
			}
		}
	})
}

func (l *loader) submitEach(scene string, from, n int) error {
	var next atomic.Int64
	return together(l.callers, func() error {
		for {
			i := int(next.Add(1)) - 1
			if i >= n {
				return nil
			}
			if _, err := l.client.Submit(context.Background(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: l.draft(scene, from+i)})); err != nil {
				return err
			}
		}
	})
}

func together(callers int, do func() error) error {
	errs := make(chan error, callers)
	for range callers {
		go func() { errs <- do() }()
	}
	var first error
	for range callers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}
