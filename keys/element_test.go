package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// One certificate in some forty ends in a byte that looks like white space: it is taken as it is, with and without a line end
// behind it.
func TestCertificateThatEndsInWhiteSpace(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	var der []byte
	for tries := 0; len(der) == len(bytes.TrimSpace(der)); tries++ {
		if der, err = x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key); err != nil || tries > 100_000 {
			t.Fatal(err, tries)
		}
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if k, err := Import(text, Options{ActiveFrom: time.Now()}); err != nil || len(k.Certificates) != 1 || !bytes.Equal(k.Certificates[0], der) {
		t.Errorf("PEM: %v", err)
	}
	for _, behind := range []string{"", "\n", "\r\n"} {
		if got := element(append(bytes.Clone(der), behind...)); !bytes.Equal(got, der) {
			t.Errorf("%d bytes of %d are left, with %q behind it", len(got), len(der), behind)
		}
	}
}
