package dispatcher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// contracted puts a merchant with a contract.
func contracted(t *testing.T, f *front, c *notifydv1.Contract) error {
	t.Helper()
	m := &notifydv1.Merchant{Id: "shop", NotifyUrl: "https://m.test/notify", Persist: notifydv1.Persist_PERSIST_LEDGER, Contract: c}
	service := NewMerchantService(f.Dispatcher, &numbered{node: "a"}, nil)
	_, err := got(service.PutMerchant(t.Context(), connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})))
	return err
}

func order(id string) *notifydv1.Notification {
	return &notifydv1.Notification{Source: "s", RequestId: id, MerchantId: "shop", Scene: "pay", Payload: `{"a":1}`}
}

func hmacSigner(input string) *notifydv1.Signer {
	return &notifydv1.Signer{Algorithm: "hmac-sha256", Input: input, Header: "x-sign", Secret: "0123456789012345678901234567890"}
}

// P4: what was accepted is answered with its state, whatever the contract has become; what was not is refused.
func TestSubmittedAgainAfterTheContractChanged(t *testing.T) {
	f := newFront(t, CallersConfig{})
	must(t, contracted(t, f, nil))
	c := f.client(t, nobody)
	first, err := c.submit(t, order("r-1"))
	must(t, err)
	must(t, contracted(t, f, &notifydv1.Contract{Profile: "custom", Encoding: &notifydv1.Encoding{Format: "form", Fields: map[string]string{"x": "$.x!"}}, Signer: hmacSigner("{sorted}")}))
	again, err := c.submit(t, order("r-1"))
	if err != nil || again.Id != first.Id || !again.Duplicate {
		t.Errorf("again: %v %v, first %v", again, err, first)
	}
	if _, err := c.submit(t, order("r-2")); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("another: %v", err)
	}
	other := order("r-1")
	other.Payload = `{"a":2}`
	if _, err := c.submit(t, other); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("other content: %v", err)
	}
}

// The secret before a new one belongs to the contract of that time.
func TestProfileChangesWithItsSecret(t *testing.T) {
	f := newFront(t, CallersConfig{})
	must(t, contracted(t, f, &notifydv1.Contract{Profile: "wechatpay-v2", Signer: &notifydv1.Signer{Secret: "01234567890123456789012345678901"}}))
	must(t, contracted(t, f, &notifydv1.Contract{Profile: "standard", Signer: &notifydv1.Signer{Secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLwSw"}}))
}

// A contract may tell when a notification was accepted: Submit knows it when it checks.
func TestContractTellsTheAcceptance(t *testing.T) {
	f := newFront(t, CallersConfig{})
	must(t, contracted(t, f, &notifydv1.Contract{
		Profile: "custom", Encoding: &notifydv1.Encoding{Format: "json", Fields: map[string]string{"at": "@create_time!"}, Headers: map[string]string{"x-created": "{create_time}"}}, Signer: hmacSigner("{body}"),
	}))
	if _, err := f.client(t, nobody).submit(t, order("r-1")); err != nil {
		t.Error(err)
	}
}

// What is signed of an answer is stored as it was given; a scene's is checked, too, and named.
func TestAnswerSignatures(t *testing.T) {
	f := newFront(t, CallersConfig{})
	service := NewMerchantService(f.Dispatcher, &numbered{node: "a"}, nil)
	put := func(own, scene *notifydv1.AnswerSignature) (*notifydv1.Merchant, error) {
		m := &notifydv1.Merchant{Id: "shop", NotifyUrl: "https://m.test/notify", Persist: notifydv1.Persist_PERSIST_LEDGER, Contract: &notifydv1.Contract{
			Profile: "custom", Signer: hmacSigner("{body}"), Acknowledgement: &notifydv1.Acknowledgement{Signature: own},
		}}
		if scene != nil {
			m.Scenes = map[string]*notifydv1.SceneSettings{"pay": {Acknowledgement: &notifydv1.Acknowledgement{Signature: scene}}}
		}
		res, err := got(service.PutMerchant(t.Context(), connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})))
		if err != nil {
			return nil, err
		}
		return res.Merchant, nil
	}
	own := &notifydv1.AnswerSignature{
		Algorithm: "hmac-md5", Input: "{sorted}{secret}", Output: "HEX", Field: "sign", Format: "xml", Charset: "gbk", UnsignedFields: []string{"sign_type"}, SignEmpty: true,
	}
	stored, err := put(own, &notifydv1.AnswerSignature{Algorithm: "none"})
	must(t, err)
	if !proto.Equal(stored.Contract.Acknowledgement.Signature, own) || stored.Scenes["pay"].Acknowledgement.Signature.Algorithm != "none" {
		t.Errorf("stored: %v", stored)
	}
	for field, signatures := range map[string][2]*notifydv1.AnswerSignature{
		`merchant.contract.acknowledgement.signature.input`:        {{Algorithm: "hmac-md5", Input: "{id}", Header: "X-Sign"}},
		`merchant.contract.acknowledgement.signature.key_id`:       {{Algorithm: "sm2-sm3", Input: "{body}", Header: "X-Sign", KeyId: "nobody's"}},
		`merchant.scenes["pay"].acknowledgement.signature.header`:  {own, {Algorithm: "hmac-md5", Input: "{sorted}", Header: "X-Sign", Field: "sign"}},
		`merchant.scenes["pay"].acknowledgement.signature.key_id`:  {own, {Algorithm: "ed25519", Input: "{body}", Header: "X-Sign"}},
		`merchant.scenes["pay"].acknowledgement.signature.charset`: {nil, {Algorithm: "hmac-md5", Input: "{sorted}", Header: "X-Sign", Charset: "big5"}},
	} {
		if _, err := put(signatures[0], signatures[1]); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestContractsThatSeemToWork(t *testing.T) {
	f := newFront(t, CallersConfig{})
	for field, c := range map[string]*notifydv1.Contract{
		"body_matches":        {Acknowledgement: &notifydv1.Acknowledgement{BodyMatches: `success)|(?:ok`}},
		"headers[\"x-type\"]": {Encoding: &notifydv1.Encoding{Headers: map[string]string{"x-type": "{sign_type}"}}},
	} {
		if err := contracted(t, f, c); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// The renewed certificate of the same key is another version; the same one again is not.
func TestRotateToARenewedCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	certified := func(serial int64) *notifydv1.ImportedKey {
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		must(t, err)
		return &notifydv1.ImportedKey{Content: append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)}
	}
	c := newFront(t, CallersConfig{}).client(t, nobody)
	_, err = c.importKey(t, &notifydv1.ImportKeyRequest{Name: "tls", Purpose: tlsClient, Key: certified(1)})
	must(t, err)
	renewed := certified(2)
	for range 2 { // the second answer of a call that was made again
		res, err := c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "tls", Material: &notifydv1.RotateKeyRequest_Import{Import: renewed}})
		must(t, err)
		if len(res.Key.Versions) != 2 || res.Key.Versions[0].SerialNumber != "2" {
			t.Errorf("versions: %v", res.Key.Versions)
		}
	}
}
