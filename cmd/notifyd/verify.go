package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"notifyd/client/verify"
)

// verifyCmd checks a captured request, and needs no server.
type verifyCmd struct {
	merchantSide
	Request  string   `help:"File with an HTTP request: its line, headers, an empty line, its body. - is standard input." placeholder:"FILE" xor:"from"`
	Attempt  string   `help:"File with JSON of GetNotification, of an attempt, or of an attempt's request. - is standard input." placeholder:"FILE" xor:"from"`
	Number   int      `help:"Which attempt. Default: the last."`
	Method   string   `help:"With --header and --body-file." default:"POST"`
	Header   []string `help:"A header of the request, instead of a file." placeholder:"NAME: VALUE" sep:"none"`
	BodyFile string   `help:"Its body, byte for byte. - is standard input." placeholder:"FILE"`

	BeforeSecretFile    []string      `help:"File with a secret of before the rotation: tells whether it was used." placeholder:"FILE"`
	BeforePublicKeyFile []string      `help:"The same of a public key." placeholder:"FILE"`
	StringToSign        string        `help:"File with the string that you sign: says in which byte it differs." placeholder:"FILE"`
	Show                bool          `help:"Print the string-to-sign, a secret in it masked."`
	At                  string        `help:"When it was received (RFC 3339). Default: the attempt's time, or now." placeholder:"TIME"`
	Tolerance           time.Duration `help:"How far the time of the signature may be from then; 0s: as far as it likes." default:"5m"`
	JSON                bool          `help:"Print JSON." name:"json"`
}

// Help is the long text of --help.
func (verifyCmd) Help() string {
	return `Checks a captured callback as its merchant does, without a server, and says what is wrong: which check failed and, where one of the
common mistakes fits, which one.

Examples:

    notifyd verify --secret-file secret.txt --request captured.http
    notifyd verify --profile alipay --public-key-file alipay.pem --request captured.http --show
    notifyd verify --profile wechatpay-v3 --public-key-file 5E2F…=platform.pem --decryption-key-file apiv3.txt --attempt attempt.json
    notifyd verify --profile stripe --secret-file secret.txt --header 'Stripe-Signature: t=…,v1=…' --body-file body.json
    notifyd verify --secret-file secret.txt --request captured.http --string-to-sign mine.txt
    notifyd verify --profile custom --settings contract.json --secret-file md5.txt --request captured.http

Secrets come from files, from NOTIFYD_VERIFY_SECRET and NOTIFYD_VERIFY_DECRYPTION_KEY, or are asked for at a terminal; never from an
argument. A secret is never printed.

Exit codes: 0 verified, 1 not verified, 2 wrong usage.`
}

// Run checks.
func (c *verifyCmd) Run(_ context.Context, s *streams) error {
	v, profile, err := c.verifier(s)
	if err != nil {
		return err
	}
	if c.Tolerance < 0 {
		return usageError("--tolerance %s: want 0s or more", c.Tolerance)
	}
	v.Tolerance = c.Tolerance
	from, err := c.captured(s)
	if err != nil {
		return err
	}
	now, err := c.now(from)
	if err != nil {
		return err
	}
	hints := verify.Hints{Attempts: from.others}
	if hints.Before.Secrets, err = secretsOf(c.BeforeSecretFile, ""); err != nil {
		return err
	}
	if err = readPublic(&hints.Before, c.BeforePublicKeyFile); err != nil {
		return err
	}
	if c.StringToSign != "" {
		if hints.StringToSign, err = readFile(c.StringToSign, nil); err != nil {
			return err
		}
	}
	x := v.Explain(from.message, now, hints)
	r := report(profile, from, x)
	if callback, err := v.VerifyMessage(from.message, now); err == nil {
		r.ID, r.SignedAt, r.Resource = callback.ID, callback.Time, string(callback.Resource)
	}
	if c.Show {
		r.StringToSign = string(x.StringToSign)
	}
	if c.JSON {
		printJSON(s.Out, r)
	} else {
		r.print(s.Out, c.Show)
	}
	if !r.Verified || x.Difference != nil {
		return &exitError{code: 1}
	}
	return nil
}

