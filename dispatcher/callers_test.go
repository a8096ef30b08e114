package dispatcher

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/source"
)

// Whoever adds an RPC says here who may call it.
func TestEveryRPCIsDecided(t *testing.T) {
	const sources, operators = "sources", "operators"
	decided := map[string]string{
		"NotificationService/Submit": sources, "NotificationService/SubmitBatch": sources, "NotificationService/SubmitStream": sources, "NotificationService/GetNotification": sources,
		"NotificationService/ListNotifications": sources, "NotificationService/GetBatch": sources, "NotificationService/CancelNotifications": sources,
		"NotificationService/Explain": sources, "NotificationService/ResendNotifications": operators, "NotificationService/Prove": operators,
		"MerchantService/PutMerchant": operators, "MerchantService/GetMerchant": operators, "MerchantService/ListMerchants": operators,
		"MerchantService/PauseMerchant": operators, "MerchantService/ResumeMerchant": operators, "MerchantService/TestMerchant": operators,
		"MerchantService/ListKeys": operators, "MerchantService/ForceBreaker": operators,
		"SourceService/PutSource": operators, "SourceService/GetSource": operators, "SourceService/ListSources": operators,
		"AccessService/PutRule": operators, "AccessService/DeleteRule": operators, "AccessService/ListRules": operators,
		"AccessService/GetPolicy": operators, "AccessService/PutPolicy": operators, "AccessService/ListChanges": operators,
		"KeyService/ImportKey": operators, "KeyService/GenerateKey": operators, "KeyService/RotateKey": operators, "KeyService/RetireKey": operators,
		"KeyService/GetKey": operators, "KeyService/ListKeys": operators, "KeyService/ListKeyChanges": operators, "KeyService/GetMasterKeys": operators,
		"SourceService/CreateSourceKey": operators, "SourceService/RevokeSourceKey": operators,
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("notifyd.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				name := string(service.Name()) + "/" + string(method.Name())
				allowed := authorise(Caller{Source: "pay"}, "/notifyd.v1."+name) == nil
				if want, known := decided[name]; !known || allowed != (want == sources) {
					t.Errorf("%s: sources may call it: %v; decided: %q", name, allowed, want)
				}
				if sourceCalls["/notifyd.v1."+name] && (method.IsStreamingClient() || method.IsStreamingServer()) {
					t.Errorf("%s: is a stream, which no signature covers", name)
				}
			}
		}
		return true
	})
	if authorise(Caller{Source: "pay"}, "/notifyd.v1.NewService/New") == nil || authorise(Caller{Source: "pay"}, "/metrics") == nil {
		t.Error("what is in no table is open to sources")
	}
}

// Each way to prove who calls, over each protocol, for calls of each sort.
func TestWhoMayCallWhat(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, signing := f.pay(t)
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			for who, c := range map[string]struct {
				prove                 prover
				submits, puts, proves connect.Code
			}{
				"operator": {prove: bearer(operatorKey)},
				"API key":  {prove: bearer(api.Reveal()), puts: connect.CodePermissionDenied, proves: connect.CodePermissionDenied},
				"HMAC key": {prove: signed(signing.Reveal(), f.clock.now), puts: connect.CodeUnauthenticated, proves: connect.CodeUnauthenticated},
				"nobody":   {prove: nobody, submits: connect.CodeUnauthenticated, puts: connect.CodeUnauthenticated, proves: connect.CodeUnauthenticated},
			} {
				want := func(what string, err error, code connect.Code) {
					t.Helper()
					if (err == nil) != (code == 0) || err != nil && connect.CodeOf(err) != code {
						t.Errorf("%s, %s: %v, want %v", who, what, err, code)
					}
				}
				caller := f.client(t, c.prove, options...)
				_, err := caller.submit(t, payment(name+who, final))
				want("Submit", err, c.submits)
				_, err = got(caller.notifications.Explain(t.Context(), connect.NewRequest(&notifydv1.ExplainRequest{Notification: payment(name+who, final)})))
				want("Explain", err, c.submits)
				_, err = caller.sources.GetSource(t.Context(), connect.NewRequest(&notifydv1.GetSourceRequest{Id: "pay"}))
				want("GetSource", err, c.puts)
				_, err = caller.merchants.GetMerchant(t.Context(), connect.NewRequest(&notifydv1.GetMerchantRequest{Id: "m"}))
				want("GetMerchant", err, c.puts)
				_, err = caller.notifications.ResendNotifications(t.Context(), connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{"x"}}))
				want("ResendNotifications", err, c.puts)
				stream, err := caller.notifications.Prove(t.Context(), connect.NewRequest(&notifydv1.ProveRequest{}))
				if err == nil {
					for stream.Receive() {
					}
					err = stream.Err()
					_ = stream.Close()
				}
				want("Prove", err, c.proves)
			}
		})
	}
}

