package verify

import "fmt"

// Reason says why a callback is refused.
type Reason string

// The reasons. The set is closed.
const (
	Missing       Reason = "missing"       // a header or a field that has to be there is not
	Malformed     Reason = "malformed"     // a header or a field cannot be read, or is there twice
	TooOld        Reason = "too_old"       // it was signed longer ago than the tolerance
	TooNew        Reason = "too_new"       // it was signed further in the future than the tolerance
	UnknownKey    Reason = "unknown_key"   // it names a key that the verifier does not have
	Mismatch      Reason = "mismatch"      // no signature matches
	BadBody       Reason = "bad_body"      // the body cannot be read, is too long, or is not what the profile sends
	Undecryptable Reason = "undecryptable" // the signature is good, and what is encrypted cannot be opened
)

// Error is why a callback is refused. Its text holds no secret; of the request it repeats names and no more than a few
// characters.
type Error struct {
	Reason Reason
	What   string // which header, field or part
	Rule   string // and what is wrong with it; it may be empty
}

func (e *Error) Error() string {
	text := e.What
	switch {
	case e.Rule != "":
		text += ": " + e.Rule
	case e.Reason == Missing:
		text += " missing"
	}
	return "verify callback: " + text
}

// Is makes errors.Is(err, &Error{Reason: Mismatch}) ask for the reason alone.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Reason == e.Reason && other.What == "" && other.Rule == ""
}

func refuse(reason Reason, what, rule string, args ...any) *Error {
	return &Error{Reason: reason, What: what, Rule: fmt.Sprintf(rule, args...)}
}

// clip keeps what others sent short in an error.
func clip(text string) string {
	const most = 40
	if len(text) > most {
		text = text[:most] + "…"
	}
	return fmt.Sprintf("%q", text)
}
