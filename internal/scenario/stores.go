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
	NATSPassword = "s3cret-of-nats"
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

// Postgres is a private Postgres for nodes of other processes.
type Postgres struct {
	URL string
	dir string
	pg  *postgres.Server
}

// StartPostgres runs one until the test ends.
func StartPostgres(tb testing.TB, dir string) *Postgres {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	p := &Postgres{dir: dir}
	p.Start(tb)
	tb.Cleanup(func() { p.Stop(tb) })
	return p
}

// Start runs it, also again after Stop, under the same URL.
func (p *Postgres) Start(tb testing.TB) {
	tb.Helper()
	pg, err := postgres.Start(context.WithoutCancel(tb.Context()), postgres.Config{Dir: p.dir, Log: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	p.pg, p.URL = pg, pg.URL()
}

// Stop ends it; more calls are harmless.
func (p *Postgres) Stop(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.pg.Stop(ctx); err != nil {
		tb.Error(err)
	}
}
