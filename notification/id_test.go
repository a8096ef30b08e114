package notification_test

import (
	"fmt"
	"testing"
	"time"

	"notifyd/notification"
)

func TestIDTextParsesBack(t *testing.T) {
	n := notification.Notification{Source: "pay", RequestID: "r-1"}
	id := n.DeriveID()
	back, err := notification.ParseID(id.String())
	if err != nil || back != id {
		t.Fatalf("ParseID(%q) = %v, %v", id, back, err)
	}
	if id.String() != n.DeriveID().String() {
		t.Fatal("the same submission has two ids")
	}
}

func TestParseIDRefuses(t *testing.T) {
	for _, text := range []string{"", "ntf_", "ntf_aaaaaaaaaaaaaaaaaaaaaaaaab", "NTF_aaaaaaaaaaaaaaaaaaaaaaaaaa", "ntf_aaaaaaaaaaaaaaaaaaaaaaaaa1", "msg_aaaaaaaaaaaaaaaaaaaaaaaaaa", "ntf_aaaaaaaaaaaaaaaaaaaaaaaaa\n"} {
		if _, err := notification.ParseID(text); err == nil {
			t.Errorf("ParseID(%q) took it", text)
		}
	}
}

// Fields are length-prefixed: moving a character over a field's border makes another id.
func TestDeriveIDSeparatesFields(t *testing.T) {
	seen := map[notification.ID]notification.Notification{}
	for _, n := range []notification.Notification{
		{Source: "a", RequestID: "bc"},
		{Source: "ab", RequestID: "c"},
		{Source: "a", MerchantID: "b", OrderID: "c", EventType: "d"},
		{Source: "a", MerchantID: "bc", OrderID: "", EventType: "d"},
		{Source: "a", MerchantID: "b", OrderID: "c", EventType: "d", StatusVersion: 1},
	} {
		id := n.DeriveID()
		if other, ok := seen[id]; ok {
			t.Errorf("%+v and %+v share an id", n, other)
		}
		seen[id] = n
	}
}

func TestContentDigestSeesEveryField(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	base := func() notification.Notification {
		return notification.Notification{MerchantID: "m", Body: []byte(`{"a":1}`), Labels: map[string]string{"k": "v"}}
	}
	plain := base()
	want := plain.ContentDigest()
	changes := map[string]func(*notification.Notification){
		"merchant":     func(n *notification.Notification) { n.MerchantID = "x" },
		"app":          func(n *notification.Notification) { n.AppID = "x" },
		"scene":        func(n *notification.Notification) { n.Scene = "x" },
		"event type":   func(n *notification.Notification) { n.EventType = "x" },
		"order":        func(n *notification.Notification) { n.OrderID = "x" },
		"order status": func(n *notification.Notification) { n.OrderStatus = "x" },
		"terminal":     func(n *notification.Notification) { n.Terminal = true },
		"version":      func(n *notification.Notification) { n.StatusVersion = 2 },
		"batch":        func(n *notification.Notification) { n.BatchID = "x" },
		"url":          func(n *notification.Notification) { n.NotifyURL = "x" },
		"body":         func(n *notification.Notification) { n.Body = []byte(`{"a": 1}`) },
		"content type": func(n *notification.Notification) { n.ContentType = "x" },
		"currency":     func(n *notification.Notification) { n.Amount.Currency = "CNY" },
		"amount":       func(n *notification.Notification) { n.Amount.MinorUnits = 1 },
		"occurred":     func(n *notification.Notification) { n.OccurredAt = at },
		"order time":   func(n *notification.Notification) { n.OrderCreatedAt = at },
		"not before":   func(n *notification.Notification) { n.NotBefore = at },
		"expires":      func(n *notification.Notification) { n.ExpiresAt = at },
		"ordering":     func(n *notification.Notification) { n.OrderingKey = "x" },
		"supersede":    func(n *notification.Notification) { n.SupersedeKey = "x" },
		"label value":  func(n *notification.Notification) { n.Labels["k"] = "w" },
		"label":        func(n *notification.Notification) { n.Labels["l"] = "v" },
		"lane":         func(n *notification.Notification) { n.RequestedLane = notification.LaneSync },
	}
	for name, change := range changes {
		n := base()
		change(&n)
		if n.ContentDigest() == want {
			t.Errorf("%s does not change the digest", name)
		}
	}
	renamed := base()
	renamed.RequestID, renamed.Source = "another", "name"
	if renamed.ContentDigest() != want {
		t.Error("the name of the submission is not content")
	}
}

// What is kept for as long as the ledger keeps it, and what lies in queues, is found again by the next version: none of these may
// ever be another.
func TestNamesStay(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 0, 0, 123_456_000, time.UTC)
	full := notification.Notification{
		Source: "billing", RequestID: "r-1", MerchantID: "my-shop", AppID: "app", Scene: "recharge", EventType: "paid", OrderID: "A-1", OrderStatus: "SUCCESS",
		Terminal: true, StatusVersion: 7, BatchID: "b", NotifyURL: "https://x.example/n", Body: []byte(`{"支付":10.50}`), ContentType: "application/json",
		Amount: notification.Amount{Currency: "CNY", MinorUnits: 1050}, OccurredAt: at, OrderCreatedAt: at.Add(-time.Hour), NotBefore: at.Add(time.Hour), ExpiresAt: at.Add(24 * time.Hour),
		OrderingKey: "o", SupersedeKey: "s", Labels: map[string]string{"b": "2", "a": "1"}, RequestedLane: notification.LaneSync,
	}
	byOrder := notification.Notification{Source: "billing", MerchantID: "my-shop", OrderID: "A-1", EventType: "paid", StatusVersion: -1, Body: []byte("{}")}
	for _, c := range []struct {
		n          notification.Notification
		id, digest string
	}{
		{full, "ntf_qjglklcjm3pdobmajlkrt7q7hi", "c22b236835b734afe59e5cf8708b57691c36d1fd89f3f2b8f2c3b76789936bd0"},
		{byOrder, "ntf_xvyvo3qsn2nezpzcqfnnfujalq", "52eb68df8acd00a5aac31de337e65cc28ce4c89eeb921abf3b31296262271739"},
	} {
		if id := c.n.DeriveID().String(); id != c.id {
			t.Errorf("the id is %s, was %s", id, c.id)
		}
		if digest := fmt.Sprintf("%x", c.n.ContentDigest()); digest != c.digest {
			t.Errorf("the digest is %s, was %s", digest, c.digest)
		}
	}
}

func TestClosedSetsParseBack(t *testing.T) {
	for _, s := range notification.States() {
		if back, err := notification.ParseState(s.String()); err != nil || back != s {
			t.Errorf("ParseState(%q) = %v, %v", s, back, err)
		}
	}
	seen := map[notification.Reason]bool{}
	for _, r := range notification.Reasons() {
		if seen[r] {
			t.Errorf("reason %q stands twice", r)
		}
		seen[r] = true
	}
	if _, err := notification.ParseState("failed"); err == nil {
		t.Error("ParseState took a word outside the set")
	}
}
