package contract

import (
	"slices"
	"strings"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
	"notifyd/merchant"
)

// answerSignature is how a merchant's answers are signed, compiled.
type answerSignature struct {
	algorithm sign.Algorithm
	options   sign.Options
	keyID     string // in the key store; empty: of the secret that signs the requests
	output    sign.Encoding
	input     *sign.Pattern
	paths     map[string]*encode.Path // that input has
	header    string
	field     string
	fieldPath *encode.Path // field, where it is a path
	format    string       // what fields are read from; empty: none are
	charset   string
	members   bool         // of JSON its members are needed, too
	sort      *encode.Sort // nil: nothing is sorted
	whole     bool         // the body's bytes are signed
}

// ofTold are the names of a signature's input that are of what was told: with one of them an answer to another notification is not
// taken for the answer to this one.
var ofTold = []string{"id", "merchant_id", "order_id"}

const (
	answerField = "acknowledgement.signature."
	ofHeader    = "header."
)

// answerSignature compiles the signature of answers, after that of requests: it may be made with the same secret.
func (k *compiler) answerSignature() {
	given := &k.c.settings.Acknowledgement.Signature
	if given.IsZero() {
		return
	}
	refused := len(k.errs)
	algorithm, err := sign.ParseAlgorithm(given.Algorithm)
	switch {
	case given.Algorithm == "":
		k.refuse(answerField+"algorithm", "must be given: one of %s", strings.Join(sign.Algorithms(), ", "))
		return
	case err != nil:
		k.refuse(answerField+"algorithm", "%s", strings.TrimPrefix(err.Error(), "algorithm: "))
		return
	case algorithm == sign.None:
		if given.Algorithm = ""; !given.IsZero() {
			k.refuse(answerField+"algorithm", "none says that answers are not signed: leave everything else empty")
		}
		return
	}
	s := &answerSignature{
		algorithm: algorithm, keyID: given.KeyID, header: given.Header, field: given.Field, charset: orElse(given.Charset, "utf-8"),
		options: sign.Options{UserID: given.UserID, Raw: given.RawSignature, ShortSecret: true}, // the merchant has it already
	}
	if s.output, err = sign.ParseEncoding(orElse(given.Output, sign.Base64.String())); err != nil {
		k.refuse(answerField+"output", "%s", strings.TrimPrefix(err.Error(), "encoding: "))
	}
	k.answerKey(s)
	k.answerInput(s, given.Input)
	if s.input != nil {
		k.answerFields(s, given)
		k.answerPlace(s)
	}
	if len(k.errs) == refused {
		k.c.answers = s
	}
}

func (k *compiler) answerKey(s *answerSignature) {
	switch requests := k.c.algorithm; {
	case s.keyID != "":
	case s.algorithm.KeyKind() != sign.KeySecret:
		k.refuse(answerField+"key_id", "must name a key of the purpose verify in the key store: %s is verified with a public key", s.algorithm)
	case requests != 0 && requests.KeyKind() != sign.KeySecret:
		k.refuse(answerField+"key_id", "must name a key of the purpose verify in the key store: requests are signed with %s, which has no secret to verify answers with", requests)
	}
	if s.algorithm != sign.SM2SM3 && s.options.UserID != "" {
		k.refuse(answerField+"user_id", "only %s has one", sign.SM2SM3)
	}
	if s.algorithm != sign.SM2SM3 && s.options.Raw {
		k.refuse(answerField+"raw_signature", "only %s has it", sign.SM2SM3)
	}
}

func (k *compiler) answerInput(s *answerSignature, text string) {
	const field = answerField + "input"
	if text == "" {
		k.refuse(field, "must say what is signed, for example {body} or {sorted}")
		return
	}
	names := append([]string{"body", "status", "sorted", "sorted_sha256", "$.*", ofHeader + "*"}, ofTold...)
	if s.algorithm.KeyKind() == sign.KeySecret {
		names = append(names, "secret")
	}
	var err error
	if s.input, err = sign.CompilePattern(text, names); err != nil {
		k.refuse(field, "%s", err)
		return
	}
	s.whole, s.paths = s.input.Uses("body"), map[string]*encode.Path{}
	ofAnswer := false
	for _, name := range s.input.Names() {
		header, isHeader := strings.CutPrefix(name, ofHeader)
		ofAnswer = ofAnswer || name != "secret" && !slices.Contains(ofTold, name)
		switch {
		case isHeader && strings.ContainsFunc(header, notInToken):
			k.refuse(field, "%q is no header's name", header)
		case isHeader && strings.EqualFold(header, s.header):
			k.refuse(field, "{%s} has the signature in it", name)
		case strings.HasPrefix(name, "$"):
			if s.paths[name], err = encode.CompilePath(name); err != nil {
				k.refuse(field, "%s", err)
			}
		}
	}
	if !ofAnswer {
		k.refuse(field, "must have something of the answer in it: {body}, {status}, {sorted}, {sorted_sha256}, {$.path} or {header.Name}")
	}
	if s.algorithm.SecretInMessage() && !s.input.Uses("secret") {
		k.refuse(field, "must have {secret} in it: with %s anybody could make the signature otherwise", s.algorithm)
	}
	k.c.mayRefuse = k.c.mayRefuse || slices.ContainsFunc(notAlways, s.input.Uses)
}

