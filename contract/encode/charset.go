package encode

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"
)

const ruleUTF8 = "is not UTF-8"

// charset writes characters as bytes. It never writes a byte order mark of its own.
type charset struct {
	name   string            // as in a Content-Type
	scheme encoding.Encoding // nil: UTF-8
}

// Charsets are the names that settings may use.
func Charsets() []string { return []string{"utf-8", "gbk", "gb18030"} }

// charsetNamed finds a charset; an empty name is UTF-8.
func charsetNamed(name string) (charset, error) {
	switch strings.ToLower(name) {
	case "", "utf-8", "utf8":
		return charset{name: "utf-8"}, nil
	case "gbk":
		return charset{name: "GBK", scheme: simplifiedchinese.GBK}, nil
	case "gb18030":
		return charset{name: "GB18030", scheme: simplifiedchinese.GB18030}, nil
	}
	return charset{}, refuse("charset", "%s: must be one of %s", clip(name), strings.Join(Charsets(), ", "))
}

// append writes a text, which belongs to the field.
func (c charset) append(dst []byte, field, text string) ([]byte, error) {
	return c.recode(append(dst, text...), len(dst), field)
}

// recode turns what stands behind an offset, in UTF-8, into the charset.
func (c charset) recode(dst []byte, from int, field string) ([]byte, error) {
	if !utf8.Valid(dst[from:]) {
		return nil, &FieldError{Field: field, Rule: ruleUTF8}
	}
	if c.scheme == nil || isASCII(dst[from:]) {
		return dst, nil
	}
	text := string(dst[from:])
	encoded, fits := c.encode(text)
	if !fits {
		return nil, &FieldError{Field: field, Rule: c.lacks(text)}
	}
	return append(dst[:from], encoded...), nil
}

// encode reports whether every reader gets the text back as it was. The library writes some characters of private use
// as others.
func (c charset) encode(text string) (encoded string, fits bool) {
	encoded, err := c.scheme.NewEncoder().String(text)
	if err != nil || c.scheme == simplifiedchinese.GBK && disputedGBK(encoded) || strings.ContainsFunc(text, c.disputed) {
		return "", false
	}
	again, err := c.scheme.NewDecoder().String(encoded)
	return encoded, err == nil && again == text
}

// disputed reports characters that GB18030 wrote otherwise in one of its revisions of 2000, 2005 and 2022: Java reads
// them by another than Python.
func (c charset) disputed(r rune) bool {
	return c.scheme == simplifiedchinese.GB18030 && (r == 0x1E3F || r >= 0x9FB4 && r <= 0x9FBB || r >= 0xFE10 && r <= 0xFE19)
}

// disputedGBK reports bytes that GBK has left to private use, or that readers do not agree on: the euro sign is Windows'
// own 0x80, and what is at the end of the table, some radicals and rare characters, Java and Python read otherwise.
func disputedGBK(encoded string) bool {
	for i := 0; i < len(encoded); i++ {
		switch lead := encoded[i]; {
		case lead == 0x80:
			return true
		case lead > 0x80 && i+1 < len(encoded):
			i++
			trail := encoded[i]
			if lead == 0xFE && trail >= 0x50 || lead == 0xA9 && trail >= 0x89 && trail <= 0x95 ||
				lead == 0xA8 && (trail == 0xBF || trail == 0x92) {
				return true
			}
		}
	}
	return false
}

// lacks names the first character that cannot be carried.
func (c charset) lacks(text string) string {
	for _, r := range text {
		if _, fits := c.encode(string(r)); !fits {
			return fmt.Sprintf("holds %q (%U), which %s cannot carry", r, r, c.name)
		}
	}
	return "holds a character that " + c.name + " cannot carry"
}

func isASCII[T string | []byte](text T) bool {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
