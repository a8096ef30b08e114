package contract

import (
	"errors"
	"fmt"
	"maps"
	"regexp/syntax"
	"slices"
	"strings"

	"notifyd/contract/answer"
	"notifyd/contract/encode"
	"notifyd/contract/sign"
	"notifyd/merchant"
)

// Contract is compiled: it can be used by many goroutines.
type Contract struct {
	profile  profile
	settings merchant.Contract // the profile's and the merchant's own

	method   string
	encoding *encode.Encoding
	inner    *encode.Encoding // what is encrypted; nil: nothing is
	mapping  *encode.Mapping
	adds     []*encode.Mapping // one field each
	sort     *encode.Sort

	algorithm sign.Algorithm
	word      string
	output    sign.Encoding
	input     *sign.Pattern
	paths     map[string]*encode.Path // that input has
	bodyPath  *encode.Path            // where in the JSON body the signature goes
	value     *sign.Pattern           // of the signature's header, for one key
	head      *sign.Pattern           // and for several keys
	each      *sign.Pattern
	headers   []header
	cipher    sign.Cipher
	aad       *sign.Pattern

	acknowledgement *answer.Acknowledgement
	answers         *answerSignature // nil: they are not signed
	usesPayload     bool
	usesFields      bool
	signsSorted     bool
	usesEntropy     bool
	certificate     string // why a key needs a certificate; empty: it does not
	mayRefuse       bool   // some notification cannot be carried
}

type header struct {
	name  string
	value *sign.Pattern
}

// FieldError says what is wrong with one setting; Field is its path within the contract, for example signer.input.
type FieldError struct{ Field, Rule string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Rule }

// Errors takes an error of Compile apart.
func Errors(err error) (all []*FieldError) {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			all = append(all, Errors(e)...)
		}
		return all
	}
	if one, ok := errors.AsType[*FieldError](err); ok {
		return []*FieldError{one}
	}
	return nil
}

// compiler collects what is wrong.
type compiler struct {
	c    *Contract
	errs []error
}

func (k *compiler) refuse(field, rule string, args ...any) {
	k.errs = append(k.errs, &FieldError{field, fmt.Sprintf(rule, args...)})
}

// Compile checks a merchant's settings, all of them but its keys; see Errors for what it refuses.
func Compile(given merchant.Contract) (*Contract, error) {
	p, ok := profiles(given.Profile)
	if !ok {
		return nil, &FieldError{"profile", fmt.Sprintf("%q: must be one of %s", given.Profile, strings.Join(Profiles(), ", "))}
	}
	k := &compiler{c: &Contract{profile: p}}
	k.merge(given)
	k.encryption()
	if k.encoding(); k.c.mapping != nil { // what is signed depends on it
		k.signer()
		k.headers()
	}
	k.answerSignature()
	k.acknowledgement()
	if len(k.errs) > 0 {
		return nil, errors.Join(k.errs...)
	}
	k.c.certificate = k.c.wantsCertificate()
	k.c.usesEntropy = k.c.inner != nil || k.c.uses("nonce") != "" || slices.Contains(k.c.profile.adds, addition{"nonce_str", "@nonce"})
	k.c.mayRefuse = k.c.mayRefuse || k.c.usesPayload || k.c.usesFields || k.c.settings.Encoding.Format != encode.FormatRaw
	return k.c, nil
}

