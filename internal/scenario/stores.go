package scenario

import (
	"crypto/tls"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
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
