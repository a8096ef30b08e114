package notification

import "slices"

// Mask hides the middle of whatever looks like a card number (13 to 19 digits that pass Luhn's check and begin like a
// card's), a mobile number of mainland China (11 digits, with or without 86) or an identity card's number there (18 characters with a valid
// check digit, GB 11643). The length stays. It returns text itself when there is nothing to hide.
func Mask(text []byte) []byte {
	var out []byte
	for i := 0; i < len(text); {
		if !isDigit(text[i]) {
			i++
			continue
		}
		end := i
		for end < len(text) && isDigit(text[end]) {
			end++
		}
		run := text[i:end]
		if len(run) == 17 && end < len(text) && (text[end] == 'X' || text[end] == 'x') { // an identity card's check digit
			run = text[i : end+1]
		}
		if keepFirst, keepLast := shown(run); keepLast > 0 {
			if out == nil {
				out = append([]byte(nil), text...)
			}
			for k := i + keepFirst; k < i+len(run)-keepLast; k++ {
				out[k] = '*'
			}
		}
		i += len(run)
	}
	if out == nil {
		return text
	}
	return out
}

// shown is how much of both ends of a number may be seen; 0, 0 for a number that nobody needs to hide.
func shown(run []byte) (first, last int) {
	switch {
	case isIdentity(run), isCard(run):
		return 6, 4
	case isMobile(run):
		return 3, 4
	case len(run) == 13 && run[0] == '8' && run[1] == '6' && isMobile(run[2:]):
		return 5, 4
	}
	return 0, 0
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isMobile(run []byte) bool { return len(run) == 11 && run[0] == '1' && run[1] >= '3' }

func isCard(run []byte) bool {
	if len(run) < 13 || len(run) > 19 || run[0] < '2' || run[0] > '6' {
		return false
	}
	sum, double := 0, false
	for _, c := range slices.Backward(run) {
		if !isDigit(c) {
			return false
		}
		d := int(c - '0')
		if double {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum, double = sum+d, !double
	}
	return sum%10 == 0
}

// isIdentity checks the weights of GB 11643 and that a date of birth stands in it.
func isIdentity(run []byte) bool {
	if len(run) != 18 {
		return false
	}
	weights := [17]int{7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2}
	sum := 0
	for k, w := range weights {
		sum += w * int(run[k]-'0')
	}
	check := "10X98765432"[sum%11]
	last := run[17]
	if last == 'x' {
		last = 'X'
	}
	month, day := 10*int(run[10]-'0')+int(run[11]-'0'), 10*int(run[12]-'0')+int(run[13]-'0')
	return last == check && month >= 1 && month <= 12 && day >= 1 && day <= 31
}