// merge lays what the merchant gives over what the profile says.
func (k *compiler) merge(given merchant.Contract) {
	p := k.c.profile
	s := p.settings
	s.Profile = given.Profile
	check := func(setting, field string, is bool) bool {
		if is && !p.leavesOpen(setting) {
			k.refuse(field, "is fixed by the profile %s; leave it empty, or take the profile custom", given.Profile)
			return false
		}
		return is
	}
	over := func(setting, field string, to *string, value string) {
		if check(setting, field, value != "") {
			*to = value
		}
	}
	e, given2 := &s.Encoding, given.Encoding
	over(openShape, "encoding.method", &e.Method, given2.Method)
	over(openShape, "encoding.format", &e.Format, given2.Format)
	over(openCharset, "encoding.charset", &e.Charset, given2.Charset)
	over(openTemplate, "encoding.template", &e.Template, given2.Template)
	over(openTemplate, "encoding.content_type", &e.ContentType, given2.ContentType)
	over(openShape, "encoding.xml_root", &e.XMLRoot, given2.XMLRoot)
	if check(openFields, "encoding.fields", len(given2.Fields) > 0) {
		e.Fields = given2.Fields
	}
	if check(openShape, "encoding.cdata", given2.CDATA && !e.CDATA) {
		e.CDATA = true
	}
	if check(openEmpty, "encoding.omit_empty", given2.OmitEmpty && !e.OmitEmpty) {
		e.OmitEmpty = true
	}
	k.mergeHeaders(e, given2.Headers)
	to, signer := &s.Signer, given.Signer
	to.Algorithm, to.KeyID = signer.Algorithm, signer.KeyID
	to.Rotation, to.NoRotation = signer.Rotation, signer.NoRotation
	over(openShape, "signer.input", &to.Input, signer.Input)
	over(openShape, "signer.output", &to.Output, signer.Output)
	over(openField, "signer.field", &to.Field, signer.Field)
	over(openShape, "signer.header", &to.Header, signer.Header)
	over(openShape, "signer.header_value", &to.HeaderValue, signer.HeaderValue)
	over(openShape, "signer.user_id", &to.UserID, signer.UserID)
	if check(openShape, "signer.unsigned_fields", len(signer.UnsignedFields) > 0) {
		to.UnsignedFields = signer.UnsignedFields
	}
	to.SignEmpty = check(openShape, "signer.sign_empty", signer.SignEmpty)
	to.RawSignature = check(openShape, "signer.raw_signature", signer.RawSignature)
	to.Frozen = check(openFrozen, "signer.frozen", signer.Frozen)
	s.Acknowledgement = s.Acknowledgement.With(given.Acknowledgement)
	over(openShape, "encryption.algorithm", &s.Encryption.Algorithm, given.Encryption.Algorithm)
	over(openSealing, "encryption.associated_data", &s.Encryption.AssociatedData, given.Encryption.AssociatedData)
	if given.Encryption.KeyID != "" && s.Encryption.Algorithm == "" {
		k.refuse("encryption.key_id", "has no use without encryption.algorithm")
	}
	s.Encryption.KeyID = given.Encryption.KeyID
	k.c.settings = s
}

func (k *compiler) mergeHeaders(to *merchant.Encoding, given map[string]string) {
	all := maps.Clone(to.Headers)
	if all == nil {
		all = map[string]string{}
	}
	for name, value := range given {
		if slices.ContainsFunc(slices.Collect(maps.Keys(to.Headers)), func(own string) bool { return strings.EqualFold(own, name) }) {
			k.refuse("encoding.headers["+quoted(name)+"]", "is the profile's own")
			continue
		}
		all[name] = value
	}
	to.Headers = all
}

func (k *compiler) acknowledgement() {
	a := k.c.settings.Acknowledgement
	rule := answer.Rule{Statuses: ints(a.Statuses), Final: ints(a.FinalStatuses), Abort: a.FinalAbortMessage}
	given := []struct {
		field string
		body  answer.Body
	}{
		{"acknowledgement.body_exact", answer.Body{Kind: answer.BodyExact, Value: a.BodyExact}},
		{"acknowledgement.body_trimmed", answer.Body{Kind: answer.BodyTrimmed, Value: a.BodyTrimmed}},
		{"acknowledgement.body_ignoring_case", answer.Body{Kind: answer.BodyFold, Value: a.BodyIgnoringCase}},
		{"acknowledgement.body_contains", answer.Body{Kind: answer.BodyContains, Value: a.BodyContains}},
		{"acknowledgement.body_matches", answer.Body{Kind: answer.BodyRegexp, Value: k.whole(a.BodyMatches)}},
		{"acknowledgement.json", answer.Body{Kind: answer.BodyJSON, Path: a.JSON.Path, Value: a.JSON.Value}},
		{"acknowledgement.xml", answer.Body{Kind: answer.BodyXML, Path: a.XML.Path, Value: a.XML.Value}},
	}
	at := "acknowledgement"
	for _, g := range given {
		switch {
		case g.body.Value == "" && g.body.Path == "":
		case rule.Body.Kind != "":
			k.refuse(g.field, "an answer has one rule for its body, and %s is given", at)
		default:
			rule.Body, at = g.body, g.field
		}
	}
	if s := k.c.answers; s != nil && s.format != "" && (rule.Body.Kind == answer.BodyJSON || rule.Body.Kind == answer.BodyXML) {
		rule.Body.Charset = s.charset // what is signed is what is judged
	}
	compiled, err := answer.Compile(rule)
	if err != nil {
		k.refuse(at, "%s", err)
	}
	k.c.acknowledgement = compiled
}

// whole makes an expression match a body as a whole. It has to be one by itself: a parenthesis of its own could end ours.
func (k *compiler) whole(expression string) string {
	if expression == "" {
		return ""
	}
	if _, err := syntax.Parse(expression, syntax.Perl); err != nil {
		k.refuse("acknowledgement.body_matches", "%s", err)
		return ""
	}
	return `\A(?:` + expression + `)\z`
}

