package notification

import "time"

// Verdict is what became of one call for an attempt.
type Verdict struct {
	// After is the notification as it stands now.
	After *Notification
	// Attempts are new on record: the one that was made, last, and before it an interrupted one that left no outcome.
	Attempts []Attempt
	// Deferred says that no attempt was made and that nothing has been written: the lane keeps the work and asks again at Until.
	Deferred bool
	Reason   Reason    // of the deferral
	Until    time.Time // no use in asking earlier; zero: nobody knows
}

// Attempt is the one that was made; nil when none was.
func (v Verdict) Attempt() *Attempt {
	if len(v.Attempts) == 0 {
		return nil
	}
	return &v.Attempts[len(v.Attempts)-1]
}
