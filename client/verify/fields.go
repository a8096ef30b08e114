package verify

import (
	"fmt"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"

	"notifyd/contract/encode"
)

// pair is a field as it is signed: in the charset's bytes.
type pair struct{ name, value string }

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

// parseForm reads a form or a query, its values in the bytes that were escaped.
func parseForm(text string) ([]pair, error) { return pairsOf(encode.ReadForm(text, "")) }

// parseXML reads the elements within a root, in UTF-8.
func parseXML(body []byte) ([]pair, error) { return pairsOf(encode.ReadXML(body, "")) }

// parseMembers are the top level of a JSON object; null has no place in what is signed.
func parseMembers(payload *encode.Payload) ([]pair, error) {
	return pairsOf(encode.ReadMembers(payload))
}

func pairsOf(fields []encode.Field, err error) ([]pair, error) {
	if err != nil {
		return nil, err
	}
	all := make([]pair, len(fields))
	for i, f := range fields {
		all[i] = pair{f.Name, f.Text}
	}
	return all, nil
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
