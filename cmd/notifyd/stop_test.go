package main_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const unclean = "the last run did not end cleanly"

// The mark of a crash outlives whoever does not get as far as looking at what was in hand.
func TestCrashMarkStays(t *testing.T) {
	t.Parallel()
	dir := scenario.DataDir(t)
	w := start(t, dir)
	m := scenario.NewMerchant(t)
	w.merchant("tea-house", m.URL, nil)
	w.until(w.submit(draft("tea-house", "payout", "1")).Id, notifydv1.State_STATE_DELIVERED)

	// A second process on the same folder fails, and takes nothing with it.
	args := []string{"dev", "--no-demo", "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dir}
	if out, exit := notifyd(t, args...); exit == 0 || !strings.Contains(out, "in use") {
		t.Fatalf("a second process: exit %d\n%s", exit, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "running")); err != nil {
		t.Errorf("the mark is gone with it: %v", err)
	}
	w.Kill()

	// A start that ends before the lanes run leaves the mark it found.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	args[3] = "--admin-listen=" + taken.Addr().String()
	if out, exit := notifyd(t, args...); exit == 0 || !strings.Contains(out, "address already in use") {
		t.Fatalf("with a port that is taken: exit %d\n%s", exit, out)
	}
	again := start(t, dir)
	if !strings.Contains(again.Output(), unclean) {
		t.Error("the start after a failed one does not know of the crash")
	}
	again.Stop(t)
	clean := start(t, dir)
	if strings.Contains(clean.Output(), unclean) {
		t.Error("after a clean stop a crash is believed")
	}
	clean.Stop(t)
}

// A stranger who sends half a request is answered at once, and no stop waits for one.
func TestStrangersHoldNothing(t *testing.T) {
	t.Parallel()
	dir := scenario.DataDir(t)
	_, operators := operatorKey(t)
	w := serve(t, dir, "--config="+writeConfig(t, dir, operators), "--set=drain_notice=0s", "--set=drain=3s")
	half := func() net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.Intake, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := fmt.Fprintf(conn, "POST /notifyd.v1.NotificationService/Submit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := half()
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("a stranger is not answered: %v", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger gets %s", res.Status)
	}
	silent, err := net.Dial("tcp", strings.TrimPrefix(w.Intake, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	half()
	w.Stop(t) // exit code 0
	if _, err := os.Stat(filepath.Join(dir, "running")); err == nil {
		t.Error("a clean stop leaves the mark of a crash")
	}
}

// SIGHUP while the node still waits for Postgres does not end it.
func TestHangupBeforeReady(t *testing.T) {
	t.Parallel()
	dir := scenario.DataDir(t)
	e := engineBinary.LaunchServe(t, dir, "--set=callers.required=false", "--set=postgres.url=postgres://nobody@127.0.0.1:1/none", "--set=ledger.master_key_file="+masterKey(t, dir))
	scenario.Within(t, 20*time.Second, "it waits for Postgres", func() bool { return strings.Contains(e.Output(), "does not answer yet") })
	e.Signal(t, syscall.SIGHUP)
	select {
	case <-e.Exited():
		t.Fatalf("SIGHUP ends it\n%s", e.Output())
	case <-time.After(500 * time.Millisecond):
	}
}

func masterKey(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "shared.key")
	if out, exit := notifyd(t, "keygen", "master", path); exit != 0 {
		t.Fatalf("keygen master: %s", out)
	}
	return path
}
