package outage

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/ledger"
	"notifyd/notification"
)

// fill gives every field a value of its own, so that one that is forgotten shows.
func fill(v reflect.Value, seed *int64) {
	*seed++
	switch v.Kind() { //nolint:exhaustive // the kinds that records have
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), seed)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.UnixMicro(1_700_000_000_000_000 + *seed).UTC()))
			return
		}
		for _, field := range v.Fields() {
			fill(field, seed)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), seed)
		fill(v.Index(1), seed)
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(*seed+int64(i)) % 251)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"key": "value"}))
	case reflect.String:
		v.SetString("text " + time.Duration(*seed).String())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		if v.Type() == reflect.TypeFor[time.Duration]() {
			v.SetInt(*seed * int64(time.Microsecond))
			return
		}
		v.SetInt(*seed)
	case reflect.Int:
		v.SetInt(*seed)
	case reflect.Uint8:
		v.SetUint(uint64(*seed) % 200)
	default:
		panic("no value for a " + v.Kind().String())
	}
}

func fullRecord(tb testing.TB) ledger.Record {
	tb.Helper()
	var r ledger.Record
	var seed int64
	fill(reflect.ValueOf(&r).Elem(), &seed)
	return r
}

func TestEveryFieldOfARecordSurvives(t *testing.T) {
	r := fullRecord(t)
	r.Patient = false // says how it is written, not what it is
	r.Attempts[1].Request.Body = r.Notification.Body
	data, err := encodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(data)
	if diff := cmp.Diff(r, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if len(r.Attempts[0].Request.Body) == 0 || len(r.Attempts[0].Response.Body) == 0 {
		t.Error("the record itself was changed")
	}
	for cut := range data {
		if _, err := decodeRecord(data[:cut]); err == nil {
			t.Fatalf("cut off at %d of %d bytes it decodes", cut, len(data))
		}
	}
	r = ledger.Record{Notification: r.Notification}
	if data, err = encodeRecord(r); err != nil {
		t.Fatal(err)
	}
	if got, err = decodeRecord(data); err != nil || len(got.Attempts) != 0 || got.Hold != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	data, err := encodeRecord(fullRecord(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{recordVersion})
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = decodeRecord(data) // no panic, no endless memory
	})
}

func TestFollowsIsTheLedgersRule(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	progress := func(state notification.State, generation int64, attempts int, seconds int) notification.Progress {
		return notification.Progress{State: state, Generation: generation, Attempts: attempts, UpdatedAt: at.Add(time.Duration(seconds) * time.Second)}
	}
	const retrying, dead, delivered = notification.StateRetrying, notification.StateDead, notification.StateDelivered
	for name, tc := range map[string]struct {
		before, next notification.Progress
		want         bool
	}{
		"another attempt":               {progress(retrying, 1, 1, 0), progress(retrying, 1, 2, 0), true},
		"an older attempt":              {progress(retrying, 1, 2, 0), progress(retrying, 1, 1, 9), false},
		"later":                         {progress(retrying, 1, 1, 0), progress(retrying, 1, 1, 1), true},
		"earlier":                       {progress(retrying, 1, 1, 1), progress(retrying, 1, 1, 0), false},
		"a newer generation":            {progress(dead, 1, 5, 0), progress(retrying, 2, 5, 0), true},
		"final stays":                   {progress(dead, 1, 1, 0), progress(retrying, 1, 2, 0), false},
		"final ends":                    {progress(retrying, 1, 2, 0), progress(dead, 1, 2, 0), true},
		"delivered stays":               {progress(delivered, 1, 1, 0), progress(retrying, 2, 2, 0), false},
		"delivered, of an old attempt":  {progress(retrying, 2, 2, 0), progress(delivered, 1, 1, 0), true},
		"delivered, and a resend of it": {progress(delivered, 1, 1, 0), progress(delivered, 2, 2, 0), false},
	} {
		if got := follows(tc.next, tc.before); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
