package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/alecthomas/kong"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// fakeKeys has two pages of one name each, and keeps what it was asked to do.
type fakeKeys struct {
	notifydv1connect.UnimplementedKeyServiceHandler
	imported *notifydv1.ImportedKey
	rotated  *notifydv1.RotateKeyRequest
	masters  []*notifydv1.MasterKey
	fail     error
}

func serveKeys(t *testing.T, f *fakeKeys) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewKeyServiceHandler(f))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func sampleKey(name string) *notifydv1.StoredKey {
	at := timestamppb.New(time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC))
	return &notifydv1.StoredKey{Name: name, Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_SIGN, Etag: "7", Versions: []*notifydv1.KeyVersion{
		{Number: 2, State: notifydv1.KeyState_KEY_STATE_LIVE, Algorithm: "rsa-2048", Fingerprint: "abcd", ActiveFrom: at, RetireAt: at, NotAfter: at, PublicKey: "-----BEGIN PUBLIC KEY-----\n"},
	}}
}

func (f *fakeKeys) ImportKey(_ context.Context, req *connect.Request[notifydv1.ImportKeyRequest]) (*connect.Response[notifydv1.ImportKeyResponse], error) {
	f.imported = req.Msg.Key
	return connect.NewResponse(&notifydv1.ImportKeyResponse{Key: sampleKey(req.Msg.Name)}), f.fail
}

func (f *fakeKeys) GenerateKey(_ context.Context, req *connect.Request[notifydv1.GenerateKeyRequest]) (*connect.Response[notifydv1.GenerateKeyResponse], error) {
	return connect.NewResponse(&notifydv1.GenerateKeyResponse{Key: sampleKey(req.Msg.Name), Secret: "base64:c2VjcmV0"}), f.fail
}

func (f *fakeKeys) RotateKey(_ context.Context, req *connect.Request[notifydv1.RotateKeyRequest]) (*connect.Response[notifydv1.RotateKeyResponse], error) {
	f.rotated = req.Msg
	return connect.NewResponse(&notifydv1.RotateKeyResponse{Key: sampleKey(req.Msg.Name)}), f.fail
}

func (f *fakeKeys) RetireKey(_ context.Context, req *connect.Request[notifydv1.RetireKeyRequest]) (*connect.Response[notifydv1.RetireKeyResponse], error) {
	return connect.NewResponse(&notifydv1.RetireKeyResponse{Key: sampleKey(req.Msg.Name)}), f.fail
}

func (f *fakeKeys) GetKey(_ context.Context, req *connect.Request[notifydv1.GetKeyRequest]) (*connect.Response[notifydv1.GetKeyResponse], error) {
	return connect.NewResponse(&notifydv1.GetKeyResponse{Key: sampleKey(req.Msg.Name)}), f.fail
}

func (f *fakeKeys) ListKeys(_ context.Context, req *connect.Request[notifydv1.KeyServiceListKeysRequest]) (*connect.Response[notifydv1.KeyServiceListKeysResponse], error) {
	if f.fail != nil {
		return nil, f.fail
	}
	if req.Msg.PageToken == "" {
		return connect.NewResponse(&notifydv1.KeyServiceListKeysResponse{Keys: []*notifydv1.StoredKey{sampleKey("a\x1b[2J")}, NextPageToken: "more"}), nil
	}
	return connect.NewResponse(&notifydv1.KeyServiceListKeysResponse{Keys: []*notifydv1.StoredKey{sampleKey("b")}}), nil
}

func (f *fakeKeys) ListKeyChanges(context.Context, *connect.Request[notifydv1.ListKeyChangesRequest]) (*connect.Response[notifydv1.ListKeyChangesResponse], error) {
	return connect.NewResponse(&notifydv1.ListKeyChangesResponse{Changes: []*notifydv1.KeyChange{{Number: 1, By: "alice", What: "import", After: sampleKey("a")}}}), f.fail
}

func (f *fakeKeys) GetMasterKeys(context.Context, *connect.Request[notifydv1.GetMasterKeysRequest]) (*connect.Response[notifydv1.GetMasterKeysResponse], error) {
	return connect.NewResponse(&notifydv1.GetMasterKeysResponse{Keys: f.masters}), f.fail
}

