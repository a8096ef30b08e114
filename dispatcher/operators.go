package dispatcher

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// CallersConfig says who may call.
type CallersConfig struct {
	// Required refuses calls without a credential. Without it anybody who reaches the port may do everything, as on the
	// loopback of a development machine; a credential that is given counts all the same.
	Required  bool       `yaml:"required"`
	Operators []Operator `yaml:"operators"`
}

// Operator is one key of somebody who may do everything. A name may stand there twice, while one key takes over from
// another.
type Operator struct {
	Name string `yaml:"name"`
	// KeySHA256 is the SHA-256 of the whole key in hexadecimal digits; NewOperatorKey makes both.
	KeySHA256 string `yaml:"key_sha256"`
}

// DefaultCallersConfig is used where the operator sets nothing: nobody gets in without a credential.
func DefaultCallersConfig() CallersConfig { return CallersConfig{Required: true} }

// Validate names the first key that has a value nobody can work with.
func (c CallersConfig) Validate() error {
	if c.Required && len(c.Operators) == 0 {
		return errors.New("callers.operators: is empty: nobody could register a source; make a key with `notifyd keygen operator NAME`, or set callers.required: false")
	}
	seen := map[Operator]bool{}
	for i, o := range c.Operators {
		key := fmt.Sprintf("callers.operators[%d]", i)
		if err := checkOperatorName(o.Name); err != nil {
			return fmt.Errorf("%s.name: %w", key, err)
		}
		sum, err := hex.DecodeString(o.KeySHA256)
		if err != nil || len(sum) != sha256.Size { // not quoted: it may be the key itself
			return fmt.Errorf("%s.key_sha256: want the SHA-256 of the key, 64 hexadecimal digits", key)
		}
		if o.KeySHA256 = strings.ToLower(o.KeySHA256); seen[o] {
			return fmt.Errorf("%s: %q has this key twice", key, o.Name)
		}
		seen[o] = true
	}
	return nil
}

func checkOperatorName(name string) error {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-@", r) {
			return fmt.Errorf("%q: only letters, digits and . _ - @ are allowed", name)
		}
	}
	if name == "" || len(name) > 64 {
		return fmt.Errorf("%q: must have 1 to 64 characters", name)
	}
	return nil
}

// operatorPrefix begins an operator's key: `no_<name>_<secret>`. The secret has no '_', the name may.
const operatorPrefix = "no_"

// NewOperatorKey makes a key for an operator, and its hash, which is all that the configuration holds.
func NewOperatorKey(name string) (key, keySHA256 string, err error) {
	if err := checkOperatorName(name); err != nil {
		return "", "", fmt.Errorf("make operator key: name: %w", err)
	}
	key = operatorPrefix + name + "_" + rand.Text() + rand.Text() // each has 130 bits in A-Z2-7
	sum := sha256.Sum256([]byte(key))
	return key, hex.EncodeToString(sum[:]), nil
}

// operatorKeys are the hashes of the keys, by name.
type operatorKeys map[string][][]byte

func newOperatorKeys(operators []Operator) operatorKeys {
	keys := operatorKeys{}
	for _, o := range operators {
		sum, _ := hex.DecodeString(o.KeySHA256) // validated
		keys[o.Name] = append(keys[o.Name], sum)
	}
	return keys
}

// prove returns the name that a key claims, and whether the key is one of that operator's.
func (k operatorKeys) prove(key string) (name string, proven bool) {
	name = strings.TrimPrefix(key, operatorPrefix)
	if cut := strings.LastIndexByte(name, '_'); cut >= 0 {
		name = name[:cut]
	}
	sum := sha256.Sum256([]byte(key))
	for _, known := range k[name] {
		if subtle.ConstantTimeCompare(known, sum[:]) == 1 {
			proven = true
		}
	}
	return name, proven
}
