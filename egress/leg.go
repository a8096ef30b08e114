package egress

import (
	"time"

	"notifyd/merchant"
)

// leg is one way to the merchant within an attempt: a second one is made when the first ended before a byte left.
type leg struct {
	timeouts merchant.Timeouts
	softEnd  time.Time // when the attempt's timeout is over
	end      time.Time // and its grace

	began                     time.Time
	gotConn, wrote, firstByte time.Duration // after began; 0: not yet

	dialing Phase // of the dial that was begun; 0: none was
	conn    *conn // nil: never had one
	reused  bool
	sent    bool // a byte of the request has left
}

// phase is how far a leg came that failed.
func (l *leg) phase() Phase {
	switch {
	case l.conn == nil && l.dialing == 0:
		return PhasePrepare
	case l.conn == nil:
		return l.dialing
	case l.wrote > 0:
		return PhaseFirstByte
	}
	return PhaseWrite
}
