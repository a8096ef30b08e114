package main

import (
	"context"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/keys"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// keysCmd keeps keys and certificates.
type keysCmd struct {
	Import   keysImportCmd   `cmd:"" help:"Import a key or a certificate under a new name."`
	Generate keysGenerateCmd `cmd:"" help:"Make a fresh key under a new name."`
	List     keysListCmd     `cmd:"" help:"List the names and their versions."`
	Show     keysShowCmd     `cmd:"" help:"Show a name with public keys and certificates, never anything secret."`
	Rotate   keysRotateCmd   `cmd:"" help:"Make the next version of a name, which takes over from the one before."`
	Retire   keysRetireCmd   `cmd:"" help:"End a version, for good."`
	Changes  keysChangesCmd  `cmd:"" help:"List who changed what, newest first."`
	Master   keysMasterCmd   `cmd:"" help:"Rotate the master key, which seals everything secret in the ledger."`
}

// Help is the long text of --help.
func (keysCmd) Help() string {
	return `What notifications are signed, encrypted, verified and proven with. A name has versions; at most two are in use at a time, while one
takes over from the other. What is secret goes in and never comes out again.

Examples:

    notifyd keys import platform-rsa --purpose sign platform.pem
    notifyd keys import bank-client --purpose tls_client --merchant bank --password-file pass.txt client.pfx
    notifyd keys import shop-md5 --purpose sign --merchant shop --secret --allow-weak secret.txt
    notifyd keys generate shop-hmac --purpose sign --merchant shop --algorithm symmetric
    notifyd keys rotate platform-rsa --file new.pem --active-from 2026-12-01T00:00:00Z --overlap 168h
    notifyd keys list --expiring-within 720h
    notifyd keys retire platform-rsa 1 --reason "leaked"
    notifyd keys master add master.key

A password comes from --password-file, from NOTIFYD_KEY_PASSWORD, or is asked for at a terminal; never from an argument.

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 no answer.`
}

// keyPasswordVariable holds the password of what is imported.
const keyPasswordVariable = "NOTIFYD_KEY_PASSWORD"

type keyClient = notifydv1connect.KeyServiceClient

// keysConn is what every command about keys needs.
type keysConn struct{ accessConn }

func (c *keysConn) keys(do func(keyClient) error) error {
	return c.callService(func(to *remote) error {
		return do(notifydv1connect.NewKeyServiceClient(to.client.HTTPClient(), to.url))
	})
}

// keyActivation is when a new version comes into use.
type keyActivation struct {
	ActiveFrom string `help:"From when on it is used (RFC 3339). Default: now." placeholder:"2026-12-01T00:00:00Z"`
	Note       string `help:"For people." placeholder:"TEXT"`
}

func (a keyActivation) from() (*timestamppb.Timestamp, error) {
	return instant("--active-from", a.ActiveFrom)
}

// keyReading is how what is imported is read.
type keyReading struct {
	PasswordFile    string `help:"File with the password of what is imported." type:"existingfile" placeholder:"FILE"`
	KeyPasswordFile string `help:"File with the password of the entry of a JKS, where it has one of its own." type:"existingfile" placeholder:"FILE"`
	Alias           string `help:"Which entry, where there are several."`
	Secret          bool   `help:"It is a shared secret, as it stands there: a last end of line does not belong to it."`
	AllowWeak       bool   `help:"Take RSA keys from 1024 bits and secrets from 8 bytes."`
}

func (r keyReading) read(file string, in io.Reader) (*notifydv1.ImportedKey, error) {
	content, err := readBounded(file, in)
	if err != nil {
		return nil, err
	}
	p := &notifydv1.ImportedKey{Content: content, Alias: r.Alias, Secret: r.Secret, AllowWeak: r.AllowWeak, Password: os.Getenv(keyPasswordVariable)}
	if err := passwordFrom(r.PasswordFile, &p.Password); err != nil {
		return nil, err
	}
	return p, passwordFrom(r.KeyPasswordFile, &p.KeyPassword)
}

// passwordFrom reads a password, without the end of its line. Without a file it changes nothing.
func passwordFrom(file string, to *string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return usageError("read password: %w", err)
	}
	*to = strings.TrimRight(string(text), "\r\n")
	return nil
}

