package encode

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os/exec"
	"testing"
)

// TestOthersReadTheCharsetsAsWell: what is written in a charset is read as the same by Python, whose tables are its own.
func TestOthersReadTheCharsetsAsWell(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not on this machine")
	}
	tests := []struct {
		name  string
		least int // characters of the basic plane beyond ASCII that it carries
	}{
		{"gbk", 21_790},
		{"gb18030", 60_000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := charsetNamed(tt.name)
			if err != nil {
				t.Fatal(err)
			}
			var lines bytes.Buffer
			count := 0
			for r := rune(0x80); r < 0x10000; r++ {
				if r >= 0xD800 && r < 0xE000 {
					continue
				}
				encoded, err := set.append(nil, "x", string(r))
				if err != nil {
					continue
				}
				count++
				fmt.Fprintf(&lines, "%x %s\n", r, base64.StdEncoding.EncodeToString(encoded))
			}
			if count < tt.least {
				t.Errorf("%d characters, fewer than %d", count, tt.least)
			}
			read := exec.CommandContext(t.Context(), python, "-c", `
import base64, sys
for line in sys.stdin:
    r, encoded = line.split()
    if base64.b64decode(encoded).decode(sys.argv[1]) != chr(int(r, 16)):
        sys.exit("U+" + r + " is read otherwise")
`, tt.name)
			read.Stdin = &lines
			if out, err := read.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
