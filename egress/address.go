package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
)

// AddressClass says what kind of place an address is.
type AddressClass string

// The classes: a closed set.
const (
	AddressPublic        AddressClass = "public"
	AddressInvalid       AddressClass = "invalid"
	AddressUnspecified   AddressClass = "unspecified"   // 0.0.0.0/8, ::
	AddressLoopback      AddressClass = "loopback"      // this machine
	AddressPrivate       AddressClass = "private"       // RFC 1918, unique local, site local
	AddressLinkLocal     AddressClass = "link_local"    // this link
	AddressCGNAT         AddressClass = "cgnat"         // the provider's own, 100.64.0.0/10
	AddressMetadata      AddressClass = "metadata"      // a cloud's metadata service: credentials for the asking
	AddressMulticast     AddressClass = "multicast"     //
	AddressDocumentation AddressClass = "documentation" // nobody's
	AddressReserved      AddressClass = "reserved"      // special purpose, or not given out yet
)

// AddressClasses is the closed set.
func AddressClasses() []AddressClass {
	return []AddressClass{
		AddressPublic, AddressInvalid, AddressUnspecified, AddressLoopback, AddressPrivate, AddressLinkLocal, AddressCGNAT,
		AddressMetadata, AddressMulticast, AddressDocumentation, AddressReserved,
	}
}

// specialAddresses are IANA's special-purpose registries and the clouds' metadata services; the first match decides.
var specialAddresses = []struct {
	prefix netip.Prefix
	class  AddressClass
}{
	{netip.MustParsePrefix("169.254.169.254/32"), AddressMetadata}, // AWS, Azure, Google, and most others
	{netip.MustParsePrefix("169.254.170.0/24"), AddressMetadata},   // AWS ECS and EKS
	{netip.MustParsePrefix("100.100.100.200/32"), AddressMetadata}, // Alibaba
	{netip.MustParsePrefix("168.63.129.16/32"), AddressMetadata},   // Azure's wire server
	{netip.MustParsePrefix("192.0.0.192/32"), AddressMetadata},     // Oracle
	{netip.MustParsePrefix("fd00:ec2::/32"), AddressMetadata},      // AWS
	{netip.MustParsePrefix("fd20:ce::254/128"), AddressMetadata},   // Google

	{netip.MustParsePrefix("0.0.0.0/8"), AddressUnspecified},
	{netip.MustParsePrefix("10.0.0.0/8"), AddressPrivate},
	{netip.MustParsePrefix("100.64.0.0/10"), AddressCGNAT},
	{netip.MustParsePrefix("127.0.0.0/8"), AddressLoopback},
	{netip.MustParsePrefix("169.254.0.0/16"), AddressLinkLocal},
	{netip.MustParsePrefix("172.16.0.0/12"), AddressPrivate},
	{netip.MustParsePrefix("192.0.0.0/24"), AddressReserved},
	{netip.MustParsePrefix("192.0.2.0/24"), AddressDocumentation},
	{netip.MustParsePrefix("192.88.99.0/24"), AddressReserved}, // 6to4 relays
	{netip.MustParsePrefix("192.168.0.0/16"), AddressPrivate},
	{netip.MustParsePrefix("198.18.0.0/15"), AddressReserved}, // benchmarks
	{netip.MustParsePrefix("198.51.100.0/24"), AddressDocumentation},
	{netip.MustParsePrefix("203.0.113.0/24"), AddressDocumentation},
	{netip.MustParsePrefix("224.0.0.0/4"), AddressMulticast},
	{netip.MustParsePrefix("240.0.0.0/4"), AddressReserved},

	{netip.MustParsePrefix("::/128"), AddressUnspecified},
	{netip.MustParsePrefix("::1/128"), AddressLoopback},
	{netip.MustParsePrefix("64:ff9b:1::/48"), AddressPrivate}, // NAT64 of somebody's own
	{netip.MustParsePrefix("2001::/23"), AddressReserved},     // Teredo, ORCHID and others
	{netip.MustParsePrefix("2001:db8::/32"), AddressDocumentation},
	{netip.MustParsePrefix("3fff::/20"), AddressDocumentation},
	{netip.MustParsePrefix("fc00::/7"), AddressPrivate},
	{netip.MustParsePrefix("fe80::/10"), AddressLinkLocal},
	{netip.MustParsePrefix("fec0::/10"), AddressPrivate},
	{netip.MustParsePrefix("ff00::/8"), AddressMulticast},
}

var (
	globalUnicast6 = netip.MustParsePrefix("2000::/3")
	nat64          = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour      = netip.MustParsePrefix("2002::/16")
	compatible4    = netip.MustParsePrefix("::/96")
)

// ClassifyAddress says what kind of place an address is. An IPv6 address that carries an IPv4 one is where that one is.
func ClassifyAddress(addr netip.Addr) AddressClass {
	if !addr.IsValid() {
		return AddressInvalid
	}
	addr = addr.WithZone("").Unmap()
	for _, special := range specialAddresses {
		if special.prefix.Contains(addr) {
			return special.class
		}
	}
	if addr.Is4() {
		return AddressPublic
	}
	if inner, ok := embeddedIPv4(addr); ok {
		if class := ClassifyAddress(inner); class != AddressPublic || !compatible4.Contains(addr) {
			return class
		}
	}
	if !globalUnicast6.Contains(addr) {
		return AddressReserved
	}
	return AddressPublic
}

// embeddedIPv4 is the address behind NAT64, 6to4, or the old IPv4-compatible form.
func embeddedIPv4(addr netip.Addr) (netip.Addr, bool) {
	raw := addr.As16()
	switch {
	case nat64.Contains(addr), compatible4.Contains(addr):
		return netip.AddrFrom4([4]byte(raw[12:16])), true
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(raw[2:6])), true
	case binary.BigEndian.Uint32(raw[8:12])&^0x02000000 == 0x00005efe: // ISATAP
		return netip.AddrFrom4([4]byte(raw[12:16])), true
	}
	return netip.Addr{}, false
}

// ErrBlockedAddress is behind every refusal of the guard.
var ErrBlockedAddress = errors.New("address is not allowed")

// AddressError is a refused address.
type AddressError struct {
	Addr  netip.Addr
	Class AddressClass
}

func (e *AddressError) Error() string {
	return "address " + e.Addr.String() + " is not allowed: " + string(e.Class)
}

// Unwrap makes it an ErrBlockedAddress.
func (e *AddressError) Unwrap() error { return ErrBlockedAddress }

// Guard keeps P11: no request reaches an address that is not public, unless the operator allowed its network.
type Guard struct {
	Allowed []netip.Prefix
}

// Check refuses an address.
func (g Guard) Check(to netip.AddrPort) error {
	addr := to.Addr()
	class := ClassifyAddress(addr)
	if class == AddressPublic {
		return nil
	}
	bare := addr.WithZone("").Unmap()
	for _, network := range g.Allowed {
		if bare.IsValid() && network.Contains(bare) {
			return nil
		}
	}
	return &AddressError{Addr: addr, Class: class}
}

// control checks the address that is about to be dialed: after the name was resolved, so that no resolver's answer,
// however it changes between check and use, leads inside.
func (g Guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return &AddressError{Class: AddressInvalid}
	}
	return g.Check(to)
}
