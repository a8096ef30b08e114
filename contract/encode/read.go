package encode

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"golang.org/x/text/encoding/simplifiedchinese"
)

const maxRead = 1000 // fields

// mark is UTF-8's byte order mark, which readers of JSON and XML pass over.
var mark = []byte("\xEF\xBB\xBF")

// Decode is the text, in UTF-8, of bytes in a charset. What would not be the same bytes again if it was written anew is
// refused: readers do not agree on it.
func Decode(written []byte, charset string) ([]byte, error) {
	set, err := charsetNamed(charset)
	if err != nil {
		return nil, err
	}
	if set.scheme == nil {
		if at := invalidUTF8(written); at >= 0 {
			return nil, fmt.Errorf("the byte at offset %d is not UTF-8", at)
		}
		return written, nil
	}
	if isASCII(written) {
		return written, nil
	}
	text, err := set.scheme.NewDecoder().Bytes(written)
	if err != nil {
		return nil, fmt.Errorf("it is not %s: %w", set.name, err)
	}
	if again, fits := set.encode(string(text)); !fits || again != string(written) {
		return nil, fmt.Errorf("it is not %s, or has a character that readers do not agree on", set.name)
	}
	return text, nil
}

// ReadForm reads a form or a query. A name that is there twice is refused: readers do not agree on which one counts. With a
// charset the fields are in UTF-8; without one they are the bytes that were escaped.
func ReadForm(text, charset string) ([]Field, error) {
	var fields []Field
	for part := range strings.SplitSeq(text, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		field := Field{Kind: KindString}
		var err error
		if field.Name, err = url.QueryUnescape(name); err == nil {
			field.Text, err = url.QueryUnescape(value)
		}
		if err != nil {
			return nil, fmt.Errorf("a percent sign in the field %s has no two hexadecimal digits behind it", clip(name))
		}
		if charset != "" {
			if err := field.decode(charset); err != nil {
				return nil, err
			}
		}
		if fields = append(fields, field); len(fields) > maxRead {
			return nil, errTooMany
		}
	}
	return fields, unique(fields)
}

var errTooMany = fmt.Errorf("more than %d fields", maxRead)

func (f *Field) decode(charset string) error {
	name, err := Decode([]byte(f.Name), charset)
	if err != nil {
		return fmt.Errorf("a field's name: %w", err)
	}
	text, err := Decode([]byte(f.Text), charset)
	if err != nil {
		return fmt.Errorf("the field %s: %w", clip(string(name)), err)
	}
	f.Name, f.Text = string(name), string(text)
	return nil
}

func unique(fields []Field) error {
	var seen nameSet
	for i := range fields {
		if !seen.add(fields[i].Name) {
			return fmt.Errorf("the field %s is there twice", clip(fields[i].Name))
		}
	}
	return nil
}

// ReadJSON reads a JSON text in a charset.
func ReadJSON(document []byte, charset string) (*Payload, error) {
	text, err := Decode(document, charset)
	if err != nil {
		return nil, err
	}
	return ParsePayload(bytes.TrimPrefix(text, mark))
}

// ReadXML reads the elements within a root. It resolves no entities but XML's own five, and takes no document type. With a charset
// the document is read in it, whatever it declares; without one as it declares.
func ReadXML(document []byte, charset string) ([]Field, error) {
	labeled := declared
	if charset != "" {
		var err error
		if document, err = Decode(document, charset); err != nil {
			return nil, err
		}
		labeled = func(_ string, input io.Reader) (io.Reader, error) { return input, nil }
	}
	decoder := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(document, mark)))
	decoder.CharsetReader = labeled
	r := elements{}
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("no XML: %w", err)
		}
		if err := r.take(token); err != nil {
			return nil, err
		}
	}
	if r.roots != 1 {
		return nil, fmt.Errorf("%d root elements, want one", r.roots)
	}
	return r.fields, unique(r.fields)
}

// declared reads what a document says it is written in.
func declared(label string, input io.Reader) (io.Reader, error) {
	switch strings.ToLower(label) {
	case "utf8":
		return input, nil
	case "gbk", "gb2312":
		return simplifiedchinese.GBK.NewDecoder().Reader(input), nil
	case "gb18030":
		return simplifiedchinese.GB18030.NewDecoder().Reader(input), nil
	}
	return nil, fmt.Errorf("the charset %s: must be one of %s", clip(label), strings.Join(Charsets(), ", "))
}

// elements are those that were read of a document.
type elements struct {
	fields       []Field
	text         strings.Builder // of the one that is open
	depth, roots int
}

func (r *elements) take(token xml.Token) error {
	switch t := token.(type) {
	case xml.StartElement:
		if r.depth++; r.depth > 2 {
			return fmt.Errorf("the element %s is within another one than the root", clip(t.Name.Local))
		}
		if r.depth == 1 {
			r.roots++
		}
		r.text.Reset()
	case xml.CharData:
		if r.text.Write(t); r.depth < 2 && len(bytes.TrimSpace(t)) > 0 {
			return errors.New("there is text outside of the elements")
		}
	case xml.EndElement:
		if r.depth == 2 {
			r.fields = append(r.fields, Field{Name: t.Name.Local, Text: r.text.String(), Kind: KindString})
		}
		r.depth--
	case xml.Directive:
		return errors.New("it has a document type")
	}
	if len(r.fields) > maxRead {
		return errTooMany
	}
	return nil
}

// ReadMembers are the members of a payload that is an object, as they are written where fields are text. Nulls are left out.
func ReadMembers(payload *Payload) ([]Field, error) {
	all, err := (&Mapping{}).members(payload)
	if err != nil {
		return nil, err
	}
	var fields []Field
	for _, f := range all {
		if f.Kind != KindNull {
			fields = append(fields, f)
		}
	}
	return fields, nil
}
