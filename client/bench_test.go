package client_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/client"
	"notifyd/internal/groupcommit"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// serverOnly makes the test binary a server, so that a benchmark counts the client's CPU time alone.
const serverOnly = "NOTIFYD_CLIENT_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverOnly) == "" {
		os.Exit(m.Run())
	}
	s := &forgetful{}
	listener := httptest.NewUnstartedServer(s.handler())
	listener.Config.Protocols = new(http.Protocols)
	listener.Config.Protocols.SetHTTP1(true)
	listener.Config.Protocols.SetUnencryptedHTTP2(true)
	listener.Start()
	fmt.Println(listener.URL)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the parent is gone
	listener.Close()
}

// forgetful accepts everything, after as long as a commit takes.
type forgetful struct {
	notifydv1connect.UnimplementedNotificationServiceHandler
}

const commit = 2 * time.Millisecond

func (s *forgetful) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(s))
	return mux
}

func (s *forgetful) Submit(_ context.Context, req *connect.Request[notifydv1.SubmitRequest]) (*connect.Response[notifydv1.SubmitResponse], error) {
	time.Sleep(commit)
	return connect.NewResponse(accepted(req.Msg.Notification)), nil
}

func (s *forgetful) SubmitBatch(_ context.Context, req *connect.Request[notifydv1.SubmitBatchRequest]) (*connect.Response[notifydv1.SubmitBatchResponse], error) {
	time.Sleep(commit)
	out := &notifydv1.SubmitBatchResponse{}
	for _, n := range req.Msg.Notifications {
		out.Results = append(out.Results, &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: accepted(n)}})
	}
	return connect.NewResponse(out), nil
}

// SubmitStream answers as the engine does: a message together, what waits for a merchant each on its own.
func (s *forgetful) SubmitStream(_ context.Context, call *connect.BidiStream[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]) error {
	if err := call.Send(&notifydv1.SubmitStreamResponse{}); err != nil {
		return err
	}
	answers := groupcommit.New(groupcommit.AtMost[*notifydv1.StreamedResult](1000), func(results []*notifydv1.StreamedResult) []error {
		_ = call.Send(&notifydv1.SubmitStreamResponse{Results: results})
		return nil
	})
	answer := func(items ...*notifydv1.StreamedNotification) {
		time.Sleep(commit)
		for _, item := range items {
			answers.Add(&notifydv1.StreamedResult{
				Number: item.Number, Result: &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: accepted(item.Notification)}},
			}, func(error) {})
		}
	}
	var underWay sync.WaitGroup
	for {
		msg, err := call.Receive()
		if err != nil {
			underWay.Wait()
			answers.Wait()
			return nil //nolint:nilerr // the caller has ended it
		}
		if !msg.Notifications[0].AllowSync {
			underWay.Go(func() { answer(msg.Notifications...) })
			continue
		}
		for _, item := range msg.Notifications {
			underWay.Go(func() { answer(item) })
		}
	}
}

func accepted(n *client.Notification) *client.Result {
	return &client.Result{Id: "ntf_qjglklcjm3pdobmajlkrt7q7hi", Lane: notifydv1.Lane_LANE_ASYNC, State: notifydv1.State_STATE_ACCEPTED, StateReason: "queued", Rule: "builtin:async", Duplicate: n.RequestId == ""}
}

// BenchmarkStream compares what one submission costs its caller and the server's RPC layer, with callers in a closed loop.
func BenchmarkStream(b *testing.B) {
	url := startServer(b)
	for lane, scene := range map[string]string{"async": "refund", "sync": "scan"} {
		for way, streams := range map[string]int{"calls": 0, "stream": 1} {
			for _, callers := range []int{32, 256} {
				b.Run(fmt.Sprintf("%s/%s/callers=%d", lane, way, callers), func(b *testing.B) {
					c := newClient(b, url, client.WithStreams(streams))
					if streams > 0 {
						openStream(b, c)
					}
					benchmark(b, callers, func(n *client.Notification) error {
						n.Scene = scene
						_, err := c.Submit(b.Context(), n)
						return err
					})
				})
			}
		}
	}
	b.Run("generated client/callers=32", func(b *testing.B) { // what a service does that does not use this package
		rpc := notifydv1connect.NewNotificationServiceClient(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}, url)
		benchmark(b, 32, func(n *client.Notification) error {
			_, err := rpc.Submit(b.Context(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
			return err
		})
	})
}

// BenchmarkSubmit has 256 callers, each with one submission under way at a time.
func BenchmarkSubmit(b *testing.B) {
	url := startServer(b)
	for _, parallel := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("shared/parallel=%d", parallel), func(b *testing.B) {
			c := newClient(b, url, client.WithStreams(0), client.WithParallel(parallel))
			benchmark(b, 256, func(n *client.Notification) error {
				_, err := c.Submit(b.Context(), n)
				return err
			})
		})
	}
	b.Run("unary", func(b *testing.B) {
		rpc := notifydv1connect.NewNotificationServiceClient(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}, url)
		benchmark(b, 256, func(n *client.Notification) error {
			_, err := rpc.Submit(b.Context(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
			return err
		})
	})
	b.Run("all", func(b *testing.B) {
		c := newClient(b, url)
		ns := make([]*client.Notification, b.N)
		for i := range ns {
			ns[i] = sized(int64(i))
		}
		began, start := cpu(b), time.Now()
		b.ResetTimer()
		for _, a := range c.SubmitAll(b.Context(), ns) {
			if a.Err != nil {
				b.Fatal(a.Err)
			}
		}
		report(b, began, start)
	})
}

func benchmark(b *testing.B, most int, submit func(*client.Notification) error) {
	b.Helper()
	var next atomic.Int64
	var callers sync.WaitGroup
	began, servers, start := cpu(b), serverCPU(b), time.Now()
	for range most {
		callers.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := submit(sized(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	report(b, began, start)
	b.ReportMetric(float64((serverCPU(b)-servers).Nanoseconds())/1e3/float64(b.N), "server-cpu-µs/op")
}

func sized(i int64) *client.Notification {
	return &client.Notification{
		Source: "billing", RequestId: fmt.Sprintf("refund-%d", i), MerchantId: "shop-7", Scene: "refund", OrderId: fmt.Sprintf("A-%d", i),
		EventType: "refund.settled", OrderStatus: "settled", Terminal: true, Payload: payload, Amount: &notifydv1.Amount{Currency: "CNY", MinorUnits: 1050},
	}
}

var payload = `{"order":"` + strings.Repeat("x", 500) + `"}`

func report(b *testing.B, began time.Duration, start time.Time) {
	b.Helper()
	b.ReportMetric(float64((cpu(b)-began).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "op/s")
}

// cpu is the process' time, user and system.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

var serverPID int

// serverCPU is the server's, in steps of 10 ms.
func serverCPU(b *testing.B) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", serverPID))
	if err != nil {
		return 0 // there is no /proc here
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	user, errUser := strconv.ParseInt(fields[11], 10, 64)
	system, errSystem := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(errUser, errSystem); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

func startServer(b *testing.B) string {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), self)
	cmd.Env = append(os.Environ(), serverOnly+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	serverPID = cmd.Process.Pid
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(url)
}