// runKeys runs a command line against a server.
func runKeys(t *testing.T, f *fakeKeys, in string, args ...string) (code int, printed string) {
	t.Helper()
	var commands struct {
		Keys keysCmd `cmd:""`
	}
	parser, err := kong.New(&commands)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(append(append([]string{"keys"}, args...), "--server="+serveKeys(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	r := runner{in: strings.NewReader(in)}
	chosen, ok := reflect.TypeAssert[command](parsed.Selected().Target.Addr())
	if !ok {
		t.Fatalf("%s cannot run", parsed.Command())
	}
	code = r.exec(t.Context(), chosen)
	return code, strings.Join(strings.Fields(r.out.String()+r.err.String()), " ")
}

func TestKeysCommands(t *testing.T) {
	aborted := connect.NewError(connect.CodeAborted, errors.New("etag: the settings have changed meanwhile"))
	invalid := connect.NewError(connect.CodeInvalidArgument, errors.New("key.password: password_needed: the private key is encrypted"))
	away := connect.NewError(connect.CodeUnavailable, errors.New("read keys: postgres is away"))
	masters := []*notifydv1.MasterKey{{Id: 7, Sealed: 3}, {Id: 8, InUse: true, MissingOn: 1}}
	for name, c := range map[string]struct {
		args string
		fail error
		code int
		says []string
	}{
		"import":             {"import k --purpose sign -", nil, 0, []string{"k/2 rsa-2048 abcd, from 2026-11-24T10:00:00Z"}},
		"import, JSON":       {"import k --purpose sign - --json", nil, 0, []string{`"name":"k"`}},
		"generate":           {"generate k --purpose sign --algorithm symmetric", nil, 0, []string{"k/2", "shown only now", "base64:c2VjcmV0"}},
		"rotate":             {"rotate k --algorithm rsa-2048 --overlap 0s --active-from 2026-12-01T00:00:00Z", nil, 0, []string{"k/2"}},
		"rotate to nothing":  {"rotate k", nil, exitUsage, []string{"give either --file or --algorithm"}},
		"retire":             {"retire k 2 --reason leaked", nil, 0, []string{"k/2 ends 2026-11-24T10:00:00Z"}},
		"show":               {"show k", nil, 0, []string{"BEGIN PUBLIC KEY", "etag 7"}},
		"list":               {"list", nil, 0, []string{"a\uFFFD[2J/2 live sign (platform) rsa-2048 abcd certificate until 2026-11-24", "b/2"}},
		"list, JSON":         {"list --json", nil, 0, []string{`"name":"b"`}},
		"changes":            {"changes", nil, 0, []string{"a: import, by alice"}},
		"master status":      {"master status", nil, 0, []string{"7 not in use, has sealed 3, missing on 0 processes", "8 in use"}},
		"no instant":         {"retire k 2 --reason x --at tomorrow", nil, exitUsage, []string{`--at "tomorrow"`}},
		"nothing on stdin":   {"import k --purpose sign /dev/null", nil, exitUsage, []string{"is empty"}},
		"no such file":       {"import k --purpose sign /nonexistent/k.pem", nil, exitUsage, []string{"no such file"}},
		"a password is due":  {"import k --purpose sign -", invalid, exitUsage, []string{"password_needed"}},
		"refused":            {"retire k 2 --reason x", aborted, exitSome, []string{"aborted"}},
		"the ledger is away": {"list", away, exitUnreachable, []string{"postgres is away"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, printed := runKeys(t, &fakeKeys{fail: c.fail, masters: masters}, "-----BEGIN…", strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			wants(t, "what is printed", printed, c.says...)
		})
	}
}

// A password comes from a file or the environment; an end of line at its end is the file's.
func TestKeysPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte(" p w \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fakeKeys{}
	if code, printed := runKeys(t, f, "x", "import", "k", "--purpose=sign", "-", "--password-file="+file, "--key-password-file="+file, "--secret", "--alias=a"); code != 0 {
		t.Fatal(printed)
	}
	if f.imported.Password != " p w " || f.imported.KeyPassword != " p w " || !f.imported.Secret || f.imported.Alias != "a" || string(f.imported.Content) != "x" {
		t.Errorf("%v", f.imported)
	}
	t.Setenv(keyPasswordVariable, "from outside")
	if code, printed := runKeys(t, f, "x", "rotate", "k", "--file=-"); code != 0 || f.rotated.GetImport().GetPassword() != "from outside" || f.rotated.Overlap != nil {
		t.Errorf("%s, %v", printed, f.rotated)
	}
}

// A master key is dropped only when a node says that nothing needs it.
func TestKeysMasterDrop(t *testing.T) {
	file := filepath.Join(t.TempDir(), "master.key")
	if err := ledger.CreateMasterKey(file); err != nil {
		t.Fatal(err)
	}
	var out buffer
	if err := (&keysMasterAddCmd{File: file}).Run(&streams{Out: &out}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		masters []*notifydv1.MasterKey
		says    string
	}{
		"in use":             {[]*notifydv1.MasterKey{{Id: 7, InUse: true}}, "key 7 is in use"},
		"still seals":        {[]*notifydv1.MasterKey{{Id: 7, Sealed: 3}, {Id: 8, InUse: true}}, "still seals 3 rows"},
		"missing elsewhere":  {[]*notifydv1.MasterKey{{Id: 7}, {Id: 8, InUse: true, MissingOn: 1}}, "missing on 1 processes"},
		"nothing in use":     {nil, "does not say which key is in use"},
		"not in this keyset": {[]*notifydv1.MasterKey{{Id: 8, InUse: true}}, "there is no key 7"},
	} {
		if code, printed := runKeys(t, &fakeKeys{masters: c.masters}, "", "master", "drop", file, "7"); code != exitSome || !strings.Contains(printed, c.says) {
			t.Errorf("%s: %d, %s", name, code, printed)
		}
	}
}

func TestMasterKeyCommand(t *testing.T) {
	for name, c := range map[string]struct {
		argv []string
		says string
	}{
		"prints":        {[]string{"echo", "key"}, ""},
		"fails":         {[]string{"sh", "-c", "echo topsecret; echo topsecret >&2; exit 3"}, "sh: exit status 3"},
		"silent":        {[]string{"true"}, "printed nothing"},
		"not there":     {[]string{"/nonexistent/program"}, "no such file"},
		"without end":   {[]string{"sh", "-c", "yes topsecret"}, "printed more than"},
		"with a signal": {[]string{"sh", "-c", "kill -9 $$"}, "signal: killed"},
	} {
		out, err := runMasterKeyCommand(t.Context(), c.argv)
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "ledger.master_key_command") || strings.Contains(err.Error(), "topsecret")) {
			t.Errorf("%s: %v", name, err)
		}
		if c.says == "" && string(out) != "key\n" {
			t.Errorf("%s: %q", name, out)
		}
	}
}
