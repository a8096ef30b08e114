package egress

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"notifyd/merchant"
)

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	bad := Config{AllowedNetworks: []netip.Prefix{{}}, TotalTimeout: time.Hour}
	err := bad.Validate()
	for _, name := range []string{"connect_timeout", "tls_timeout", "total_timeout", "idle_timeout", "max_response_bytes", "max_idle_connections", "max_idle_per_merchant", "allowed_networks"} {
		if err == nil || !strings.Contains(err.Error(), "egress."+name) {
			t.Errorf("%s is not named: %v", name, err)
		}
	}
	if _, err := New(bad, nil); err == nil {
		t.Error("a client was made of it")
	}
}

func TestTimeouts(t *testing.T) {
	config := DefaultConfig()
	got := config.timeouts(merchant.Timeouts{})
	if got.FirstByte != 10*time.Second || got.Total != 10*time.Second || got.Grace != 5*time.Second || got.Connect != 3*time.Second || got.TLS != 5*time.Second {
		t.Errorf("defaults: %+v", got)
	}
	got = config.timeouts(merchant.Timeouts{Total: 4 * time.Second, NoGrace: true, FirstByte: 5 * time.Second})
	if got.FirstByte != 4*time.Second || got.Total != 4*time.Second || got.Grace != 0 {
		t.Errorf("a merchant's own: %+v", got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := cache[int]{limit: 3}
	for i := range 100 {
		c.put(string(rune('a'+i)), i)
		if v, ok := c.get(string(rune('a' + i))); !ok || v != i || len(c.known) > 3 {
			t.Fatalf("%d: %d %t, %d known", i, v, ok, len(c.known))
		}
	}
}
