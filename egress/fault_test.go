package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"notifyd/contract"
)

func errno(op string, e syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, e)}
}

func alert(code uint8) error {
	return fmt.Errorf("readLoopPeekFailLocked: %w", &net.OpError{Op: "remote error", Err: tls.AlertError(code)})
}

func TestFaultOf(t *testing.T) {
	tests := []struct {
		name  string
		err   error
		phase Phase
		want  Fault
	}{
		{"nothing", nil, PhaseDone, FaultNone},
		{"refused", errno("connect", syscall.ECONNREFUSED), PhaseConnect, FaultRefused},
		{"reset on connect", errno("connect", syscall.ECONNRESET), PhaseConnect, FaultReset},
		{"reset on read", fmt.Errorf("net/http: %w", errno("read", syscall.ECONNRESET)), PhaseFirstByte, FaultReset},
		{"broken pipe", errno("write", syscall.EPIPE), PhaseWrite, FaultReset},
		{"no route", errno("connect", syscall.EHOSTUNREACH), PhaseConnect, FaultUnreachable},
		{"no network", errno("connect", syscall.ENETUNREACH), PhaseConnect, FaultUnreachable},
		{"kernel gave up", errno("connect", syscall.ETIMEDOUT), PhaseConnect, FaultTimeout},
		{"no local port", errno("connect", syscall.EADDRNOTAVAIL), PhaseConnect, FaultLocal},
		{"address in use", errno("bind", syscall.EADDRINUSE), PhaseConnect, FaultLocal},
		{"no descriptor", errno("socket", syscall.EMFILE), PhaseConnect, FaultLocal},
		{"no descriptor in the system", errno("socket", syscall.ENFILE), PhaseConnect, FaultLocal},
		{"no buffer", errno("connect", syscall.ENOBUFS), PhaseConnect, FaultLocal},
		{"dial timeout", &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, PhaseConnect, FaultTimeout},
		{"context's timeout", context.DeadlineExceeded, PhaseTLS, FaultTimeout},
		{"our own timeout", errTimeUp, PhaseFirstByte, FaultTimeout},

		{"NXDOMAIN", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsNotFound: true}}, PhaseResolve, FaultNoAddress},
		{"SERVFAIL", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "server misbehaving", IsTemporary: true}}, PhaseResolve, FaultResolver},
		{"resolver timeout", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", IsTimeout: true}}, PhaseResolve, FaultResolver},
		{"resolver refused", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "read: connection refused"}}, PhaseResolve, FaultResolver},
		{"no suitable address", &net.OpError{Op: "dial", Err: &net.AddrError{Err: "no suitable address"}}, PhaseResolve, FaultNoAddress},

		{"unknown authority", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, PhaseTLS, FaultCertificate},
		{"another name", x509.HostnameError{Certificate: &x509.Certificate{}}, PhaseTLS, FaultCertificate},
		{"expired", x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{}}, PhaseTLS, FaultCertificate},
		{"no roots", &tls.CertificateVerificationError{Err: x509.SystemRootsError{}}, PhaseTLS, FaultInternal},
		{"not TLS", tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, PhaseTLS, FaultTLS},
		{"alert: handshake failure", alert(40), PhaseTLS, FaultTLS},
		{"alert: protocol version", alert(70), PhaseTLS, FaultTLS},
		{"alert: internal error, after the handshake", alert(80), PhaseFirstByte, FaultTLS},
		{"alert: certificate required, at first read", alert(116), PhaseFirstByte, FaultClientCertificate},
		{"alert: certificate required, before the write", alert(116), PhaseWrite, FaultClientCertificate},
		{"alert: unknown ca", alert(48), PhaseFirstByte, FaultClientCertificate},
		{"own alert", &net.OpError{Op: "local error", Err: tls.AlertError(10)}, PhaseTLS, FaultTLS},
		{"handshake words", errors.New("tls: server selected unsupported protocol version 301"), PhaseTLS, FaultTLS},
		{"closed in the handshake", io.EOF, PhaseTLS, FaultReset},

		{"closed without an answer", fmt.Errorf("wrapped: %w", io.EOF), PhaseFirstByte, FaultReset},
		{"closed within the body", io.ErrUnexpectedEOF, PhaseRead, FaultReset},
		{"closed idle", errors.New("http: server closed idle connection"), PhaseWrite, FaultReset},
		{"hung up", errHungUp, PhaseWrite, FaultReset},
		{"malformed", errors.New(`malformed HTTP response "SSH-2.0"`), PhaseFirstByte, FaultBadResponse},
		{"broken chunk", errors.New("malformed chunked encoding"), PhaseRead, FaultBadResponse},

		{"blocked", &net.OpError{Op: "dial", Err: &AddressError{Class: AddressPrivate}}, PhaseConnect, FaultBlocked},
		{"bad url", &URLError{Rule: URLScheme}, PhasePrepare, FaultURL},
		{"encode", &contract.EncodeError{Err: errors.New("x")}, PhasePrepare, FaultEncode},
		{"shutdown", fmt.Errorf("x: %w", errShutdown), PhaseFirstByte, FaultShutdown},
		{"canceled", context.Canceled, PhaseConnect, FaultShutdown},
		{"a bug", errors.New("?"), PhasePrepare, FaultInternal},
	}
	for _, test := range tests {
		if got := faultOf(test.err, test.phase); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}