// Reflection says nothing of anybody: whoever is let in may ask.
func TestReflection(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, _ := f.pay(t)
	for who, c := range map[string]struct {
		prove prover
		code  connect.Code
	}{
		"operator": {bearer(operatorKey), 0}, "source": {bearer(api.Reveal()), 0}, "nobody": {nobody, connect.CodeUnauthenticated},
	} {
		stream := grpcreflect.NewClient(f.client(t, c.prove).http, f.url, connect.WithGRPC()).NewStream(t.Context())
		_, err := stream.ListServices()
		_, _ = stream.Close()
		if (err == nil) != (c.code == 0) || err != nil && connect.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %v", who, err, c.code)
		}
	}
}

// Where callers need not prove who they are they may do everything, but a credential that is given counts.
func TestNotRequired(t *testing.T) {
	f := newFront(t, CallersConfig{})
	api, _ := f.pay(t)
	for _, id := range []string{"pay", "nobody registered"} {
		if _, err := f.client(t, nobody).submit(t, payment("a", final, from(id))); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if _, err := got(f.client(t, nobody).sources.GetSource(t.Context(), connect.NewRequest(&notifydv1.GetSourceRequest{Id: "pay"}))); err != nil {
		t.Error(err)
	}
	_, err := got(f.client(t, bearer(api.Reveal())).sources.GetSource(t.Context(), connect.NewRequest(&notifydv1.GetSourceRequest{Id: "pay"})))
	wantError(t, "a source", err, connect.CodePermissionDenied, `/notifyd.v1.SourceService/GetSource: is for operators, not for source "pay"`, "")
	_, err = f.client(t, bearer(source.NewSecret(source.KindAPIKey).Reveal())).submit(t, payment("a", final))
	wantError(t, "a wrong key", err, connect.CodeUnauthenticated, "the credential is not valid", "")
	_, err = f.client(t, nobody).submit(t, payment("b", final, to("elsewhere")))
	wantError(t, "rules of the source that is named", err, connect.CodePermissionDenied, `"elsewhere": is none of the merchants that source "pay" may submit for`, "notification.merchant_id")
}

// What is wrong with a credential, what its sender is told, and what the log says.
func TestBadCredentials(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, signing := f.pay(t)
	expired := f.key(t, "pay", source.KindAPIKey, func(k *source.Key) { k.ExpiresAt = f.clock.now() })
	expiredHMAC := f.key(t, "pay", source.KindHMAC, func(k *source.Key) { k.ExpiresAt = f.clock.now() })
	revoked := f.key(t, "pay", source.KindAPIKey)
	f.put(t, f.sources.Get("pay").WithoutKeys(func(k source.Key) bool { return k.ID == revoked.KeyID }))
	f.put(t, &source.Source{ID: "off", Merchants: []string{"*"}, Disabled: true})
	disabled := f.key(t, "off", source.KindAPIKey)

	forged := source.NewSecret(source.KindAPIKey).Reveal()
	forged = "nk_" + api.KeyID + forged[strings.LastIndexByte(forged, '_'):]
	asHMAC := "nh" + api.Reveal()[2:]
	asAPI := "nk" + signing.Reveal()[2:]
	otherAlice, _, err := NewOperatorKey("alice")
	must(t, err)
	at := func(d time.Duration) func() time.Time { return func() time.Time { return f.clock.now().Add(d) } }
	// tampered signs another request than it sends.
	tampered := func(change func(*http.Request)) prover {
		return func(req *http.Request) error {
			defer change(req)
			return signed(signing.Reveal(), f.clock.now)(req)
		}
	}
	const invalid, badForm = "the credential is not valid", "authorization: parse signature: "

	for name, c := range map[string]struct {
		prove prover
		told  string // to the caller
		why   string // in the log; empty: the same
		keyID string
	}{
		"nothing":                     {nobody, "no credential: send authorization: Bearer <key>, sign the request, or use a client certificate", "", ""},
		"two headers":                 {header("Bearer "+api.Reveal(), "Bearer "+api.Reveal()), "authorization: is given 2 times: give it once", "", ""},
		"an empty header":             {header(""), "authorization: want Bearer <key>, or NOTIFYD-HMAC-SHA256", "", ""},
		"basic":                       {header("Basic cGF5OnBheQ=="), "authorization: want Bearer <key>, or NOTIFYD-HMAC-SHA256", "", ""},
		"a key without a scheme":      {header(api.Reveal()), "authorization: want Bearer <key>, or NOTIFYD-HMAC-SHA256", "", ""},
		"bearer of nothing":           {bearer(""), invalid, "parse key: want nk_ or nh_", ""},
		"no key of ours":              {bearer("eyJhbGciOi"), invalid, "parse key: want nk_ or nh_", ""},
		"unknown key":                 {bearer(source.NewSecret(source.KindAPIKey).Reveal()), invalid, "there is no such key, or no longer", "*"},
		"revoked key":                 {bearer(revoked.Reveal()), invalid, "there is no such key, or no longer", revoked.KeyID},
		"wrong secret":                {bearer(forged), invalid, `not the secret of this key of source "pay"`, api.KeyID},
		"HMAC secret sent":            {bearer(signing.Reveal()), invalid, "the secret of an HMAC key was sent, instead of a signature: revoke it", signing.KeyID},
		"HMAC key as an API key":      {bearer(asAPI), invalid, "it is an HMAC key, used as an API key", signing.KeyID},
		"expired key":                 {bearer(expired.Reveal()), "key " + expired.KeyID + " has expired at ", "", expired.KeyID},
		"disabled source":             {bearer(disabled.Reveal()), `source "off" is disabled`, "", disabled.KeyID},
		"operator's wrong key":        {bearer(otherAlice), invalid, `no such key of an operator "alice"`, ""},
		"operator nobody knows":       {bearer("no_mallory_x"), invalid, `no such key of an operator "mallory"`, ""},
		"operator without a name":     {bearer("no_"), invalid, `no such key of an operator ""`, ""},
		"operator's key cut short":    {bearer(operatorKey[:len(operatorKey)-1]), invalid, `no such key of an operator "alice"`, ""},
		"API key that signs":          {signed(asHMAC, f.clock.now), invalid, "it is an API key, used to sign", api.KeyID},
		"unknown HMAC key":            {signed(source.NewSecret(source.KindHMAC).Reveal(), f.clock.now), invalid, "there is no such key, or no longer", "*"},
		"wrong HMAC secret":           {signed("nh_"+signing.KeyID+forged[strings.LastIndexByte(forged, '_'):], f.clock.now), invalid, `not the signature of this key of source "pay"`, signing.KeyID},
		"expired HMAC key":            {signed(expiredHMAC.Reveal(), f.clock.now), "key " + expiredHMAC.KeyID + " has expired at ", "", expiredHMAC.KeyID},
		"signed long ago":             {signed(signing.Reveal(), at(-source.Tolerance-2*time.Second)), "authorization: timestamp: ", "is more than 5m0s away from", ""},
		"signed in the future":        {signed(signing.Reveal(), at(source.Tolerance+2*time.Second)), "authorization: timestamp: ", "is more than 5m0s away from", ""},
		"body changed":                {tampered(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{}`)); r.ContentLength = 2 }), invalid, `not the signature of this key of source "pay"`, signing.KeyID},
		"path changed":                {tampered(func(r *http.Request) { r.URL.Path = notifydv1connect.NotificationServiceExplainProcedure }), invalid, `not the signature of this key of source "pay"`, signing.KeyID},
		"query added":                 {tampered(func(r *http.Request) { r.URL.RawQuery = "a=b" }), "authorization: the signature does not cover a query: send none", "", ""},
		"signature that is none":      {header("NOTIFYD-HMAC-SHA256 key=x"), badForm + "key: want the key's id", "", ""},
		"signature with a realm":      {header("NOTIFYD-HMAC-SHA256 realm=x"), badForm + "want key, timestamp and signature, and nothing else", "", ""},
		"signature without a time":    {header("NOTIFYD-HMAC-SHA256 key=" + signing.KeyID), badForm + "timestamp: want seconds since 1970", "", ""},
		"signature that is cut short": {header("NOTIFYD-HMAC-SHA256 key=" + signing.KeyID + ",timestamp=1,signature=AAAA"), badForm + "signature: want the base64 of 32 bytes", "", ""},
		"signature of zeros": {
			header(fmt.Sprintf("NOTIFYD-HMAC-SHA256 key=%s,timestamp=%d,signature=%s", signing.KeyID, f.clock.now().Unix(), base64.StdEncoding.EncodeToString(make([]byte, 32)))),
			invalid, `not the signature of this key of source "pay"`, signing.KeyID,
		},
	} {
		for protocol, options := range protocols {
			f.clock.advance(time.Second) // the log takes one line a second
			f.lines.TakeAll()
			_, err := f.client(t, c.prove, options...).submit(t, payment(name, final))
			wantError(t, name+" over "+protocol, err, connect.CodeUnauthenticated, c.told, "")
			lines := f.lines.TakeAll()
			if len(lines) != 1 {
				t.Errorf("%s: %d lines in the log", name, len(lines))
				continue
			}
			fields := lines[0].ContextMap()
			if why, want := fmt.Sprint(fields["why"]), cmp.Or(c.why, c.told); !strings.Contains(why, want) {
				t.Errorf("%s: the log says %q, want %q", name, why, want)
			}
			if id := fields["key_id"]; id != c.keyID && (c.keyID != "*" || id == "") {
				t.Errorf("%s: the log names key %q, want %q", name, id, c.keyID)
			}
			for _, secret := range []string{api.Reveal(), signing.Reveal(), forged, operatorKey, otherAlice} {
				if part := secret[strings.LastIndexByte(secret, '_')+1:]; strings.Contains(fmt.Sprint(fields, err), part) {
					t.Errorf("%s: a secret is shown: %v, %v", name, fields, err)
				}
			}
		}
	}
	if _, err := f.client(t, bearer(api.Reveal())).submit(t, payment("good", final)); err != nil {
		t.Errorf("a good key: %v", err)
	}
}

// A signed request that is played again does nothing new (Tolerance says why no nonces are kept).
func TestReplayDoesNothing(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	_, signing := f.pay(t)
	at := f.clock.now()
	caller := f.client(t, signed(signing.Reveal(), func() time.Time { return at }))
	first, err := caller.submit(t, payment("a", final))
	must(t, err)
	f.clock.advance(source.Tolerance - time.Second) // the timestamp has whole seconds
	again, err := caller.submit(t, payment("a", final))
	if err != nil || !again.Duplicate || again.Id != first.Id {
		t.Errorf("played again: %v, %v", again, err)
	}
}

// Refusals do not flood the log, and the next line says how many are not in it.
func TestRefusalsInTheLog(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	caller := f.client(t, nobody)
	for range 50 {
		_, _ = caller.submit(t, payment("a"))
	}
	if n := f.lines.Len(); n != 10 {
		t.Errorf("%d lines of 50 refusals, want 10", n)
	}
	f.clock.advance(time.Second)
	f.lines.TakeAll()
	_, _ = caller.submit(t, payment("a"))
	lines := f.lines.TakeAll()
	if len(lines) != 1 || lines[0].ContextMap()["not_logged"] != int64(40) {
		t.Errorf("a second later: %+v", lines)
	}
}

// subjectOf is a subject of these parts, in their order.
func subjectOf(t *testing.T, parts ...pkix.Name) []byte {
	t.Helper()
	var subject pkix.RDNSequence
	for _, part := range parts {
		subject = append(subject, part.ToRDNSequence()...)
	}
	raw, err := asn1.Marshal(subject)
	must(t, err)
	return raw
}

// Client certificates over real TLS.
func TestCertificates(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, _ := f.pay(t)
	payWithNames := *f.sources.Get("pay")
	payWithNames.Certificates = []string{"dns:pay.example", "uri:spiffe://example/pay", "subject:CN=pay,O=Example"}
	f.put(t, &payWithNames)
	f.put(t, &source.Source{ID: "other", Merchants: []string{"*"}, Certificates: []string{"dns:other.example"}})
	f.put(t, &source.Source{ID: "off", Merchants: []string{"*"}, Certificates: []string{"dns:off.example"}, Disabled: true})
	ours, strangers := newAuthority(t), newAuthority(t)
	address := f.overTLS(t, ours)
	dns := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = names }
	}
	const invalid = "the credential is not valid"
	for name, c := range map[string]struct {
		by    *authority
		names func(*x509.Certificate)
		prove prover
		told  string // empty: it is let in; "-": there is no connection
		why   string
	}{
		"dns":                      {ours, dns("pay.example"), nobody, "", ""},
		"uri":                      {ours, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/pay"}} }, nobody, "", ""},
		"subject":                  {ours, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "pay", Organization: []string{"Example"}} }, nobody, "", ""},
		"subject of another order": {ours, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "pay"} }, nobody, invalid, `no source has a certificate of these names: "subject:CN=pay"`},
		"subject of another behind a name of its own": {ours, func(c *x509.Certificate) {
			c.RawSubject = subjectOf(t, pkix.Name{CommonName: "attacker"}, pkix.Name{Organization: []string{"Example"}}, pkix.Name{CommonName: "pay"})
		}, nobody, invalid, `no source has a certificate of these names: "subject:CN=pay,O=Example,CN=attacker"`},
		"unknown":           {ours, dns("x.example"), nobody, invalid, `no source has a certificate of these names: "dns:x.example subject:CN=caller"`},
		"two sources":       {ours, dns("pay.example", "other.example"), nobody, invalid, "the certificate proves several sources"},
		"another source":    {ours, dns("other.example"), nobody, `notification.source: "pay": the caller is source "other", which submits as itself only`, ""},
		"disabled":          {ours, dns("off.example"), nobody, `source "off" is disabled`, ""},
		"another authority": {strangers, dns("pay.example"), nobody, "-", ""},
		"expired": {ours, func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"pay.example"}, time.Now().Add(-time.Hour)
		}, nobody, "-", ""},
		"with its own key":                  {ours, dns("pay.example"), bearer(api.Reveal()), "", ""},
		"unknown, with a key":               {ours, dns("x.example"), bearer(api.Reveal()), "", ""},
		"with another source's key":         {ours, dns("other.example"), bearer(api.Reveal()), invalid, `the certificate proves source "other", the header source "pay"`},
		"with an operator's key":            {ours, dns("other.example"), bearer(operatorKey), invalid, `the certificate proves source "other", the header operator alice`},
		"good, with a key that is not":      {ours, dns("pay.example"), bearer("nk_x"), invalid, "parse key"},
		"unknown, with an operator's key":   {ours, dns("x.example"), bearer(operatorKey), "", ""},
		"a name in the common name, no SAN": {ours, func(c *x509.Certificate) { c.Subject.CommonName = "pay.example" }, nobody, invalid, "no source has a certificate"},
	} {
		for protocol, options := range protocols {
			f.clock.advance(time.Second)
			f.lines.TakeAll()
			_, err := newClient(t, address, c.by.transport(t, c.names), c.prove, options...).submit(t, payment(name, final))
			switch {
			case c.told == "" && err != nil, c.told == "-" && (err == nil || f.lines.Len() > 0): // its code depends on when the connection breaks
				t.Errorf("%s over %s: %v", name, protocol, err)
			case c.told != "" && c.told != "-" && (err == nil || !strings.Contains(err.Error(), c.told)):
				t.Errorf("%s over %s: %v, want %q", name, protocol, err, c.told)
			}
			if lines := f.lines.TakeAll(); c.why != "" && (len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0].ContextMap()["why"]), c.why)) {
				t.Errorf("%s over %s: the log says %v, want %q", name, protocol, lines, c.why)
			}
		}
	}
}

// A certificate that ends while its connection lives is not good any more.
func TestCertificateEndsWithinItsConnection(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"m"}, Certificates: []string{"dns:pay.example"}})
	ours := newAuthority(t)
	caller := newClient(t, f.overTLS(t, ours), ours.transport(t, func(c *x509.Certificate) { c.DNSNames = []string{"pay.example"} }), nobody)
	_, err := caller.submit(t, payment("a", final))
	must(t, err)
	f.clock.advance(2 * time.Hour)
	_, err = caller.submit(t, payment("b", final))
	wantError(t, "an hour after its end", err, connect.CodeUnauthenticated, "the credential is not valid", "")
	if lines := f.lines.TakeAll(); len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0].ContextMap()["why"]), `the certificate of source "pay" has expired at `) {
		t.Errorf("the log says %v", lines)
	}
}

// A source's bound on a request holds whichever way it proves itself, in each protocol, whether it tells the length or not.
func TestLongRequests(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"*"}, Limits: source.Limits{MaxRequestBytes: 4096}})
	api, signing := f.key(t, "pay", source.KindAPIKey), f.key(t, "pay", source.KindHMAC)
	long := func(p *notifydv1.Notification) { p.Payload = `"` + strings.Repeat("a", 5000) + `"` }
	for protocol, options := range protocols {
		if protocol == "connect gzip" { // is short on the wire
			continue
		}
		for who, c := range map[string]struct {
			prove prover
			told  string
		}{
			"API key": {bearer(api.Reveal()), `the request has more than 4096 bytes, the most that source "pay" may send`},
			"HMAC":    {signed(signing.Reveal(), f.clock.now), "the request is too long"},
		} {
			caller := f.client(t, c.prove, options...)
			_, err := caller.submit(t, payment(protocol+who, final, long))
			wantError(t, who+" over "+protocol, err, connect.CodeResourceExhausted, c.told, "")
			if _, err := caller.submit(t, payment(protocol+who, final)); err != nil {
				t.Errorf("%s over %s: a short one: %v", who, protocol, err)
			}
		}
		if _, err := f.client(t, bearer(operatorKey), options...).submit(t, payment(protocol, final, long)); err != nil {
			t.Errorf("an operator over %s: %v", protocol, err)
		}
	}
}

// A reload counts from the next call on; one that is wrong changes nothing.
func TestConfigureCallers(t *testing.T) {
	cfg, first := alice(t)
	next, second := alice(t)
	f := newFront(t, cfg)
	lets := func(key string) bool {
		_, err := got(f.client(t, bearer(key)).sources.ListSources(t.Context(), connect.NewRequest(&notifydv1.ListSourcesRequest{})))
		return err == nil
	}
	both := CallersConfig{Required: true, Operators: append(cfg.Operators, next.Operators...)}
	for _, c := range []struct {
		cfg           CallersConfig
		wrong         bool
		first, second bool
	}{
		{cfg, false, true, false}, {both, false, true, true}, {CallersConfig{Required: true}, true, true, true}, {next, false, false, true},
	} {
		if err := f.callers.Configure(c.cfg); (err != nil) != c.wrong {
			t.Errorf("%+v: %v", c.cfg, err)
		}
		if lets(first) != c.first || lets(second) != c.second {
			t.Errorf("%+v: the first key is good: %v, the second: %v", c.cfg, lets(first), lets(second))
		}
	}
}

func TestCallersConfig(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	one := func(name, sum string) CallersConfig {
		return CallersConfig{Required: true, Operators: []Operator{{name, sum}}}
	}
	for want, cfg := range map[string]CallersConfig{
		"":                            one("alice@example_1", hash),
		"callers.operators: is empty": {Required: true},
		`callers.operators[0].name: "": must have 1 to 64 characters`:                         one("", hash),
		`callers.operators[0].name: "a b": only letters, digits and . _ - @ are allowed`:      one("a b", hash),
		`callers.operators[0].key_sha256: want the SHA-256 of the key, 64 hexadecimal digits`: one("a", hash[1:]),
		`callers.operators[0].key_sha256: want the SHA-256 of the key, 64 hexadecimal digit`:  one("a", "no_a_secret"),
		`callers.operators[1]: "a" has this key twice`:                                        {Operators: []Operator{{"a", hash}, {"a", strings.ToUpper(hash)}}},
	} {
		if err := cfg.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
	if err := (CallersConfig{}).Validate(); err != nil {
		t.Error(err)
	}
}

// An operator's key is its own proof, whatever is in the name.
func TestOperatorKeys(t *testing.T) {
	for _, name := range []string{"alice", "a_b", "_", "no_x", "a@example.com"} {
		key, hash, err := NewOperatorKey(name)
		must(t, err)
		keys := newOperatorKeys([]Operator{{name, hash}, {"bob", hash}})
		if as, proven := keys.prove(key); !proven || as != name {
			t.Errorf("%q: %q, %v", name, as, proven)
		}
		for _, wrong := range []string{key + "a", key[:len(key)-1], strings.Replace(key, name, "bob", 1), "", "no_", "no_" + name, "no_" + name + "_"} {
			if _, proven := keys.prove(wrong); proven {
				t.Errorf("%q: %q passes", name, wrong)
			}
		}
	}
	if _, _, err := NewOperatorKey("a b"); err == nil {
		t.Error("a name with a space is taken")
	}
}
