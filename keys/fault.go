package keys

import "fmt"

// Fault is what is wrong with what was to be imported: a closed set.
type Fault string

// The faults.
const (
	FaultWrongPassword  Fault = "wrong_password"
	FaultPasswordNeeded Fault = "password_needed"
	FaultSeveralEntries Fault = "several_entries" // and none was chosen
	FaultNoSuchAlias    Fault = "no_such_alias"
	FaultNoPrivateKey   Fault = "no_private_key"
	FaultPrivateKey     Fault = "private_key" // where there must be none
	FaultNoCertificate  Fault = "no_certificate"
	FaultNoPair         Fault = "no_pair" // key and certificate do not belong together
	FaultExpired        Fault = "expired"
	FaultNotYetValid    Fault = "not_yet_valid"
	FaultTooSmall       Fault = "too_small"
	FaultUnsupported    Fault = "unsupported"
	FaultNotAKey        Fault = "not_a_key"
	FaultDamaged        Fault = "damaged"
	FaultTooLarge       Fault = "too_large"
)

// ImportError says why something cannot be taken as a key. Its text never quotes what it is about, nor a password.
type ImportError struct {
	Fault  Fault
	Detail string
}

func (e *ImportError) Error() string { return string(e.Fault) + ": " + e.Detail }

func fault(f Fault, format string, args ...any) error {
	return &ImportError{f, fmt.Sprintf(format, args...)}
}
