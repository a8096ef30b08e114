package main

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"go.uber.org/zap"

	"notifyd/internal/scenario"
)

// startExternalNATS runs a server as change leaves it.
func startExternalNATS(t *testing.T, change func(*server.Options)) string {
	t.Helper()
	opts := &server.Options{ServerName: "test", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()}
	change(opts)
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(20 * time.Second) {
		t.Fatal("NATS did not start")
	}
	return ns.Addr().String()
}

func TestConnectNATS(t *testing.T) {
	dir := t.TempDir()
	ca := scenario.NewCA(t, dir)
	certFile, keyFile := ca.Issue(t, "nats", nil)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	clientCert, clientKey := ca.Issue(t, "engine", nil)
	strict := startExternalNATS(t, func(o *server.Options) { // mTLS and a password
		o.Username, o.Password, o.TLS, o.TLSVerify, o.TLSTimeout = "engine", "s3cret", true, true, 5
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert}
		if o.TLSConfig.ClientCAs, err = readRoots("test", ca.File); err != nil {
			t.Fatal(err)
		}
	})
	small := startExternalNATS(t, func(o *server.Options) { o.MaxPayload = 100 << 10 })
	credentials, jwts := credentialsFile(t, dir)
	byJWT := startExternalNATS(t, jwts)

	secure := tlsConfig{CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}
	for name, test := range map[string]struct {
		cfg  natsConfig
		says string // empty: it connects
	}{
		"certificate and password": {natsConfig{URL: "tls://" + strict, User: "engine", Password: "s3cret", TLS: secure}, ""},
		"credentials file":         {natsConfig{URL: "nats://" + byJWT, CredentialsFile: credentials}, ""},
		"wrong password":           {natsConfig{URL: "tls://" + strict, User: "engine", Password: "wrong", TLS: secure}, "Authorization Violation"},
		"password in the url":      {natsConfig{URL: "tls://engine:wr0ng@" + strict, TLS: secure}, "Authorization Violation"},
		"no certificate":           {natsConfig{URL: "tls://" + strict, User: "engine", Password: "s3cret", TLS: tlsConfig{CAFile: ca.File}}, "tls"},
		"unknown authority":        {natsConfig{URL: "tls://" + strict, User: "engine", Password: "s3cret"}, "unknown authority"},
		"no roots file":            {natsConfig{URL: "tls://" + strict, TLS: tlsConfig{CAFile: filepath.Join(dir, "none.pem")}}, "nats.tls.ca_file: open"},
		"roots that are none":      {natsConfig{URL: "tls://" + strict, TLS: tlsConfig{CAFile: keyFile}}, "holds no certificate in PEM"},
		"a pair that is none":      {natsConfig{URL: "tls://" + strict, TLS: tlsConfig{CertFile: clientCert, KeyFile: keyFile}}, "private key does not match"},
		"no credentials file":      {natsConfig{URL: "nats://" + byJWT, CredentialsFile: filepath.Join(dir, "none.creds")}, "none.creds"},
		"no credentials":           {natsConfig{URL: "nats://" + byJWT}, "Authorization Violation"},
		"small messages only":      {natsConfig{URL: "nats://" + small}, "max_payload is 102400 bytes"},
	} {
		began := time.Now()
		conn, err := connectNATS(t.Context(), test.cfg, zap.NewNop())
		if err == nil {
			conn.Close()
		}
		switch {
		case test.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
			t.Errorf("%s: got %v, want it to say %q", name, err, test.says)
		case time.Since(began) > startPatience/2:
			t.Errorf("%s: %s passed before it was said", name, time.Since(began))
		}
		if err != nil && (strings.Contains(err.Error(), "wr0ng") || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: the error shows the password: %v", name, err)
		}
	}
}

// credentialsFile makes a user's credentials as an operator of NATS would, and the options of a server that knows them.
func credentialsFile(t *testing.T, dir string) (path string, options func(*server.Options)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	operator, err := nkeys.CreateOperator()
	must(err)
	operatorID, err := operator.PublicKey()
	must(err)
	account, err := nkeys.CreateAccount()
	must(err)
	accountID, err := account.PublicKey()
	must(err)
	user, err := nkeys.CreateUser()
	must(err)
	userID, err := user.PublicKey()
	must(err)
	claims := jwt.NewAccountClaims(accountID)
	accountJWT, err := claims.Encode(operator)
	must(err)
	userJWT, err := jwt.NewUserClaims(userID).Encode(account)
	must(err)
	seed, err := user.Seed()
	must(err)
	creds, err := jwt.FormatUserConfig(userJWT, seed)
	must(err)
	path = filepath.Join(dir, "user.creds")
	must(os.WriteFile(path, creds, 0o600))
	return path, func(o *server.Options) {
		resolver := &server.MemAccResolver{}
		must(resolver.Store(accountID, accountJWT))
		o.AccountResolver, o.TrustedKeys, o.JetStream = resolver, []string{operatorID}, false
	}
}
