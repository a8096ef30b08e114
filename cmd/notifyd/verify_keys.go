package main

import (
	"cmp"
	"crypto"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"notifyd/client/verify"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// Where secrets are found that are in no file.
const (
	verifySecretVariable     = "NOTIFYD_VERIFY_SECRET" //nolint:gosec // a name, not a secret
	verifyDecryptionVariable = "NOTIFYD_VERIFY_DECRYPTION_KEY"
)

const maxRequestFile = 4 << 20

// merchantSide is what a merchant knows of its contract.
type merchantSide struct {
	Profile           string            `help:"standard, alipay, wechatpay-v2, wechatpay-v3, unionpay, stripe, adyen or custom. Default: the settings', or standard." placeholder:"PROFILE"`
	Settings          string            `help:"JSON file with the merchant's contract, as PutMerchant takes it. custom needs it." placeholder:"FILE"`
	SecretFile        []string          `help:"File with a secret; several during a rotation. Else the environment's NOTIFYD_VERIFY_SECRET." placeholder:"FILE"`
	PublicKeyFile     []string          `help:"File with a public key or a certificate of the platform; SERIAL=FILE where the file does not say its serial number." placeholder:"[SERIAL=]FILE"`
	DecryptionKeyFile []string          `help:"File with the key of what is encrypted (APIv3 key). Else the environment's NOTIFYD_VERIFY_DECRYPTION_KEY." placeholder:"FILE"`
	Value             map[string]string `help:"What custom's string-to-sign has and the request does not carry." placeholder:"NAME=TEXT"`
	URL               string            `help:"The notify URL as it is registered, for contracts that sign it." placeholder:"URL" name:"url"`
}

// contract is the profile and its settings.
func (c *merchantSide) contract() (profile string, _ verify.Settings, _ error) {
	p := &notifydv1.Contract{}
	if c.Settings != "" {
		text, err := readFile(c.Settings, nil)
		if err != nil {
			return "", verify.Settings{}, err
		}
		if err := protojson.Unmarshal(text, p); err != nil {
			return "", verify.Settings{}, usageError("--settings %s: want a merchant's contract as JSON: %w", c.Settings, err)
		}
	}
	profile = cmp.Or(c.Profile, p.Profile, "standard")
	if c.Settings == "" && profile == "custom" {
		return "", verify.Settings{}, usageError("--profile custom: needs --settings")
	}
	e, s := p.GetEncoding(), p.GetSigner()
	return profile, verify.Settings{
		Format: e.GetFormat(), Charset: e.GetCharset(), Headers: e.GetHeaders(), Fields: e.GetFields(),
		Algorithm: s.GetAlgorithm(), Input: s.GetInput(), Output: s.GetOutput(), Field: s.GetField(), Header: s.GetHeader(), HeaderValue: s.GetHeaderValue(),
		UnsignedFields: s.GetUnsignedFields(), SignEmpty: s.GetSignEmpty(), UserID: s.GetUserId(), RawSignature: s.GetRawSignature(), Frozen: s.GetFrozen(),
		Values: c.Value,
	}, nil
}

// keys reads files and the environment.
func (c *merchantSide) keys() (k verify.Keys, err error) {
	if k.Secrets, err = secretsOf(c.SecretFile, verifySecretVariable); err != nil {
		return k, err
	}
	if k.Decryption, err = secretsOf(c.DecryptionKeyFile, verifyDecryptionVariable); err != nil {
		return k, err
	}
	return k, readPublic(&k, c.PublicKeyFile)
}

// verifier is made of both. secrets are given beside those of files and environment.
func (c *merchantSide) verifier(s *streams, secrets ...string) (*verify.Verifier, string, error) {
	profile, settings, err := c.contract()
	if err != nil {
		return nil, "", err
	}
	k, err := c.keys()
	if err != nil {
		return nil, "", err
	}
	k.Secrets = append(secrets, k.Secrets...)
	v, err := verify.New(profile, settings, k)
	if err != nil && len(k.Secrets) == 0 && strings.HasSuffix(err.Error(), "needs a secret") {
		if terminal, ok := s.In.(*os.File); ok && isTerminal(terminal) {
			if text, failed := readHidden(terminal, s.Err); failed == nil && text != "" {
				k.Secrets = []string{text}
				v, err = verify.New(profile, settings, k)
			}
		}
	}
	if err != nil {
		return nil, "", usageError("%w; see --secret-file, --public-key-file and --decryption-key-file", err)
	}
	v.URL = c.URL
	return v, profile, nil
}

func secretsOf(files []string, variable string) (all []string, _ error) {
	for _, file := range files {
		text, err := readFile(file, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, strings.TrimRight(string(text), "\r\n"))
	}
	if text := os.Getenv(variable); text != "" && len(files) == 0 {
		all = []string{text}
	}
	return all, nil
}

func readPublic(k *verify.Keys, files []string) error {
	for _, given := range files {
		serial, file, named := strings.Cut(given, "=")
		if !named {
			serial, file = "", given
		}
		text, err := readFile(file, nil)
		if err != nil {
			return err
		}
		key, err := verify.ParsePublicKey(text)
		if err != nil {
			return usageError("--public-key-file %s: %w", file, err)
		}
		if k.BySerial == nil {
			k.BySerial = map[string]crypto.PublicKey{}
		}
		switch {
		case named:
			k.BySerial[serial] = key.PublicKey
		case key.Serial != "":
			k.BySerial[key.Serial], k.BySerial[key.SerialDecimal] = key.PublicKey, key.PublicKey
		default:
			k.Public = append(k.Public, key.PublicKey)
		}
	}
	return nil
}

// readFile reads a file that the user names, or standard input for "-".
func readFile(file string, in io.Reader) ([]byte, error) {
	if file != "-" || in == nil {
		f, err := os.Open(file) //nolint:gosec // the user names the file
		if err != nil {
			return nil, usageError("%w", err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxRequestFile+1))
	switch {
	case err != nil:
		return nil, usageError("%s: %w", file, err)
	case len(text) > maxRequestFile:
		return nil, usageError("%s: has more than %d bytes", file, maxRequestFile)
	}
	return text, nil
}
