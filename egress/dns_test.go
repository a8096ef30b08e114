package egress

import (
	"context"
	"net"
	"testing"
	"time"

	"notifyd/notification"
)

const (
	rcodeOK       = 0
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeSilence  = 255
)

// fakeDNS answers every question for an A record with one address, or with an error code, or not at all.
func fakeDNS(t *testing.T, rcode byte, a net.IP) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if rcode == rcodeSilence || n < 12 {
				continue
			}
			_, _ = conn.WriteTo(dnsAnswer(buf[:n], rcode, a), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func dnsAnswer(question []byte, rcode byte, a net.IP) []byte {
	end := 12
	for question[end] != 0 {
		end += int(question[end]) + 1
	}
	end += 5 // the root label, type and class
	answer := append([]byte(nil), question[:end]...)
	answer[2], answer[3] = 0x81, 0x80|rcode       // a response, recursion wanted and had
	copy(answer[6:12], []byte{0, 0, 0, 0, 0, 0})  // no records
	if rcode == rcodeOK && question[end-3] == 1 { // type A
		answer[7] = 1
		answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		answer = append(answer, a.To4()...)
	}
	return answer
}

// A name that does not exist is the merchant's fault; a resolver that cannot say is ours.
func TestSendDNS(t *testing.T) {
	m := play(t, answers(okAnswer))
	_, port, _ := net.SplitHostPort(m.addr)
	retryable := notification.OutcomeRetryable
	tests := []struct {
		name  string
		rcode byte
		a     net.IP
		want  want
	}{
		{"an address", rcodeOK, net.IPv4(127, 0, 0, 1), delivered},
		{"no such name", rcodeNXDomain, nil, want{retryable, notification.ReasonDNSFailure, 1}},
		{"SERVFAIL", rcodeServFail, nil, want{retryable, notification.ReasonResolverFailure, 1}},
		{"silence", rcodeSilence, nil, want{retryable, notification.ReasonResolverFailure, 1}},
		{"a private address", rcodeOK, net.IPv4(10, 0, 0, 1), want{retryable, notification.ReasonBlockedAddress, 1}},
		{"a metadata address", rcodeOK, net.IPv4(169, 254, 169, 254), want{retryable, notification.ReasonBlockedAddress, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, func(c *Config) {
				if test.rcode == rcodeSilence {
					c.ConnectTimeout = 100 * time.Millisecond
				}
			})
			c.dialer.Resolver = fakeDNS(t, test.rcode, test.a)
			a := c.Send(t.Context(), callTo("http://merchant.example.:"+port+"/?token=secret", nil))
			check(t, a, test.want)
			if a.Phases.DNS <= 0 {
				t.Errorf("phases %+v", a.Phases)
			}
		})
	}
}
