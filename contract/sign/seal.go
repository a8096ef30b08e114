package sign

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"

	"github.com/emmansun/gmsm/padding"
	"github.com/emmansun/gmsm/sm4"
)

// Cipher says how a part of a request is encrypted. The zero value is none of them.
type Cipher int

const (
	// AES256GCM takes a key of 32 bytes and a nonce of 12: WeChat Pay v3's resource. Sealed is ciphertext‖tag.
	AES256GCM Cipher = iota + 1
	// SM4GCM takes a key of 16 bytes and a nonce of 12. Sealed is ciphertext‖tag.
	SM4GCM
	// SM4CBC takes a key of 16 bytes and an IV of 16, which is sent apart and not in front of the ciphertext; the padding is
	// PKCS#7's. Nothing in it tells whether it was changed: sign what is sealed.
	SM4CBC
)

var cipherNames = []string{"", "aes-256-gcm", "sm4-gcm", "sm4-cbc"}

// Ciphers are the names, in order.
func Ciphers() []string { return append([]string(nil), cipherNames[1:]...) }

// ParseCipher reads a name; the error lists those there are.
func ParseCipher(name string) (Cipher, error) {
	at, err := find("cipher", name, cipherNames)
	return Cipher(at), err
}

// String is the cipher's name.
func (c Cipher) String() string { return nameOf("cipher", int(c), cipherNames) }

// KeySize is how many bytes a key has; 0 for none of the ciphers.
func (c Cipher) KeySize() int {
	switch c {
	case AES256GCM:
		return 32
	case SM4GCM, SM4CBC:
		return 16
	}
	return 0
}

// ErrUnsealed says that what is to be opened is not what this key and nonce have sealed.
var ErrUnsealed = errors.New("open: not sealed with this key, nonce and additional data, or changed since")

// Sealer encrypts and decrypts with one key. It is safe for concurrent use.
type Sealer struct {
	cipher Cipher
	block  cipher.Block
	aead   cipher.AEAD // nil: CBC
}

// NewSealer pairs a cipher with a key; a key of another size is an error that names both.
func NewSealer(c Cipher, key Secret) (*Sealer, error) {
	size := c.KeySize()
	if size == 0 {
		_, err := ParseCipher(c.String())
		return nil, err
	}
	if key.Len() != size {
		return nil, fmt.Errorf("%s: a key of %d bytes must have %d", c, key.Len(), size)
	}
	newBlock := sm4.NewCipher
	if c == AES256GCM {
		newBlock = aes.NewCipher
	}
	block, err := newBlock(key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	s := &Sealer{cipher: c, block: block}
	if c == SM4CBC {
		return s, nil
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return s, nil
}

// NonceSize is how many bytes a nonce (an IV) has.
func (s *Sealer) NonceSize() int {
	if s.aead == nil {
		return sm4.BlockSize
	}
	return s.aead.NonceSize()
}

// Seal encrypts. The caller gives a nonce that this key has never had: with GCM, a nonce used twice gives away the texts and
// lets others make valid ones. Only the GCM ciphers take additional data, which is not encrypted but cannot be changed.
func (s *Sealer) Seal(nonce, plain, additional []byte) ([]byte, error) {
	if err := s.check(nonce, additional); err != nil {
		return nil, err
	}
	if s.aead != nil {
		return s.aead.Seal(nil, nonce, plain, additional), nil
	}
	sealed := padding.NewPKCS7Padding(sm4.BlockSize).Pad(slices.Clip(plain)) // a copy: clipped, it has no room for the padding
	cipher.NewCBCEncrypter(s.block, nonce).CryptBlocks(sealed, sealed)
	return sealed, nil
}

// Open decrypts; what does not fit is ErrUnsealed. With sm4-cbc most changes go unseen: check a signature first.
func (s *Sealer) Open(nonce, sealed, additional []byte) ([]byte, error) {
	if err := s.check(nonce, additional); err != nil {
		return nil, err
	}
	if s.aead != nil {
		plain, err := s.aead.Open(nil, nonce, sealed, additional)
		if err != nil {
			return nil, ErrUnsealed
		}
		return plain, nil
	}
	if len(sealed)%sm4.BlockSize != 0 {
		return nil, ErrUnsealed
	}
	padded := slices.Clone(sealed)
	cipher.NewCBCDecrypter(s.block, nonce).CryptBlocks(padded, padded)
	plain, err := padding.NewPKCS7Padding(sm4.BlockSize).Unpad(padded)
	if err != nil {
		return nil, ErrUnsealed
	}
	return plain, nil
}

func (s *Sealer) check(nonce, additional []byte) error {
	if len(nonce) != s.NonceSize() {
		return fmt.Errorf("%s: a nonce of %d bytes must have %d", s.cipher, len(nonce), s.NonceSize())
	}
	if s.aead == nil && len(additional) > 0 {
		return fmt.Errorf("%s: additional data of %d bytes: it takes none", s.cipher, len(additional))
	}
	return nil
}
