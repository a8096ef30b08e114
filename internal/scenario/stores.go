package scenario

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"

	"notifyd/internal/embedded/postgres"
)

// NATSUser and NATSPassword are who may use a NATS of the tests.
const (
	NATSUser     = "notifyd"
	NATSPassword = "s3cret-of-nats" //nolint:gosec // of a server that lives as long as a test
)

// StartNATS runs a NATS server with JetStream over TLS, which wants a password. It returns its URL.
func StartNATS(tb testing.TB, dir string, ca *CA) string {
	tb.Helper()
	certFile, keyFile := ca.Issue(tb, "nats", nil)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		tb.Fatal(err)
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "scenario", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: dir, Username: NATSUser, Password: NATSPassword,
		TLS: true, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}, TLSTimeout: 5,
	})
	if err != nil {
		tb.Fatal(err)
	}
	ns.Start()
	tb.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(20 * time.Second) {
		tb.Fatal("NATS did not start")
	}
	return fmt.Sprintf("tls://%s", ns.Addr())
}

// StartPostgres runs a private Postgres for nodes of other processes. It returns its URL.
func StartPostgres(tb testing.TB, dir string) string {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // Postgres runs as another user below it
		tb.Fatal(err)
	}
	pg, err := postgres.Start(tb.Context(), postgres.Config{Dir: dir, Log: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := pg.Stop(ctx); err != nil {
			tb.Error(err)
		}
	})
	return pg.URL()
}
