// Package jsontext writes JSON strings, escaping only what must be (RFC 8259, section 7).
package jsontext

const hexDigits = "0123456789abcdef"

// AppendString writes characters as a JSON string. They are taken as they are: what is not UTF-8 stays so.
func AppendString(dst []byte, text string) []byte {
	return append(AppendText(append(dst, '"'), text), '"')
}

// AppendText writes what is within the quotes.
func AppendText(dst []byte, text string) []byte {
	from := 0 // what comes before has been written
	for i := range len(text) {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(dst, text[from:]...)
}
