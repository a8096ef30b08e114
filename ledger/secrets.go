package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Cipher seals secrets at rest with AES-256-GCM. Each sealed text names the key that made it, so a keyset with an older
// key still opens what that one sealed. The zero value is not usable.
type Cipher struct{ *masterKeys }

// masterKeys are the keys of one keyset.
type masterKeys struct {
	ids     []uint32 // in the order in which they were added
	primary uint32   // what the keyset would have sealed with
	opens   tink.AEAD
	seals   map[uint32]tink.AEAD
	using   atomic.Uint32 // what is sealed with: the ledger says when all nodes have the primary; see turnMasterKey
}

// NewCipher reads a keyset as GenerateMasterKey makes it.
func NewCipher(keysetJSON []byte) (Cipher, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(keysetJSON)))
	if err != nil {
		return Cipher{}, errors.New("read master key: not a keyset") // the cause may quote key material
	}
	m := &masterKeys{primary: handle.KeysetInfo().GetPrimaryKeyId(), seals: map[uint32]tink.AEAD{}}
	if m.opens, err = aead.New(handle); err != nil {
		return Cipher{}, fmt.Errorf("read master key: %w", err)
	}
	for _, info := range handle.KeysetInfo().GetKeyInfo() {
		id := info.GetKeyId()
		manager := keyset.NewManagerFromHandle(handle)
		if manager.SetPrimary(id) != nil {
			continue // it is disabled
		}
		alone, err := manager.Handle()
		if err != nil {
			return Cipher{}, fmt.Errorf("read master key: %w", err)
		}
		if m.seals[id], err = aead.New(alone); err != nil {
			return Cipher{}, fmt.Errorf("read master key: %w", err)
		}
		m.ids = append(m.ids, id)
	}
	m.using.Store(m.primary)
	return Cipher{m}, nil
}

func (c Cipher) usable() bool { return c.masterKeys != nil }

// Seal encrypts a secret for one place, named by aad: sealed bytes moved to another place do not open.
func (c Cipher) Seal(secret, aad []byte) ([]byte, error) {
	return c.sealWith(c.using.Load(), secret, aad)
}

func (c Cipher) sealWith(id uint32, secret, aad []byte) ([]byte, error) {
	sealed, err := c.seals[id].Encrypt(secret, aad)
	if err != nil {
		return nil, fmt.Errorf("seal secret: %w", err)
	}
	return sealed, nil
}

// Open decrypts what Seal made for the same place.
func (c Cipher) Open(sealed, aad []byte) ([]byte, error) {
	secret, err := c.opens.Decrypt(sealed, aad)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotOpened, err)
	}
	return secret, nil
}

// sealedPrefix is how everything begins that a key has sealed.
func sealedPrefix(id uint32) []byte { return binary.BigEndian.AppendUint32([]byte{1}, id) }

// sealedBy is the key that has sealed something; 0: it is no sealed text.
func sealedBy(sealed []byte) uint32 {
	if len(sealed) < 5 || sealed[0] != 1 {
		return 0
	}
	return binary.BigEndian.Uint32(sealed[1:])
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

// AddMasterKey adds a fresh key to the keyset in a file, for rotation: from when on it is used the nodes find out by
// themselves, once all of them have it. The file is replaced whole or not at all.
func AddMasterKey(path string) (id uint32, err error) {
	err = changeMasterKeys(path, func(m *keyset.Manager, _ []uint32) error {
		if id, err = m.Add(aead.AES256GCMKeyTemplate()); err != nil {
			return err
		}
		return m.SetPrimary(id)
	})
	return id, err
}

// DropMasterKey removes a key from the keyset in a file. Whoever calls it knows that nothing is sealed with it any more.
func DropMasterKey(path string, id uint32) error {
	return changeMasterKeys(path, func(m *keyset.Manager, ids []uint32) error {
		if !slices.Contains(ids, id) {
			return fmt.Errorf("there is no key %d in it: there are %d", id, ids)
		}
		return m.Delete(id) // refuses the primary
	})
}

func changeMasterKeys(path string, change func(m *keyset.Manager, ids []uint32) error) error {
	raw, err := readMasterKey(path)
	if err != nil {
		return err
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(raw)))
	if err != nil {
		return errors.New("read master key: not a keyset")
	}
	var ids []uint32
	for _, info := range handle.KeysetInfo().GetKeyInfo() {
		ids = append(ids, info.GetKeyId())
	}
	manager := keyset.NewManagerFromHandle(handle)
	if err := change(manager, ids); err != nil {
		return fmt.Errorf("change master key %s: %w", path, err)
	}
	if handle, err = manager.Handle(); err != nil {
		return fmt.Errorf("change master key %s: %w", path, err)
	}
	var out bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&out)); err != nil {
		return fmt.Errorf("change master key %s: %w", path, err)
	}
	if err := replaceFile(path, out.Bytes()); err != nil {
		return fmt.Errorf("change master key: %w", err)
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
