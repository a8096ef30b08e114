package envelope_test

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

// fill sets every field of a struct to a value that is not its zero, so that a field which the codec forgets shows.
func fill(v reflect.Value, seed *int64) {
	*seed++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.UnixMicro(1_700_000_000_000_000 + *seed).UTC()))
		return
	case time.Duration:
		v.SetInt(*seed * int64(time.Microsecond))
		return
	}
	switch v.Kind() { //nolint:exhaustive // the kinds that the nouns use
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field, seed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), seed)
	case reflect.String:
		v.SetString("s" + time.Duration(*seed).String())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(*seed)
	case reflect.Uint8:
		v.SetUint(uint64(*seed%250) + 1)
	case reflect.Slice:
		v.SetBytes([]byte{byte(*seed), 2})
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(i) + 1)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
	default:
		panic("fill: no rule for " + v.Type().String())
	}
}

func TestEveryFieldSurvives(t *testing.T) {
	var w notification.Work
	var seed int64
	fill(reflect.ValueOf(&w).Elem(), &seed)
	w.Claim, w.HasRow, w.FromLedger, w.OnlyLapsed = false, false, false, false // where the work came from says these, not the message
	data, err := envelope.Encode([]notification.Work{w, w})
	if err != nil {
		t.Fatal(err)
	}
	back, err := envelope.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != 2 || !reflect.DeepEqual(back[0], w) {
		t.Fatalf("got %+v\nwant %+v", back[0].Notification, w.Notification)
	}
}

func FuzzDecode(f *testing.F) {
	good, _ := envelope.Encode([]notification.Work{{Notification: &notification.Notification{Body: []byte("x")}}})
	f.Add(good)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		works, err := envelope.Decode(data)
		if err != nil {
			return
		}
		again, err := envelope.Encode(works)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		back, err := envelope.Decode(again)
		if err != nil || len(back) != len(works) {
			t.Fatalf("%d works come back as %d: %v", len(works), len(back), err)
		}
		for i, w := range works {
			if b := back[i]; b.ID != w.ID || b.Digest != w.Digest || !bytes.Equal(b.Body, w.Body) || b.Route != w.Route || b.State != w.State || b.Generation != w.Generation {
				t.Fatalf("work %d comes back as %+v, was %+v", i, b.Notification, w.Notification)
			}
		}
	})
}

func TestEverySubjectHasAPlace(t *testing.T) {
	id := (&notification.Notification{Source: "s", RequestID: "r"}).DeriveID()
	for subject, want := range map[string]string{
		envelope.NotifySubject(3):          "shard",
		envelope.OwnQueueSubject("m:acme"): "own_queue",
		envelope.DelaySubject(17, id):      "delay",
		envelope.DueSubject(17):            "due",
	} {
		if got := envelope.PlaceOf(subject); got != want {
			t.Errorf("PlaceOf(%q) = %q, want %q", subject, got, want)
		}
	}
}