// answerFields says what an answer's fields are read from, where any are.
func (k *compiler) answerFields(s *answerSignature, given *merchant.AnswerSignature) {
	sorted := s.input.Uses("sorted") || s.input.Uses("sorted_sha256")
	if !sorted && len(given.UnsignedFields) > 0 {
		k.refuse(answerField+"unsigned_fields", "is of {sorted}, and the input has none")
	}
	if !sorted && given.SignEmpty {
		k.refuse(answerField+"sign_empty", "is of {sorted}, and the input has none")
	}
	if !sorted && s.field == "" && len(s.paths) == 0 {
		const noUse = "has no use: no field of the answer is read"
		if given.Format != "" {
			k.refuse(answerField+"format", noUse)
		}
		if given.Charset != "" {
			k.refuse(answerField+"charset", noUse)
		}
		return
	}
	readable := []string{encode.FormatJSON, encode.FormatForm, encode.FormatXML}
	if s.format = orElse(given.Format, encode.FormatJSON); !slices.Contains(readable, s.format) {
		k.refuse(answerField+"format", "%q: must be one of %s", s.format, strings.Join(readable, ", "))
	}
	if s.format != encode.FormatJSON && len(s.paths) > 0 {
		k.refuse(answerField+"input", "{$.path} is of JSON, and the format is %s: sign {sorted} or {body}", s.format)
	}
	if _, err := encode.Decode(nil, s.charset); err != nil {
		k.refuse(answerField+"charset", "%s", strings.TrimPrefix(err.Error(), "charset: "))
		return
	}
	if s.members = sorted || !strings.HasPrefix(s.field, "$"); !sorted {
		return
	}
	leaveOut := given.UnsignedFields
	if name := strings.TrimPrefix(s.field, "$."); name != "" && !slices.Contains(leaveOut, name) {
		leaveOut = append(slices.Clone(leaveOut), name)
	}
	var err error
	if s.sort, err = encode.CompileSort(encode.SortSettings{LeaveOut: leaveOut, LeaveOutEmpty: !given.SignEmpty, Charset: s.charset}); err != nil {
		k.refuse(answerField+"unsigned_fields", "%s", strings.TrimPrefix(err.Error(), "leave_out: "))
	}
}

// answerPlace says where in an answer its signature is.
func (k *compiler) answerPlace(s *answerSignature) {
	const at = answerField + "field"
	switch {
	case s.field == "" && s.header == "":
		k.refuse(at, "must say where the signature is, or header")
	case s.field != "" && s.header != "":
		k.refuse(answerField+"header", "the signature is in field already: give one of the two")
	case s.header != "" && strings.ContainsFunc(s.header, notInToken):
		k.refuse(answerField+"header", "%q is no header's name", s.header)
	case s.header != "":
	case s.whole:
		k.refuse(answerField+"input", "{body} has the signature in it, which is in a field; sign {sorted}, or have it in a header")
	case !strings.HasPrefix(s.field, "$"):
		k.unsignedPath(s, "$."+s.field)
	case s.format != encode.FormatJSON:
		k.refuse(at, "%q: a path is for JSON; with the format %s give the field's name", s.field, s.format)
	case s.field == "$":
		k.refuse(at, "$ is the whole body: give a member's path, as $.sign")
	case s.sort != nil && strings.ContainsAny(strings.TrimPrefix(s.field, "$."), ".[$"):
		k.refuse(at, "%q: {sorted} is of the members of the answer itself, and the one that this is in has the signature in it", s.field)
	default:
		var err error
		if s.fieldPath, err = encode.CompilePath(s.field); err != nil {
			k.refuse(at, "%s", err)
		}
		k.unsignedPath(s, s.field)
	}
}

// unsignedPath refuses an input with the signature itself in it.
func (k *compiler) unsignedPath(s *answerSignature, path string) {
	for name := range s.paths {
		if rest, within := strings.CutPrefix(path, name); within && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			k.refuse(answerField+"input", "{%s} has the signature in it", name)
		}
	}
}
