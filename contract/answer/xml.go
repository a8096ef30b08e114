package answer

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/simplifiedchinese"

	"notifyd/contract/encode"
)

const maxDepth = 64 // elements within each other

var errXML = errors.New("not the agreed XML")

// element is one element's text. Names count without their name space.
type element struct {
	path    []string
	value   string
	charset string // empty: what the answer declares, and see characters
}

func (e element) disagrees(answer []byte, cut bool) string {
	if !cut && len(answer) <= maxParse {
		if text, err := e.text(answer); err == nil && text == e.value {
			return ""
		}
	}
	return wrong("XML with "+show(e.value)+" in "+show(strings.Join(e.path, "/")), answer, cut)
}

// text is what the element holds. The whole answer must be one well-formed document, without declarations of its own
// (no entities can be defined), and have the element once and with nothing but text in it.
func (e element) text(answer []byte) (string, error) {
	decoder, err := e.decoder(answer)
	if err != nil {
		return "", err
	}
	var (
		open  int // elements that are
		match int // of them, how many are the path's first ones
		found bool
		roots int
		text  strings.Builder
	)
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		within := open == match && match == len(e.path)
		switch token := token.(type) {
		case xml.StartElement:
			if open == 0 {
				roots++
			}
			if roots > 1 || within || open >= maxDepth {
				return "", errXML
			}
			if open == match && token.Name.Local == e.path[match] {
				match++
				if match == len(e.path) {
					if found {
						return "", errXML
					}
					found = true
				}
			}
			open++
		case xml.EndElement:
			if open == match {
				match--
			}
			open--
		case xml.CharData:
			if within {
				text.Write(token)
			} else if open == 0 && len(bytes.Trim(token, space)) > 0 {
				return "", errXML
			}
		case xml.Directive:
			return "", errXML
		}
	}
	if !found {
		return "", errXML
	}
	return strings.Trim(text.String(), space), nil
}

func (e element) decoder(answer []byte) (*xml.Decoder, error) {
	if e.charset == "" {
		return newDecoder(bytes.TrimPrefix(answer, mark)), nil
	}
	text, err := encode.Decode(answer, e.charset)
	if err != nil {
		return nil, err
	}
	decoder := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, mark)))
	decoder.CharsetReader = func(_ string, input io.Reader) (io.Reader, error) { return input, nil } // it is UTF-8 now
	return decoder, nil
}

// newDecoder reads UTF-8 and what says, or by its bytes must be, Chinese.
func newDecoder(answer []byte) *xml.Decoder {
	decoded := characters(answer)
	already := !utf8.Valid(answer)
	decoder := xml.NewDecoder(bytes.NewReader(decoded))
	decoder.CharsetReader = func(label string, input io.Reader) (io.Reader, error) {
		switch strings.ToLower(label) {
		case "us-ascii":
			return input, nil
		case "gbk", "gb2312", "gb18030":
			if already {
				return input, nil
			}
			return simplifiedchinese.GB18030.NewDecoder().Reader(input), nil
		}
		return nil, errXML
	}
	return decoder
}
