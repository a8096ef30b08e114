package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Cipher seals secrets at rest with AES-256-GCM. Each sealed text names the key that made it, so a keyset with an older
// key still opens what that one sealed. The zero value is not usable.
type Cipher struct{ aead tink.AEAD }

// NewCipher reads a keyset as GenerateMasterKey makes it.
func NewCipher(keysetJSON []byte) (Cipher, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(keysetJSON)))
	if err != nil {
		return Cipher{}, errors.New("read master key: not a keyset") // the cause may quote key material
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return Cipher{}, fmt.Errorf("read master key: %w", err)
	}
	return Cipher{primitive}, nil
}

func (c Cipher) usable() bool { return c.aead != nil }

// Seal encrypts a secret for one place, named by aad: sealed bytes moved to another place do not open.
func (c Cipher) Seal(secret, aad []byte) ([]byte, error) {
	sealed, err := c.aead.Encrypt(secret, aad)
	if err != nil {
		return nil, fmt.Errorf("seal secret: %w", err)
	}
	return sealed, nil
}

// Open decrypts what Seal made for the same place.
func (c Cipher) Open(sealed, aad []byte) ([]byte, error) {
	secret, err := c.aead.Decrypt(sealed, aad)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotOpened, err)
	}
	return secret, nil
}

var errNotOpened = errors.New("open secret: it was sealed under another master key, or is damaged")

// GenerateMasterKey makes a keyset with one fresh AES-256-GCM key, as JSON.
func GenerateMasterKey() ([]byte, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("generate master key: %w", err)
	}
	var out bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&out)); err != nil {
		return nil, fmt.Errorf("generate master key: %w", err)
	}
	return out.Bytes(), nil
}

// LoadMasterKey reads the keyset at path, which nobody but its owner may read. With create it makes a missing one; of
// several processes that do so at once one wins, and all read the same key.
func LoadMasterKey(path string, create bool) ([]byte, error) {
	key, err := readMasterKey(path)
	if !create || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = GenerateMasterKey(); err != nil {
		return nil, err
	}
	if err := writeOnce(path, key); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create master key: %w", err)
	}
	return readMasterKey(path)
}

// CreateMasterKey writes a new keyset to a file that does not exist yet.
func CreateMasterKey(path string) error {
	key, err := GenerateMasterKey()
	if err != nil {
		return err
	}
	if err := writeOnce(path, key); err != nil {
		return fmt.Errorf("create master key: %w", err)
	}
	return nil
}

func readMasterKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load master key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("load master key: %s has mode %#o, others could read it: want 0600", path, mode)
	}
	key, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("load master key: %w", err)
	}
	return key, nil
}

// writeOnce makes a file appear whole and durable, or not at all, and never replaces one.
func writeOnce(path string, content []byte) (err error) {
	temp, err := writeTemp(filepath.Dir(path), ".master-key-*", content)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(temp)) }()
	if err := os.Link(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// writeTemp writes a durable file of mode 0600 under a name of its own.
func writeTemp(dir, pattern string, content []byte) (path string, err error) {
	temp, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return "", err
	}
	_, err = temp.Write(content)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return "", errors.Join(err, os.Remove(temp.Name()))
	}
	return temp.Name(), nil
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path) //nolint:gosec // of a file that the operator names
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
