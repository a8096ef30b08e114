package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"notifyd/contract/sign"
	"notifyd/notification"
)

// TestMain can play the merchant of the benchmarks in a process of its own, so that its CPU is not measured.
func TestMain(m *testing.M) {
	if os.Getenv("EGRESS_TEST_SINK") == "" {
		os.Exit(m.Run())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }() // ends with its parent
	_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write([]byte("success"))
	}))
}

func startSink(b *testing.B) string {
	b.Helper()
	sink := exec.Command(os.Args[0])
	sink.Env = append(os.Environ(), "EGRESS_TEST_SINK=1")
	in, err := sink.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := sink.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := sink.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = sink.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return "http://" + strings.TrimSpace(line) + "/notify"
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func measureCPU(b *testing.B, op func()) {
	b.Helper()
	b.ReportAllocs()
	b.SetParallelism(8)
	op()
	b.ResetTimer()
	before := cpuTime()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			op()
		}
	})
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

var payload = []byte(`{"order":"` + strings.Repeat("7", 1024-12) + `"}`)

// BenchmarkSend is one whole attempt; BenchmarkBareNetHTTP is the floor: the same signed POST, and nothing kept.
func BenchmarkSend(b *testing.B) {
	c := newClient(b, func(cfg *Config) { cfg.MaxIdlePerMerchant = 64 })
	call := callTo(startSink(b), payload)
	measureCPU(b, func() {
		if a := c.Send(context.Background(), call); a.Outcome != notification.OutcomeDelivered {
			b.Error(a.Reason, a.Detail)
		}
	})
}

func BenchmarkBareNetHTTP(b *testing.B) {
	url := startSink(b)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}, Timeout: 15 * time.Second}
	key := []byte(strings.Repeat("k", 32))
	measureCPU(b, func() {
		at := strconv.FormatInt(time.Now().Unix(), 10)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("ntf_id." + at + "."))
		mac.Write(payload)
		r, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(payload))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("User-Agent", userAgent)
		r.Header.Set(sign.StandardID, "ntf_id")
		r.Header.Set(sign.StandardTimestamp, at)
		r.Header.Set(sign.StandardSignature, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		r.Header.Set("notifyd-attempt", "1")
		resp, err := client.Do(r)
		if err != nil {
			b.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	})
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
