package notification

import "time"

// Verdict is what became of one call for an attempt.
type Verdict struct {
	// After is the notification as it stands now.
	After *Notification
	// Attempt is what went over the wire; nil when nothing did.
	Attempt *Attempt
	// Deferred says that no attempt was made and that nothing has been written: the lane keeps the work and asks again at Until.
	Deferred bool
	Reason   Reason    // of the deferral
	Until    time.Time // no use in asking earlier; zero: nobody knows
}
