package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"notifyd/contract"
)

// Fault is why no complete answer came: a closed set, whatever the error's text.
type Fault uint8

// The faults.
const (
	FaultNone              Fault = iota + 1 // an answer came
	FaultNoAddress                          // the merchant's name has no address
	FaultResolver                           // our resolver did not answer
	FaultRefused                            // RST on connect
	FaultUnreachable                        // no route
	FaultTimeout                            // the phase did not end in time
	FaultReset                              // closed or reset by the merchant
	FaultTLS                                // versions, suites, alerts
	FaultCertificate                        // the merchant's certificate does not verify
	FaultClientCertificate                  // the merchant does not accept ours, or misses it
	FaultBadResponse                        // not HTTP, or a broken body
	FaultBlocked                            // a private address
	FaultURL                                // no request can be made of the notify URL
	FaultEncode                             // the contract cannot carry this notification
	FaultKey                                // no key of ours to sign or to encrypt with
	FaultLocal                              // no local port or file descriptor left
	FaultShutdown                           // the engine is stopping
	FaultInternal                           // a bug
)

// Faults are all faults in their order.
func Faults() []Fault {
	return []Fault{
		FaultNone, FaultNoAddress, FaultResolver, FaultRefused, FaultUnreachable, FaultTimeout, FaultReset, FaultTLS,
		FaultCertificate, FaultClientCertificate, FaultBadResponse, FaultBlocked, FaultURL, FaultEncode, FaultKey, FaultLocal,
		FaultShutdown, FaultInternal,
	}
}

// errShutdown stands for the caller's canceled context, whatever its cause.
var errShutdown = errors.New("the engine is stopping")

// faultOf finds the fault behind an error of one phase.
func faultOf(err error, phase Phase) Fault {
	if err == nil {
		return FaultNone
	}
	for _, judge := range []func(error) Fault{ownFault, resolverFault, tlsFault, errnoFault, streamFault} {
		if fault := judge(err); fault != 0 {
			return fault
		}
	}
	return unnamedFault(phase)
}

func ownFault(err error) Fault {
	switch {
	case errors.Is(err, errShutdown), errors.Is(err, context.Canceled):
		return FaultShutdown
	case errors.Is(err, ErrBlockedAddress):
		return FaultBlocked
	case isA[*URLError](err):
		return FaultURL
	case isA[*contract.EncodeError](err):
		return FaultEncode
	case errors.Is(err, contract.ErrNoKey), errors.Is(err, contract.ErrSettings):
		return FaultKey
	}
	return 0
}

// resolverFault tells "there is no such name" (the merchant's fault) from "nobody could say" (ours): SERVFAIL,
// timeouts and an unreachable resolver.
func resolverFault(err error) Fault {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return FaultNoAddress
		}
		return FaultResolver
	}
	if isA[*net.AddrError](err) { // the name has addresses, but none that we can dial
		return FaultNoAddress
	}
	return 0
}

func tlsFault(err error) Fault {
	switch {
	case isA[x509.SystemRootsError](err):
		return FaultInternal // we have no roots to verify anybody with
	case isA[*tls.CertificateVerificationError](err), isA[x509.UnknownAuthorityError](err),
		isA[x509.HostnameError](err), isA[x509.CertificateInvalidError](err):
		return FaultCertificate
	case isA[tls.RecordHeaderError](err), isA[*tls.ECHRejectionError](err):
		return FaultTLS
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Err == nil {
		return 0
	}
	switch op.Op {
	case "remote error": // crypto/tls's word for an alert that came in
		if aboutOurCertificate(op.Err) {
			return FaultClientCertificate
		}
		return FaultTLS
	case "local error": // and for one that went out
		return FaultTLS
	}
	return 0
}

// aboutOurCertificate knows the alerts that a server sends only while it judges the client's certificate. The
// alert's own type is not exported, its text is.
func aboutOurCertificate(alert error) bool {
	text := alert.Error()
	for _, code := range []tls.AlertError{
		42,  // bad_certificate
		43,  // unsupported_certificate
		44,  // certificate_revoked
		45,  // certificate_expired
		46,  // certificate_unknown
		48,  // unknown_ca
		49,  // access_denied
		116, // certificate_required
	} {
		if text == code.Error() {
			return true
		}
	}
	return false
}

func errnoFault(err error) Fault {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return 0
	}
	switch errno { //nolint:exhaustive // every other errno is judged by its phase
	case syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN:
		return FaultLocal
	case syscall.ECONNREFUSED:
		return FaultRefused
	case syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.ENOTCONN, syscall.ESHUTDOWN:
		return FaultReset
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EPERM, syscall.EACCES:
		return FaultUnreachable
	case syscall.ETIMEDOUT:
		return FaultTimeout
	}
	return 0
}

func streamFault(err error) Fault {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return FaultTimeout
	}
	var timer interface{ Timeout() bool }
	if errors.As(err, &timer) && timer.Timeout() {
		return FaultTimeout
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return FaultReset
	}
	return 0
}

// unnamedFault judges what has no type of its own: net/http says most things in words only.
func unnamedFault(phase Phase) Fault {
	switch phase {
	case PhaseResolve:
		return FaultResolver
	case PhaseConnect:
		return FaultUnreachable
	case PhaseTLS:
		return FaultTLS
	case PhaseWrite: // "server closed idle connection"
		return FaultReset
	case PhaseFirstByte, PhaseRead: // "malformed HTTP response", "malformed chunked encoding"
		return FaultBadResponse
	case PhasePrepare, PhaseDone:
		return FaultInternal
	}
	return FaultInternal
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
