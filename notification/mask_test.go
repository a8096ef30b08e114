package notification_test

import (
	"bytes"
	"testing"

	"notifyd/notification"
)

func TestMask(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "",
		`{"amount":10.50}`:                    `{"amount":10.50}`,
		`{"card":"6222020200112230004"}`:      `{"card":"622202*********0004"}`, // 19 digits, UnionPay
		`{"card":4111111111111111}`:           `{"card":411111******1111}`,
		`{"card":4111111111111112}`:           `{"card":4111111111111112}`, // Luhn says no
		`{"phone":"13812345678","t":1}`:       `{"phone":"138****5678","t":1}`,
		`+8613812345678`:                      `+86138****5678`,
		`11010519491231002X`:                  `110105********002X`,
		`11010519491231002x,`:                 `110105********002x,`,
		`110105194912310021`:                  `110105194912310021`, // wrong check digit
		`440524188001010014`:                  `440524********0014`,
		`1700000000000`:                       `1700000000000`,        // milliseconds
		`12345678901234567890`:                `12345678901234567890`, // too long for a card
		`a 4111111111111111 b 13912345678 c`:  `a 411111******1111 b 139****5678 c`,
		"\xff\xfe4111111111111111\x00":        "\xff\xfe411111******1111\x00",
		`card=4111111111111111&m=13912345678`: `card=411111******1111&m=139****5678`,
	} {
		in := []byte(text)
		if got := notification.Mask(in); string(got) != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
		if string(in) != text {
			t.Errorf("%q was changed in place", text)
		}
	}
}

func FuzzMask(f *testing.F) {
	f.Add([]byte("11010519491231002X 4111111111111111"))
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		once := notification.Mask(text)
		if !bytes.Equal(before, text) || len(once) != len(text) {
			t.Fatalf("%q became %q", before, once)
		}
		for i := range once {
			if once[i] != text[i] && (once[i] != '*' || text[i] < '0' || text[i] > '9') {
				t.Fatalf("%q: byte %d became %q", text, i, once[i])
			}
		}
	})
}