// readBounded reads a file, or standard input for "-".
func readBounded(file string, in io.Reader) ([]byte, error) {
	if file != "-" {
		f, err := os.Open(file) //nolint:gosec // the operator names the file
		if err != nil {
			return nil, usageError("read key: %w", err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	content, err := io.ReadAll(io.LimitReader(in, keys.MaxImport+1))
	switch {
	case err != nil:
		return nil, usageError("read key: %w", err)
	case len(content) > keys.MaxImport:
		return nil, usageError("read key: %s: has more than %d bytes", file, keys.MaxImport)
	case len(content) == 0:
		return nil, usageError("read key: %s: is empty", file)
	}
	return content, nil
}

// withPassword asks for a password at a terminal, once, when the server wants one.
func withPassword(s *streams, p *notifydv1.ImportedKey, do func() error) error {
	err := do()
	if err == nil || p.GetPassword() != "" || !strings.Contains(err.Error(), string(keys.FaultPasswordNeeded)) {
		return err
	}
	terminal, ok := s.In.(*os.File)
	if !ok || !isTerminal(terminal) {
		return err
	}
	password, failed := readHidden(terminal, s.Err)
	if failed != nil || password == "" {
		return err
	}
	p.Password = password
	return do()
}

// readHidden asks for a line that the terminal does not show.
func readHidden(terminal *os.File, prompt io.Writer) (string, error) {
	fd := int(terminal.Fd())
	shown, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", err
	}
	hidden := *shown
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return "", err
	}
	say(prompt, "Password: ")
	defer func() {
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, shown) // nothing more can be done
		say(prompt, "\n")
	}()
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := terminal.Read(b)
		if n == 0 || b[0] == '\n' || err != nil {
			return strings.TrimRight(string(line), "\r"), err
		}
		line = append(line, b[0])
	}
}

var keyPurposes = map[string]notifydv1.KeyPurpose{
	"sign": notifydv1.KeyPurpose_KEY_PURPOSE_SIGN, "encrypt": notifydv1.KeyPurpose_KEY_PURPOSE_ENCRYPT,
	"tls_client": notifydv1.KeyPurpose_KEY_PURPOSE_TLS_CLIENT, "verify": notifydv1.KeyPurpose_KEY_PURPOSE_VERIFY,
}

// keyTarget is what is fixed about a name.
type keyTarget struct {
	Name     string `arg:"" help:"What merchants' settings name it by."`
	Purpose  string `required:"" enum:"sign,encrypt,tls_client,verify" help:"What it is for: sign, encrypt, tls_client or verify."`
	Merchant string `help:"Only this merchant may use it. Default: the platform's, for every merchant." placeholder:"ID"`
}

type keysImportCmd struct {
	keysConn
	keyTarget
	keyReading
	keyActivation
	File string `arg:"" help:"PEM, DER, PKCS#8, PFX, JKS or a secret; - is standard input."`
}

