package contract_test

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"notifyd/contract"
	"notifyd/contract/encode"
	"notifyd/contract/sign"
	"notifyd/merchant"
)

// FuzzContract: whatever somebody sets and submits, nothing panics; what Check lets pass can be made; and what is made is a
// request that HTTP carries as it is, in the format that was set.
func FuzzContract(f *testing.F) {
	f.Add(uint8(1), uint8(0), uint8(5), "$.a", "", "{sorted}", "sign", "", `{"a":10.50}`, "o-1")
	f.Add(uint8(5), uint8(1), uint8(1), "", `{{"a":{$.a|json},"c":{@ciphertext}}}`, "{body}{secret}", "", "v1={signature}", `{"a":"红"}`, "o-1")
	f.Add(uint8(3), uint8(2), uint8(5), "@order_id!", "", "{url}", "", "{signature};{order_id}", `{"a":null}`, "a\r\nb")
	f.Add(uint8(0), uint8(0), uint8(5), "", "", "{$.a.b[0]}:{$['x y']}", "$.more.sign", "", `{"a":{"b":[1]},"more":{}}`, "")
	f.Add(uint8(4), uint8(2), uint8(1), "=]]>", "", "{sorted}&key={secret}", "sign", "", `{"a":"<"}`, "")
	f.Fuzz(func(t *testing.T, format, charset, algorithm uint8, source, template, input, field, value, payload, order string) {
		c := merchant.Contract{Profile: contract.Custom}
		e, s := &c.Encoding, &c.Signer
		e.Format = encode.Formats()[int(format)%len(encode.Formats())]
		e.Charset = append(encode.Charsets(), "")[int(charset)%4]
		if e.Template = template; template != "" {
			e.ContentType = "application/json"
			if e.Charset != "" && charset%2 == 0 {
				c.Encryption = merchant.Encryption{Algorithm: "sm4-gcm", KeyID: "k", AssociatedData: value}
			}
		}
		if source != "" {
			e.Fields = map[string]string{"a": source, field: "$.a"}
		}
		s.Algorithm, s.Input, s.Field = []string{"md5", "hmac-md5", "none"}[algorithm%3], input, field
		if field == "" && s.Algorithm != "none" {
			s.Header, s.HeaderValue = "X-Sign", value
		}
		if s.Algorithm == "none" {
			s.Input, s.Field, e.Headers = "", "", map[string]string{"X-A": value}
		}
		compiled, err := contract.Compile(c)
		if err != nil {
			for _, wrong := range contract.Errors(err) {
				if wrong.Field == "" || wrong.Rule == "" {
					t.Errorf("%v names no field, or no rule", err)
				}
			}
			if len(contract.Errors(err)) == 0 {
				t.Errorf("%v is no list of fields", err)
			}
			return
		}
		keys := contract.Keys{Seal: sign.NewSecret([]byte("0123456789abcdef"))}
		if s.Algorithm != "none" {
			key, _ := sign.SecretKey(sign.NewSecret([]byte("0123456789abcdef")))
			ready, err := compiled.Prepare("k", key)
			if err != nil {
				t.Fatal(err)
			}
			ready.Serial, ready.SerialDecimal = "4E", "78"
			keys.Sign = append(keys.Sign, ready)
		}
		told := goldenTold(payload, 1)
		told.Notification.OrderID = order
		checked := compiled.Check(told.Notification)
		r, err := compiled.Request(t.Context(), told, keys, directly, contract.Options{Trace: true})
		if checked == nil && err != nil {
			t.Fatalf("Check lets pass what Request refuses: %v", err)
		}
		if err == nil {
			carried(t, e.Format, e.Charset, r)
		}
	})
}

func carried(t *testing.T, format, charset string, r contract.Request) {
	t.Helper()
	if _, err := http.NewRequestWithContext(t.Context(), r.Method, r.URL, nil); err != nil {
		t.Fatalf("%q: %v", r.URL, err)
	}
	for _, h := range r.Headers {
		if strings.TrimSpace(h.Value) != h.Value || strings.ContainsFunc(h.Value, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Errorf("header %s: %q is not carried as it is", h.Name, h.Value)
		}
	}
	body := r.Body
	switch {
	case format == encode.FormatForm:
		if _, err := url.ParseQuery(string(body)); err != nil {
			t.Errorf("the form %q: %v", body, err)
		}
	case format == encode.FormatQuery && len(body) > 0:
		t.Errorf("a query with a body, %q", body)
	case charset != "" && charset != "utf-8":
	case format == encode.FormatJSON && !json.Valid(body):
		t.Errorf("the JSON %q", body)
	case format == encode.FormatXML:
		if err := xml.Unmarshal(body, &struct{}{}); err != nil {
			t.Errorf("the XML %q: %v", body, err)
		}
	}
}

// FuzzProfiles: the same for any payload with each profile.
func FuzzProfiles(f *testing.F) {
	for i, g := range goldens() {
		f.Add(uint8(i), []byte(g.payload), "application/json", "TRANSACTION.SUCCESS")
	}
	f.Add(uint8(2), []byte(`{"sign":"x"}`), "", "")
	f.Add(uint8(9), []byte(`{"notificationItems":[]}`), "", "")
	f.Fuzz(func(t *testing.T, which uint8, payload []byte, contentType, event string) {
		g := goldens()[int(which)%len(goldens())]
		c, err := contract.Compile(g.settings)
		if err != nil {
			t.Fatal(err)
		}
		told := goldenTold(string(payload), 1)
		told.Notification.ContentType, told.Notification.EventType = contentType, event
		checked := c.Check(told.Notification)
		r, err := c.Request(t.Context(), told, g.keys(t, c), directly, contract.Options{Trace: true})
		if (checked == nil) != (err == nil) {
			t.Fatalf("Check says %v, Request says %v", checked, err)
		}
		if err == nil && len(r.Signed) == 0 {
			t.Error("nothing is signed")
		}
	})
}