func (c *verifyCmd) captured(s *streams) (*captured, error) {
	given := 0
	for _, is := range []bool{c.Request != "", c.Attempt != "", len(c.Header) > 0 || c.BodyFile != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, usageError("give one of --request, --attempt, or --header and --body-file")
	}
	file, read := c.Request, readRequest
	if c.Attempt != "" {
		file, read = c.Attempt, func(text []byte) (*captured, error) { return readAttempt(text, c.Number) }
	}
	if file == "" {
		return c.compose(s)
	}
	text, err := readFile(file, s.In)
	if err != nil {
		return nil, err
	}
	return read(text)
}

func (c *verifyCmd) now(from *captured) (time.Time, error) {
	switch {
	case c.At != "":
		at, err := time.Parse(time.RFC3339, c.At)
		if err != nil {
			return at, usageError("--at %q: want RFC 3339, as 2026-12-01T00:00:00Z", c.At)
		}
		return at, nil
	case !from.at.IsZero():
		return from.at, nil
	}
	return time.Now(), nil
}

// verified is what is printed.
type verified struct {
	Verified     bool               `json:"verified"`
	Profile      string             `json:"profile"`
	ID           string             `json:"id,omitempty"`
	SignedAt     time.Time          `json:"signedAt,omitzero"`
	Reason       verify.Reason      `json:"reason,omitempty"`
	Fault        string             `json:"fault,omitempty"`
	Checks       []verifiedCheck    `json:"checks"`
	Mistake      string             `json:"mistake,omitempty"`
	Advice       string             `json:"advice,omitempty"`
	Difference   *verify.Difference `json:"difference,omitempty"`
	StringToSign string             `json:"stringToSign,omitempty"`
	Resource     string             `json:"resource,omitempty"`
	Note         string             `json:"note,omitempty"`
}

type verifiedCheck struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Fault string `json:"fault,omitempty"`
}

func report(profile string, from *captured, x *verify.Explanation) *verified {
	r := &verified{Verified: x.Err == nil, Profile: profile, Mistake: x.Mistake, Difference: x.Difference, Note: from.note}
	if e, ok := errors.AsType[*verify.Error](x.Err); ok {
		r.Reason = e.Reason
	}
	r.Fault = faultText(x.Err)
	if x.Mistake == "" {
		r.Advice = verify.Advice(x.Err)
	}
	for _, c := range x.Checks {
		r.Checks = append(r.Checks, verifiedCheck{c.Name, c.Err == nil, faultText(c.Err)})
	}
	return r
}

func faultText(err error) string {
	if err == nil {
		return ""
	}
	return strings.TrimPrefix(err.Error(), "verify callback: ")
}

func (r *verified) print(to io.Writer, show bool) {
	for _, c := range r.Checks {
		word := "ok"
		if !c.OK {
			word = "FAILED: " + c.Fault
		}
		say(to, "%-12s%s\n", c.Name, printable(word))
	}
	if r.Note != "" {
		say(to, "note: %s\n", printable(r.Note))
	}
	if r.Difference != nil {
		say(to, "string-to-sign: %s\n", printable(r.Difference.String()))
	}
	switch {
	case r.Mistake != "":
		say(to, "this fits: %s\n", printable(r.Mistake))
	case r.Advice != "":
		say(to, "%s\n", r.Advice)
	}
	if show {
		say(to, "string-to-sign (%d bytes, up to the line below):\n%s\n---\n", len(r.StringToSign), printable(r.StringToSign))
	}
	if r.Resource != "" {
		say(to, "decrypted: %s\n", printable(r.Resource))
	}
	if !r.Verified {
		say(to, "NOT VERIFIED (%s)\n", r.Profile)
		return
	}
	say(to, "VERIFIED (%s)", r.Profile)
	if r.ID != "" {
		say(to, "  %s", printable(r.ID))
	}
	if !r.SignedAt.IsZero() {
		say(to, "  signed at %s", r.SignedAt.Format(time.RFC3339))
	}
	say(to, "\n")
}