// Run imports.
func (c *keysImportCmd) Run(ctx context.Context, s *streams) error {
	p, err := c.read(c.File, s.In)
	if err != nil {
		return err
	}
	from, err := c.from()
	if err != nil {
		return err
	}
	req := &notifydv1.ImportKeyRequest{Name: c.Name, Purpose: keyPurposes[c.Purpose], MerchantId: c.Merchant, Key: p, ActiveFrom: from, Note: c.Note}
	return c.keys(func(to keyClient) error {
		return withPassword(s, p, func() error {
			res, err := to.ImportKey(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return c.made(s, res.Msg, res.Msg.Key, "")
		})
	})
}

type keysGenerateCmd struct {
	keysConn
	keyTarget
	keyMaking
	keyActivation
}

// keyMaking is what is made.
type keyMaking struct {
	Algorithm   string `help:"rsa-2048, rsa-4096, ecdsa-p256, ed25519, sm2 or symmetric." placeholder:"ALGORITHM"`
	SecretBytes int32  `help:"How long a symmetric one is; 0: 32."`
}

// Run generates.
func (c *keysGenerateCmd) Run(ctx context.Context, s *streams) error {
	from, err := c.from()
	if err != nil {
		return err
	}
	req := &notifydv1.GenerateKeyRequest{
		Name: c.Name, Purpose: keyPurposes[c.Purpose], MerchantId: c.Merchant, Key: &notifydv1.GeneratedKey{Algorithm: c.Algorithm, SecretBytes: c.SecretBytes}, ActiveFrom: from, Note: c.Note,
	}
	return c.keys(func(to keyClient) error {
		res, err := to.GenerateKey(ctx, connect.NewRequest(req))
		if err != nil {
			return err
		}
		return c.made(s, res.Msg, res.Msg.Key, res.Msg.Secret)
	})
}

type keysRotateCmd struct {
	keysConn
	keyReading
	keyMaking
	keyActivation
	Name    string         `arg:"" help:"Which name."`
	File    string         `help:"What takes over: PEM, DER, PKCS#8, PFX, JKS or a secret; - is standard input. Without it --algorithm makes one." placeholder:"FILE"`
	Overlap *time.Duration `help:"How long the version before stays in use beside it; 0s: not at all. Default: 168h." placeholder:"168h"`
	Etag    string         `help:"Only if nobody has changed it since it was shown."`
}

// Run rotates.
func (c *keysRotateCmd) Run(ctx context.Context, s *streams) error {
	if (c.File == "") == (c.Algorithm == "") {
		return usageError("keys rotate %s: give either --file or --algorithm", c.Name)
	}
	from, err := c.from()
	if err != nil {
		return err
	}
	req := &notifydv1.RotateKeyRequest{Name: c.Name, ActiveFrom: from, Etag: c.Etag, Note: c.Note}
	if c.Overlap != nil {
		req.Overlap = durationpb.New(*c.Overlap)
	}
	var p *notifydv1.ImportedKey
	if c.File == "" {
		req.Material = &notifydv1.RotateKeyRequest_Generate{Generate: &notifydv1.GeneratedKey{Algorithm: c.Algorithm, SecretBytes: c.SecretBytes}}
	} else {
		if p, err = c.read(c.File, s.In); err != nil {
			return err
		}
		req.Material = &notifydv1.RotateKeyRequest_Import{Import: p}
	}
	return c.keys(func(to keyClient) error {
		return withPassword(s, p, func() error {
			res, err := to.RotateKey(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return c.made(s, res.Msg, res.Msg.Key, res.Msg.Secret)
		})
	})
}

// made prints what is there now. A secret is told once, apart from the rest.
func (c *keysConn) made(s *streams, answer proto.Message, key *notifydv1.StoredKey, secret string) error {
	if c.JSON {
		printProto(s, answer)
		return nil
	}
	newest := key.Versions[0]
	say(s.Out, "%s/%d %s %s, from %s\n", printable(key.Name), newest.Number, newest.Algorithm, newest.Fingerprint, newest.ActiveFrom.AsTime().Format(time.RFC3339))
	if secret != "" {
		say(s.Err, "notifyd: the secret, shown only now; the merchant needs it:\n%s\n", secret)
	}
	return nil
}

type keysRetireCmd struct {
	keysConn
	Name   string `arg:"" help:"Which name."`
	Number int32  `arg:"" help:"Which version."`
	At     string `help:"When (RFC 3339). Default: now." placeholder:"2026-12-01T00:00:00Z"`
	Reason string `required:"" help:"For people: why." placeholder:"TEXT"`
	Etag   string `help:"Only if nobody has changed it since it was shown."`
}

// Run retires.
func (c *keysRetireCmd) Run(ctx context.Context, s *streams) error {
	at, err := instant("--at", c.At)
	if err != nil {
		return err
	}
	return c.keys(func(to keyClient) error {
		res, err := to.RetireKey(ctx, connect.NewRequest(&notifydv1.RetireKeyRequest{Name: c.Name, Number: c.Number, RetireAt: at, Reason: c.Reason, Etag: c.Etag}))
		if err != nil {
			return err
		}
		if c.JSON {
			printProto(s, res.Msg.Key)
			return nil
		}
		for _, v := range res.Msg.Key.Versions {
			if v.Number == c.Number {
				say(s.Out, "%s/%d ends %s\n", printable(c.Name), c.Number, v.RetireAt.AsTime().Format(time.RFC3339))
			}
		}
		return nil
	})
}

type keysListCmd struct {
	keysConn
	Prefix         string        `help:"Only names that begin so."`
	Merchant       string        `help:"Only this merchant's." placeholder:"ID"`
	Purpose        string        `enum:",sign,encrypt,tls_client,verify" default:"" help:"Only those for this."`
	ExpiringWithin time.Duration `help:"Only those with a certificate that ends so soon." placeholder:"720h"`
}

// Run lists.
func (c *keysListCmd) Run(ctx context.Context, s *streams) error {
	req := &notifydv1.KeyServiceListKeysRequest{NamePrefix: c.Prefix, MerchantId: c.Merchant, Purpose: keyPurposes[c.Purpose], PageSize: 1000}
	if c.ExpiringWithin > 0 {
		req.ExpiringBefore = timestamppb.New(time.Now().Add(c.ExpiringWithin))
	}
	return c.keys(func(to keyClient) error {
		table := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
		defer func() { _ = table.Flush() }() // who closed the output does not want it
		for {
			res, err := to.ListKeys(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, k := range res.Msg.Keys {
				if c.JSON {
					printProto(s, k)
					continue
				}
				printKey(table, k)
			}
			if req.PageToken = res.Msg.NextPageToken; req.PageToken == "" {
				return nil
			}
		}
	})
}

func printKey(to io.Writer, k *notifydv1.StoredKey) {
	whose := k.MerchantId
	if whose == "" {
		whose = "(platform)"
	}
	for _, v := range k.Versions {
		ends := "-"
		if v.NotAfter != nil {
			ends = "certificate until " + v.NotAfter.AsTime().Format(time.DateOnly)
		}
		say(to, "%s/%d\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(k.Name), v.Number, word(v.State.String(), "KEY_STATE_"), word(k.Purpose.String(), "KEY_PURPOSE_"),
			printable(whose), v.Algorithm, v.Fingerprint, ends)
	}
}

type keysShowCmd struct {
	keysConn
	Name string `arg:"" help:"Which name."`
}

// Run shows.
func (c *keysShowCmd) Run(ctx context.Context, s *streams) error {
	return c.keys(func(to keyClient) error {
		res, err := to.GetKey(ctx, connect.NewRequest(&notifydv1.GetKeyRequest{Name: c.Name}))
		if err != nil {
			return err
		}
		if c.JSON {
			printProto(s, res.Msg.Key)
			return nil
		}
		printKey(s.Out, res.Msg.Key)
		for _, v := range res.Msg.Key.Versions {
			say(s.Out, "\n# %s/%d\n%s%s", printable(c.Name), v.Number, v.PublicKey, v.CertificateChain)
		}
		say(s.Out, "etag %s\n", res.Msg.Key.Etag)
		return nil
	})
}

type keysChangesCmd struct {
	keysConn
	Name string `arg:"" optional:"" help:"Only of this name."`
}

// Run lists the changes.
func (c *keysChangesCmd) Run(ctx context.Context, s *streams) error {
	return c.keys(func(to keyClient) error {
		req := &notifydv1.ListKeyChangesRequest{Name: c.Name, PageSize: 1000}
		for {
			res, err := to.ListKeyChanges(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, change := range res.Msg.Changes {
				if c.JSON {
					printProto(s, change)
					continue
				}
				by := change.By
				if by == "" {
					by = "somebody"
				}
				say(s.Out, "%s  %s: %s, by %s\n", change.At.AsTime().Format(time.RFC3339), printable(change.After.GetName()), printable(change.What), printable(by))
			}
			if req.PageToken = res.Msg.NextPageToken; req.PageToken == "" {
				return nil
			}
		}
	})
}
