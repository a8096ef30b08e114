package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/source"
)

const badInputPage = "../../docs/bad-input.md"

// badRow is a row of a table of the page.
type badRow struct {
	line                 int
	input, code, message string
}

// badInputTables reads the tables of the page, by the heading above them.
func badInputTables(t *testing.T) map[string][]badRow {
	t.Helper()
	text, err := os.ReadFile(badInputPage)
	if err != nil {
		t.Fatal(err)
	}
	tables, heading, number := map[string][]badRow{}, "", 0
	for line := range strings.Lines(string(text)) {
		number++
		if title, ok := strings.CutPrefix(line, "## "); ok {
			heading = strings.TrimSpace(title)
		}
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 3 {
			t.Fatalf("docs/bad-input.md:%d has %d cells, want 3", number, len(cells))
		}
		tables[heading] = append(tables[heading], badRow{number, plain(cells[0]), plain(cells[1]), plain(cells[2])})
	}
	return tables
}

// plain is a table's cell without the backticks around it.
func plain(cell string) string {
	cell = strings.TrimSpace(cell)
	ticks := cell[:len(cell)-len(strings.TrimLeft(cell, "`"))]
	return strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(cell, ticks), ticks))
}

// says reports whether a text is what the page says; … stands for any text.
func says(want, got string) bool {
	parts := strings.Split(want, "…")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile(`(?s)^` + strings.Join(parts, ".*") + `$`).MatchString(got)
}

func (r badRow) check(t *testing.T, code, message string) {
	t.Helper()
	if code != r.code || !says(r.message, message) {
		t.Errorf("docs/bad-input.md:%d: %s\n got %s: %s\nwant %s: %s", r.line, r.input, code, message, r.code, r.message)
	}
}

// The page says what the engine says, row by row.
func TestBadInput(t *testing.T) {
	tables := badInputTables(t)
	dir := scenario.DataDir(t)
	badFiles(t, dir)
	for _, heading := range []string{"Configuration", "Certificates and keys"} {
		rows := tables[heading]
		if len(rows) == 0 {
			t.Errorf("no table under %q", heading)
		}
		for _, row := range rows {
			t.Run(heading+"/"+strconv.Itoa(row.line), func(t *testing.T) {
				t.Parallel()
				row.checkConfig(t, dir)
			})
		}
		delete(tables, heading)
	}
	t.Run("calls", func(t *testing.T) {
		t.Parallel()
		d := openBadDoor(t)
		for heading, rows := range tables {
			for _, row := range rows {
				t.Run(heading+"/"+strconv.Itoa(row.line), func(t *testing.T) {
					t.Parallel()
					d.check(t, heading, row)
				})
			}
		}
	})
}

