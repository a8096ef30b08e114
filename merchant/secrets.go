package merchant

import "time"

// DefaultRotation is how long a secret that is replaced still signs beside the new one.
const DefaultRotation = 24 * time.Hour

// After is what holds when s is given to a merchant that has known: no secret keeps the known one, and a new one signs beside
// the known one for the signer's rotation.
func (s Secrets) After(known Secrets, signer Signer, now time.Time) Secrets {
	switch s.SigningSecret {
	case "", known.SigningSecret:
		return known
	}
	s.PreviousSecret, s.PreviousUntil = "", time.Time{}
	if known.SigningSecret == "" || signer.NoRotation {
		return s
	}
	rotation := signer.Rotation
	if rotation == 0 {
		rotation = DefaultRotation
	}
	s.PreviousSecret, s.PreviousUntil = known.SigningSecret, now.Add(rotation)
	return s
}