func ints(list []uint32) []int {
	out := make([]int, len(list))
	for i, v := range list {
		out[i] = int(v)
	}
	return out
}

func (k *compiler) encryption() {
	s := k.c.settings.Encryption
	for _, name := range []string{"ciphertext", "seal_nonce", "associated_data"} {
		switch where := k.c.uses(name); {
		case where == "":
		case s.Algorithm == "":
			k.refuse(where, "%s: nothing is encrypted, as encryption.algorithm is empty", name)
		case strings.HasPrefix(where, "encoding.fields") || where == "encryption.associated_data":
			k.refuse(where, "%s: it is not made yet when this is", name)
		}
	}
	if s.Algorithm == "" {
		return
	}
	var err error
	if k.c.cipher, err = sign.ParseCipher(s.Algorithm); err != nil {
		k.refuse("encryption.algorithm", "%s", strings.TrimPrefix(err.Error(), "cipher: "))
	}
	if s.KeyID == "" {
		k.refuse("encryption.key_id", "must name the key in the key store that encrypts")
	}
	if s.AssociatedData != "" && k.c.cipher == sign.SM4CBC {
		k.refuse("encryption.associated_data", "%s has none", s.Algorithm)
	}
	k.c.aad = k.pattern("encryption.associated_data", s.AssociatedData, nil)
	format := encode.FormatRaw
	if len(k.c.settings.Encoding.Fields) > 0 {
		format = encode.FormatJSON
	}
	if k.c.inner, err = encode.Compile(encode.Settings{Format: format}, valueKinds()); err != nil {
		k.refuse("encryption", "%s", err)
	}
	if k.c.settings.Encoding.Format != encode.FormatTemplate {
		k.refuse("encoding.format", "must be template where something is encrypted, with {@ciphertext} in it")
	} else if k.c.uses("ciphertext") != "encoding.template" {
		k.refuse("encoding.template", "must have {@ciphertext} in it: what is encrypted would not be sent")
	}
}

func (k *compiler) encoding() {
	s := &k.c.settings.Encoding
	s.Format = orElse(s.Format, encode.FormatRaw)
	var err error
	k.c.encoding, err = encode.Compile(encode.Settings{
		Format: s.Format, Charset: s.Charset, Root: s.XMLRoot, CDATA: s.CDATA, Template: s.Template, ContentType: s.ContentType,
	}, valueKinds())
	if err != nil {
		k.refuseEncoding(err)
		return
	}
	k.method(s)
	if k.c.mapping, err = encode.CompileMapping(s.Fields, valueKinds(), s.OmitEmpty); err != nil {
		k.refuseEncoding(err)
		return
	}
	for _, add := range k.c.profile.adds {
		if _, own := s.Fields[add.name]; own {
			continue
		}
		m, err := encode.CompileMapping(map[string]string{add.name: add.source}, valueKinds(), true)
		if err != nil {
			k.refuseEncoding(err)
			continue
		}
		k.c.adds = append(k.c.adds, m)
	}
	fields := k.c.encoding.UsesFields() || k.c.inner != nil && k.c.inner.UsesFields()
	if len(s.Fields) > 0 && !fields && s.Format != encode.FormatTemplate {
		k.refuse("encoding.fields", "the format %s has none", s.Format)
	}
	k.c.usesFields = fields
	k.c.usesPayload = k.c.encoding.UsesPayload() || fields && k.c.mapping.UsesPayload()
}

func (k *compiler) method(s *merchant.Encoding) {
	switch k.c.method = s.Method; {
	case s.Method == "" && s.Format == encode.FormatQuery:
		k.c.method = methodGet
	case s.Method == "":
		k.c.method = methodPost
	case !slices.Contains([]string{methodPost, methodGet, methodPut}, s.Method):
		k.refuse("encoding.method", "%q: must be POST, GET or PUT", s.Method)
	case s.Method == methodGet && s.Format != encode.FormatQuery:
		k.refuse("encoding.method", "GET has no body: the format must be query")
	}
}

// refuseEncoding names the setting that an error of package encode is about.
func (k *compiler) refuseEncoding(err error) {
	field := "encoding"
	if of, ok := errors.AsType[*encode.SettingError](err); ok {
		k.refuse(field+"."+of.Setting, "%s", of.Rule)
		return
	}
	k.refuse(field, "%s", err)
}

// The methods that a contract may have.
const methodGet, methodPost, methodPut = "GET", "POST", "PUT"

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func quoted(name string) string { return fmt.Sprintf("%q", name) }
