package dispatcher

import (
	"maps"
	"time"
)

// forced is what an operator has decided about the breaker of an isolation key, or of all keys of a merchant. The board
// keeps it, so that it holds on every node and outlives them.
type forced struct {
	Key      string    `json:"key,omitempty"` // empty: all keys of the merchant
	Merchant string    `json:"merchant"`
	Open     bool      `json:"open"` // else closed
	Reason   string    `json:"reason"`
	By       string    `json:"by"`
	At       time.Time `json:"at"`
	Until    time.Time `json:"until,omitzero"` // zero: until it is lifted
}

// overrides are all that is forced; nil: nothing is. They are replaced, never changed.
type overrides struct {
	byKey, byMerchant map[string]*forced
	byName            map[string]*forced // of the board's entry
}

// of is what holds for a key at now; nil: nothing. What names the key goes before what names its merchant.
func (o *overrides) of(key, merchantID string, now time.Time) *forced {
	if o == nil {
		return nil
	}
	if f := o.byKey[key]; f != nil && f.holds(now) {
		return f
	}
	if f := o.byMerchant[merchantID]; f != nil && f.holds(now) {
		return f
	}
	return nil
}

func (f *forced) holds(now time.Time) bool { return f.Until.IsZero() || now.Before(f.Until) }

// closed and open bear that nothing is forced.
func (f *forced) closed() bool { return f != nil && !f.Open }
func (f *forced) open() bool   { return f != nil && f.Open }

// with is a copy in which an entry of the board has another value; nil: it is gone.
func (o *overrides) with(name string, f *forced) *overrides {
	next := &overrides{byKey: map[string]*forced{}, byMerchant: map[string]*forced{}, byName: map[string]*forced{}}
	if o != nil {
		maps.Copy(next.byName, o.byName)
	}
	delete(next.byName, name)
	if f != nil {
		next.byName[name] = f
	}
	if len(next.byName) == 0 {
		return nil
	}
	for _, one := range next.byName {
		if one.Key != "" {
			next.byKey[one.Key] = one
		} else {
			next.byMerchant[one.Merchant] = one
		}
	}
	return next
}
