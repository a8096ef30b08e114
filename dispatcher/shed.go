package dispatcher

import (
	"net/http"

	"connectrpc.com/connect"

	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Shed refuses calls that submit, before they are read, while there is more to do than is done (P10): what is refused
// must cost next to nothing, or little is left for what was accepted. A batch is refused as a whole.
func (d *Dispatcher) Shed(next http.Handler) http.Handler {
	answer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case notifydv1connect.NotificationServiceSubmitProcedure, notifydv1connect.NotificationServiceSubmitBatchProcedure:
		default:
			next.ServeHTTP(w, r)
			return
		}
		cause := d.overloaded()
		if cause == nil {
			next.ServeHTTP(w, r)
			return
		}
		err := busy(cause)
		d.observer.Answered(Answer{Code: connect.CodeResourceExhausted.String(), Err: err})
		_ = answer.Write(w, r, err) // who does not wait for an answer needs none
	})
}

// overloaded is why a submission would be refused now; nil: it would not.
func (d *Dispatcher) overloaded() error {
	switch {
	case d.async.Full():
		return errQueuesFull
	case d.pace.late(d.now()):
		return errLate
	case !d.room.TryAcquire(roomOverhead):
		return errNoRoom
	}
	d.room.Release(roomOverhead)
	return nil
}
