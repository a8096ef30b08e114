package egress

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

func TestClassifyAddress(t *testing.T) {
	tests := map[AddressClass][]string{
		AddressPublic: {
			"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
			"172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255", "198.17.255.255", "198.20.0.0",
			"2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2400::1",
		},
		AddressLoopback: {"127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "::127.0.0.1"},
		AddressPrivate: {
			"10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12::1", "fec0::1",
			"::ffff:10.0.0.1", "::ffff:a00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:a00:1::", "::10.0.0.1",
			"2a00::5efe:10.0.0.1", "2a00::200:5efe:192.168.0.1",
		},
		AddressLinkLocal:     {"169.254.0.1", "169.254.1.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.9.9", "febf::1"},
		AddressCGNAT:         {"100.64.0.1", "100.127.255.255", "64:ff9b::100.64.0.1"},
		AddressMetadata:      {"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "192.0.0.192"},
		AddressMulticast:     {"224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"},
		AddressUnspecified:   {"0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"},
		AddressDocumentation: {"192.0.2.1", "198.51.100.1", "203.0.113.255", "2001:db8::1", "3fff::1"},
		AddressReserved: {
			"240.0.0.1", "255.255.255.255", "198.18.0.1", "198.19.255.255", "192.0.0.8", "192.88.99.1", "2001::1", "100::1",
			"::8.8.8.8", "1::1", "4000::1", "5f00::1", "64:ff9a::1",
		},
	}
	for class, texts := range tests {
		if !slices.Contains(AddressClasses(), class) {
			t.Errorf("%s is not in the closed set", class)
		}
		for _, text := range texts {
			if got := ClassifyAddress(netip.MustParseAddr(text)); got != class {
				t.Errorf("%s: got %s, want %s", text, got, class)
			}
		}
	}
	if got := ClassifyAddress(netip.Addr{}); got != AddressInvalid {
		t.Errorf("no address: got %s", got)
	}
}

func TestGuard(t *testing.T) {
	guard := Guard{Allowed: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8")}}
	tests := []struct {
		addr string
		ok   bool
	}{
		{"8.8.8.8:443", true},
		{"10.1.2.3:80", true},
		{"[::ffff:10.1.2.3]:80", true},
		{"[fd00::1]:80", true},
		{"10.2.0.1:80", false},
		{"127.0.0.1:80", false},
		{"[64:ff9b::10.1.2.3]:80", false}, // the operator allowed the network, not a way around
		{"169.254.169.254:80", false},
		{"[fe80::1%eth0]:80", false},
	}
	for _, test := range tests {
		err := guard.Check(netip.MustParseAddrPort(test.addr))
		if (err == nil) != test.ok || (err != nil && !errors.Is(err, ErrBlockedAddress)) {
			t.Errorf("%s: %v", test.addr, err)
		}
		if got := guard.control(t.Context(), "tcp", test.addr, nil); (got == nil) != test.ok {
			t.Errorf("dial %s: %v", test.addr, got)
		}
	}
	if guard.control(t.Context(), "tcp", "localhost:80", nil) == nil {
		t.Error("an address that cannot be read was let through")
	}
	if guard.Check(netip.AddrPort{}) == nil {
		t.Error("no address was let through")
	}
}