// badFiles makes the files that the rows name.
func badFiles(t *testing.T, dir string) {
	t.Helper()
	ca := scenario.NewCA(t, dir)
	ca.Issue(t, "intake", nil)
	ca.Issue(t, "other", nil)
	ca.Issue(t, "expired", func(c *x509.Certificate) {
		c.NotAfter = time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
		c.NotBefore = c.NotAfter.AddDate(-1, 0, 0)
	})
	ca.Issue(t, "future", func(c *x509.Certificate) {
		c.NotBefore = time.Date(2126, 1, 31, 0, 0, 0, 0, time.UTC)
		c.NotAfter = c.NotBefore.AddDate(1, 0, 0)
	})
	putFile(t, dir, "text.pem", "not a certificate\n")
	putFile(t, dir, "text.key", "not a keyset\n")
	if out, exit := notifyd(t, "keygen", "master", filepath.Join(dir, "open.key")); exit != 0 {
		t.Fatal(out)
	}
	if err := os.Chmod(filepath.Join(dir, "open.key"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func putFile(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkConfig asks serve --check about a file, a variable or a flag. Beside it nobody has to prove who calls, unless the
// row is about that.
func (r badRow) checkConfig(t *testing.T, dir string) {
	name := "row-" + strconv.Itoa(r.line) + ".yaml"
	args, env, file := []string{"serve", "--check", "--config=" + name}, []string(nil), ""
	switch {
	case strings.HasPrefix(r.input, "NOTIFYD_"):
		env = append(env, r.input)
	case strings.HasPrefix(r.input, "--config"):
		args = append(args[:2], strings.Fields(r.input)...)
	case strings.HasPrefix(r.input, "--"):
		args = append(args, r.input)
	default:
		file = strings.ReplaceAll(r.input, "⏎", "\n") + "\n"
	}
	if !strings.Contains(file, "callers") {
		file += "callers: {required: false}\n"
	}
	putFile(t, dir, name, file)
	cmd := exec.CommandContext(t.Context(), engineBinary.Path(), args...)
	cmd.Dir, cmd.Env = dir, append(cmd.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	said := strings.TrimPrefix(strings.TrimSpace(string(out)), "notifyd: ")
	r.check(t, strconv.Itoa(cmd.ProcessState.ExitCode()), strings.NewReplacer(dir+"/", "", name, "notifyd.yaml", "\n", " ⏎ ").Replace(said))
}

// badDoor is an engine as a platform team runs it, and what the rows call it with.
type badDoor struct {
	url          string
	roots        *x509.CertPool
	operator     string
	words        map[string]string // what stands for <words> in a row
	certificates map[string]tls.Certificate
	hmac         source.Secret
}

func openBadDoor(t *testing.T) *badDoor {
	t.Helper()
	dir := scenario.DataDir(t)
	ca := scenario.NewCA(t, dir)
	certFile, keyFile := ca.Issue(t, "intake", nil)
	d := &badDoor{roots: x509.NewCertPool(), words: map[string]string{}, certificates: map[string]tls.Certificate{}}
	pem, err := os.ReadFile(ca.File)
	if err != nil || !d.roots.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	key, operators := operatorKey(t)
	d.operator = key
	file := writeConfig(t, dir, operators+"drain_notice: 0s\nintake: {tls: {cert_file: "+certFile+", key_file: "+keyFile+", client_ca_file: "+ca.File+"}}\n")
	w := serve(t, dir, "--config="+file)
	d.url = strings.Replace(w.Intake, "http:", "https:", 1)

	issue := func(name string, by *scenario.CA, change func(*x509.Certificate)) {
		cert, key := by.Issue(t, name, change, name+".internal")
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		d.certificates[name] = pair
	}
	issue("nobody", ca, nil)
	issue("expired", ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	issue("stranger", scenario.NewCA(t, t.TempDir()), nil)

	client := d.client(nil)
	client.Transport = bearer{d.operator, client.Transport}
	d.fill(t, client)
	return d
}

// fill registers the merchants, sources and keys that the rows speak of.
func (d *badDoor) fill(t *testing.T, client *http.Client) {
	t.Helper()
	ctx := t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	merchants := notifydv1connect.NewMerchantServiceClient(client, d.url)
	for _, m := range []*notifydv1.Merchant{
		{Id: "tea-house", NotifyUrl: "https://tea.example/notify"},
		{Id: "tea-bare", UrlPolicy: &notifydv1.UrlPolicy{HttpsOnly: true, Ports: []uint32{443}}}, // without a notify URL
	} {
		must(merchants.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})))
	}
	sources := notifydv1connect.NewSourceServiceClient(client, d.url)
	makeKey := func(id string, kind notifydv1.SourceKeyKind, until *timestamppb.Timestamp) source.Secret {
		made, err := sources.CreateSourceKey(ctx, connect.NewRequest(&notifydv1.CreateSourceKeyRequest{SourceId: id, Kind: kind, ExpiresAt: until}))
		must(made, err)
		secret, err := source.ParseSecret(made.Msg.Secret)
		must(secret, err)
		return secret
	}
	for _, s := range []*notifydv1.Source{{Id: "pay", Merchants: []string{"tea-*"}}, {Id: "old", Merchants: []string{"*"}}} {
		must(sources.PutSource(ctx, connect.NewRequest(&notifydv1.PutSourceRequest{Source: s})))
	}
	const apiKey, hmac = notifydv1.SourceKeyKind_SOURCE_KEY_KIND_API_KEY, notifydv1.SourceKeyKind_SOURCE_KEY_KIND_HMAC
	revoked := makeKey("pay", apiKey, nil)
	must(sources.RevokeSourceKey(ctx, connect.NewRequest(&notifydv1.RevokeSourceKeyRequest{SourceId: "pay", KeyId: revoked.KeyID})))
	ending := makeKey("pay", apiKey, timestamppb.New(time.Now().Add(time.Second)))
	own, disabled := makeKey("pay", apiKey, nil), makeKey("old", apiKey, nil)
	must(sources.PutSource(ctx, connect.NewRequest(&notifydv1.PutSourceRequest{Source: &notifydv1.Source{Id: "old", Merchants: []string{"*"}, Disabled: true}})))
	d.hmac = makeKey("pay", hmac, nil)
	d.words = map[string]string{
		"API key of pay": own.Reveal(), "revoked API key": revoked.Reveal(), "expired API key": ending.Reveal(), "API key of a disabled source": disabled.Reveal(),
		"HMAC key of pay": d.hmac.Reveal(), "operator's key": d.operator, "key id": d.hmac.KeyID,
	}
	scenario.Within(t, 10*time.Second, "a key has expired", func() bool {
		_, message := d.call(t, "Submit", "{}", "Bearer "+ending.Reveal(), nil)
		return strings.Contains(message, "expired")
	})
	scenario.Within(t, 10*time.Second, "a notification is submitted", func() bool {
		_, message := d.call(t, "Submit", complete(`{"notification": {"requestId": "taken"}}`), "Bearer "+d.operator, nil)
		return message == ""
	})
}

func (d *badDoor) client(certificate *tls.Certificate) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.roots}
	if certificate != nil { // also one that the server does not ask for
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
}

func (d *badDoor) check(t *testing.T, heading string, row badRow) {
	t.Helper()
	if heading == "Credentials" {
		code, message := d.prove(t, row.input)
		row.check(t, code, message)
		return
	}
	method, body, _ := strings.Cut(row.input, " ")
	code, message := d.call(t, method, complete(body), "Bearer "+d.operator, nil)
	row.check(t, code, message)
}

// prove submits with the credential that a row describes.
func (d *badDoor) prove(t *testing.T, credential string) (code, message string) {
	t.Helper()
	submit := complete(`{"notification": {}}`)
	if name, ok := strings.CutPrefix(credential, "certificate: "); ok {
		pair, known := d.certificates[name]
		if !known {
			t.Fatalf("no certificate %q", name)
		}
		return d.call(t, "Submit", submit, "", &pair)
	}
	procedure := "Submit"
	credential, other, elsewhere := strings.Cut(credential, ", calling ")
	if elsewhere {
		procedure = other
	}
	header := strings.TrimPrefix(credential, "authorization: ")
	if header == "nothing" {
		header = ""
	}
	for word, value := range d.words {
		header = strings.ReplaceAll(header, "<"+word+">", value)
	}
	const path = "/notifyd.v1.NotificationService/Submit"
	for word, of := range map[string]struct {
		body string
		at   time.Time
	}{
		"signed yesterday": {submit, time.Now().AddDate(0, 0, -1)}, "signed for another body": {"{}", time.Now()},
	} {
		if strings.Contains(header, "<"+word+">") {
			var err error
			if header, err = d.hmac.SignRequest(http.MethodPost, path, []byte(of.body), of.at); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d.call(t, procedure, submit, header, nil)
}

// complete adds to a notification what is not shown, so that only the row's own mistake is in it.
func complete(body string) string {
	const start = `{"notification": {`
	rest, ok := strings.CutPrefix(body, start)
	if !ok {
		return body
	}
	var given strings.Builder
	for _, field := range []struct{ key, value string }{
		{"source", `"pay"`}, {"requestId", `"r1"`}, {"merchantId", `"tea-house"`}, {"scene", `"payout"`}, {"terminal", `true`}, {"payload", `"{}"`},
	} {
		if !strings.Contains(rest, `"`+field.key+`":`) {
			given.WriteString(`"` + field.key + `": ` + field.value + `, `)
		}
	}
	if strings.HasPrefix(rest, "}") {
		return start + strings.TrimSuffix(given.String(), ", ") + rest
	}
	return start + given.String() + rest
}

// services says where a method is, if not in NotificationService.
var services = []string{"Merchant", "Source"}

// call is a call as curl makes it. Of a list with one item that failed the error is the item's.
func (d *badDoor) call(t *testing.T, method, body, authorization string, certificate *tls.Certificate) (code, message string) {
	t.Helper()
	service := "Notification"
	for _, other := range services {
		if strings.Contains(method, other) {
			service = other
		}
	}
	body = strings.ReplaceAll(body, "<300 KiB>", strings.Repeat("1", 300<<10))
	body = strings.ReplaceAll(body, "<129 characters>", strings.Repeat("x", 129))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+"/notifyd.v1."+service+"Service/"+method, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := d.client(certificate).Do(req)
	if err != nil {
		return "TLS", err.Error()
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	type fault struct{ Code, Message string }
	var said struct {
		fault
		Results []struct{ Error fault }
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return strconv.Itoa(res.StatusCode), strings.TrimSpace(string(raw))
	}
	if len(said.Results) == 1 {
		said.fault = said.Results[0].Error
	}
	return said.Code, said.Message
}
