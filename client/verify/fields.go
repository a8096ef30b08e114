package verify

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"

	"notifyd/contract/encode"
)

// pair is a field as it is signed: in the charset's bytes.
type pair struct{ name, value string }

const maxPairs = 1000

// decoderOf finds a charset; nil: UTF-8.
func decoderOf(charset string) (encoding.Encoding, error) {
	switch strings.ToLower(charset) {
	case "", "utf-8", "utf8":
		return nil, nil //nolint:nilnil // nothing has to be decoded
	case "gbk", "gb2312":
		return simplifiedchinese.GBK, nil
	case "gb18030":
		return simplifiedchinese.GB18030, nil
	}
	return nil, fmt.Errorf("%s must be one of utf-8, gbk, gb18030", clip(charset))
}

// parseForm reads a form or a query. A name that is there twice is refused: readers do not agree on which one counts.
func parseForm(text string) ([]pair, error) {
	var all []pair
	for part := range strings.SplitSeq(text, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		p := pair{}
		var err error
		if p.name, err = url.QueryUnescape(name); err == nil {
			p.value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return nil, fmt.Errorf("a percent sign in %s has no two hexadecimal digits behind it", clip(part))
		}
		if all = append(all, p); len(all) > maxPairs {
			return nil, fmt.Errorf("more than %d fields", maxPairs)
		}
	}
	return all, unique(all)
}

func unique(all []pair) error {
	seen := make(map[string]bool, len(all))
	for _, p := range all {
		if seen[p.name] {
			return fmt.Errorf("the field %s is there twice", clip(p.name))
		}
		seen[p.name] = true
	}
	return nil
}

// parseXML reads the elements within a root. It resolves no entities but XML's own five, and takes no document type.
func parseXML(body []byte) ([]pair, error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	d.CharsetReader = func(label string, input io.Reader) (io.Reader, error) {
		scheme, err := decoderOf(label)
		if err != nil || scheme == nil {
			return input, err
		}
		return scheme.NewDecoder().Reader(input), nil
	}
	var all []pair
	var text strings.Builder
	depth, roots := 0, 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("no XML: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth++; depth > 2 {
				return nil, fmt.Errorf("the element %s is within another one than the root", clip(t.Name.Local))
			}
			if depth == 1 {
				roots++
			}
			text.Reset()
		case xml.CharData:
			if text.Write(t); depth < 2 && len(bytes.TrimSpace(t)) > 0 {
				return nil, errors.New("there is text outside of the elements")
			}
		case xml.EndElement:
			if depth == 2 {
				all = append(all, pair{t.Name.Local, text.String()})
			}
			depth--
		case xml.Directive:
			return nil, errors.New("it has a document type")
		}
		if len(all) > maxPairs {
			return nil, fmt.Errorf("more than %d fields", maxPairs)
		}
	}
	if roots != 1 {
		return nil, fmt.Errorf("%d root elements, want one", roots)
	}
	return all, unique(all)
}

// members are the top level of a JSON object; null has no place in what is signed.
var members = func() *encode.Mapping {
	m, err := encode.CompileMapping(nil, nil, false)
	if err != nil {
		panic(err)
	}
	return m
}()

func parseMembers(payload *encode.Payload) ([]pair, error) {
	fields, err := members.Fields(payload, nil)
	if err != nil {
		return nil, err
	}
	var all []pair
	for _, f := range fields {
		if f.Kind != encode.KindNull {
			all = append(all, pair{f.Name, f.Text})
		}
	}
	return all, unique(all)
}

// recode turns text of UTF-8 into the charset that is signed.
func recode(all []pair, charset string) error {
	scheme, err := decoderOf(charset)
	if err != nil || scheme == nil {
		return err
	}
	for i := range all {
		if all[i].value, err = scheme.NewEncoder().String(all[i].value); err != nil {
			return fmt.Errorf("the field %s has a character that %s cannot carry", clip(all[i].name), charset)
		}
	}
	return nil
}
