package contract

import (
	"maps"
	"slices"
	"strings"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

func (k *compiler) signer() {
	s := &k.c.settings.Signer
	chosen, ok := k.choose(s.Algorithm)
	if !ok {
		return
	}
	s.Algorithm = chosen.algorithm.String()
	k.c.algorithm, k.c.word = chosen.algorithm, chosen.word
	if where := k.c.uses("sign_type"); where != "" && k.c.word == "" {
		k.refuse(where, "sign_type: the profile %s has none", k.c.settings.Profile)
	}
	if k.c.algorithm == sign.None {
		k.unsigned()
		return
	}
	var err error
	if k.c.output, err = sign.ParseEncoding(orElse(orElse(chosen.output, s.Output), sign.Base64.String())); err != nil {
		k.refuse("signer.output", "%s", strings.TrimPrefix(err.Error(), "encoding: "))
	}
	if s.Input == "" {
		k.refuse("signer.input", "must say what is signed, for example {body} or {sorted}")
		return
	}
	k.input(s.Input)
	k.placement(chosen)
	if s.Frozen && !k.c.algorithm.Repeatable() {
		k.refuse("signer.frozen", "%s gives another signature each time", s.Algorithm)
	}
	if where := k.c.uses("attempt"); s.Frozen && where != "" && !strings.Contains(where, "header") {
		k.refuse("signer.frozen", "%s has the attempt's number, which is another each time", where)
	}
	if s.Frozen && k.c.inner != nil {
		k.refuse("signer.frozen", "what is encrypted is so anew for each attempt")
	}
	if (s.UserID != "" || s.RawSignature) && k.c.algorithm != sign.SM2SM3 {
		k.refuse("signer.algorithm", "user_id and raw_signature are of %s", sign.SM2SM3)
	}
	leaveOut := s.UnsignedFields
	if name := strings.TrimPrefix(s.Field, "$."); s.Field != "" && !slices.Contains(leaveOut, name) {
		leaveOut = append(slices.Clone(leaveOut), name) // of a path into something deeper there is no such field
	}
	if k.c.sort, err = encode.CompileSort(encode.SortSettings{LeaveOut: leaveOut, LeaveOutEmpty: !s.SignEmpty, Charset: k.c.settings.Encoding.Charset}); err != nil {
		k.refuse("signer.unsigned_fields", "%s", err)
	}
}

// choose finds the algorithm among those of the profile.
func (k *compiler) choose(name string) (choice, bool) {
	choices := k.c.profile.algorithms
	if len(choices) == 0 {
		if name == "" {
			k.refuse("signer.algorithm", "must be given with the profile custom: none, or one of %s", strings.Join(sign.Algorithms(), ", "))
			return choice{}, false
		}
		algorithm, err := sign.ParseAlgorithm(name)
		if err != nil {
			k.refuse("signer.algorithm", "%s", strings.TrimPrefix(err.Error(), "algorithm: "))
			return choice{}, false
		}
		return choice{algorithm: algorithm, word: strings.ToUpper(name)}, true
	}
	if name == "" {
		return choices[0], true
	}
	var names []string
	for _, c := range choices {
		if c.algorithm.String() == name {
			return c, true
		}
		names = append(names, c.algorithm.String())
	}
	k.refuse("signer.algorithm", "%q: the profile %s signs with %s", name, k.c.settings.Profile, strings.Join(names, " or "))
	return choice{}, false
}

// unsigned refuses settings of a signature that there is none of.
func (k *compiler) unsigned() {
	s := k.c.settings.Signer
	for field, given := range map[string]bool{
		"signer.input": s.Input != "", "signer.field": s.Field != "", "signer.header": s.Header != "", "signer.header_value": s.HeaderValue != "",
	} {
		if given {
			k.refuse(field, "nothing is signed: the algorithm is none")
		}
	}
	for _, name := range []string{"key_id", "serial", "serial_decimal"} {
		if where := k.c.uses(name); where != "" {
			k.refuse(where, "%s: no key signs, as the algorithm is none", name)
		}
	}
}

func (k *compiler) input(text string) {
	names := append(patternNames(), "body", "url", "sorted", "sorted_sha256", "$.*")
	secret := k.c.algorithm.KeyKind() == sign.KeySecret
	if secret {
		names = append(names, "secret")
	}
	if k.c.input = k.pattern("signer.input", text, names); k.c.input == nil {
		return
	}
	k.c.paths = map[string]*encode.Path{}
	for _, name := range k.c.input.Names() {
		if !strings.HasPrefix(name, "$") {
			continue
		}
		path, err := encode.CompilePath(name)
		if err != nil {
			k.refuse("signer.input", "%s", err)
			continue
		}
		k.c.paths[name], k.c.usesPayload = path, true
	}
	if k.c.algorithm.SecretInMessage() && !k.c.input.Uses("secret") {
		k.refuse("signer.input", "must have {secret} in it: with %s anybody could make the signature otherwise", k.c.algorithm)
	}
	if k.c.settings.Encoding.Format == encode.FormatQuery && k.c.input.Uses("body") {
		k.refuse("signer.input", "{body}: the format query has none; sign {sorted} or {url}")
	}
	if k.c.settings.Signer.Field != "" && k.c.input.Uses("body") {
		k.refuse("signer.input", "{body} has the signature in it, which goes to a field; sign {sorted}, or put it into a header")
	}
	if k.c.signsSorted = k.c.input.Uses("sorted") || k.c.input.Uses("sorted_sha256"); k.c.signsSorted {
		k.c.usesFields, k.c.usesPayload = true, k.c.usesPayload || k.c.mapping.UsesPayload()
	}
}

// placement says where the signature goes.
func (k *compiler) placement(chosen choice) {
	s := k.c.settings.Signer
	format := k.c.settings.Encoding.Format
	switch {
	case s.Field == "" && s.Header == "":
		k.refuse("signer.field", "must say where the signature goes, or signer.header")
	case s.Field != "" && s.Header != "":
		k.refuse("signer.header", "the signature goes to signer.field already")
	case strings.HasPrefix(s.Field, "$") && format == encode.FormatRaw:
		path, err := encode.CompilePath(s.Field)
		switch {
		case err != nil:
			k.refuse("signer.field", "%s", err)
		case s.Field == "$":
			k.refuse("signer.field", "$ is the whole body: give a member's path, as $.sign")
		}
		k.c.bodyPath, k.c.usesPayload = path, true
	case strings.HasPrefix(s.Field, "$"):
		k.refuse("signer.field", "%q: a path is for the format raw; with %s give the field's name", s.Field, format)
	case s.Field != "" && (k.c.encoding == nil || !k.c.encoding.UsesFields()):
		k.refuse("signer.field", "the format %s has no fields: give a path, as $.sign, with raw, or signer.header", format)
	case s.Field != "" && s.HeaderValue != "":
		k.refuse("signer.header_value", "there is no header: the signature goes to signer.field")
	}
	if s.Header == "" {
		return
	}
	k.headerName("signer.header", s.Header)
	names := append(patternNames(), "signature")
	if several := k.c.profile.several; several != nil {
		k.c.head = k.pattern("signer.header_value", several.head, names)
		k.c.each = k.pattern("signer.header_value", orElse(chosen.each, several.each), names)
		return
	}
	k.c.value = k.pattern("signer.header_value", orElse(s.HeaderValue, "{signature}"), names)
	if k.c.value != nil && !k.c.value.Uses("signature") {
		k.refuse("signer.header_value", "must have {signature} in it")
	}
}

func (k *compiler) headers() {
	for name, text := range k.c.settings.Encoding.Headers {
		field := "encoding.headers[" + quoted(name) + "]"
		if !k.headerName(field, name) {
			continue
		}
		if strings.EqualFold(name, k.c.settings.Signer.Header) {
			k.refuse(field, "the signature goes there")
			continue
		}
		if err := checkHeader(text); err != nil {
			k.refuse(field, "%s", err)
			continue
		}
		if value := k.pattern(field, text, patternNames()); value != nil {
			k.c.headers = append(k.c.headers, header{name, value})
		}
	}
	slices.SortFunc(k.c.headers, func(a, b header) int { return strings.Compare(a.name, b.name) })
}

// own are headers that the engine, or HTTP, writes by itself.
var own = []string{
	"content-type", "content-length", "host", "connection", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect",
	"user-agent", "proxy-authorization", "proxy-connection", "accept-encoding", "notifyd-attempt", "traceparent", "idempotency-key", "x-idempotency-key",
}

func (k *compiler) headerName(field, name string) bool {
	switch {
	case name == "" || strings.ContainsFunc(name, notInToken):
		k.refuse(field, "%q is no header's name", name)
	case slices.Contains(own, strings.ToLower(name)):
		k.refuse(field, "%q is written by the engine itself", name)
	default:
		return true
	}
	return false
}

// notInToken is what RFC 9110 does not let into a header's name.
func notInToken(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
}

// pattern compiles one; nil: it is refused. names nil: the engine's values.
func (k *compiler) pattern(field, text string, names []string) *sign.Pattern {
	if names == nil {
		names = patternNames()
	}
	p, err := sign.CompilePattern(text, names)
	if err != nil {
		k.refuse(field, "%s", err)
		return nil
	}
	k.c.mayRefuse = k.c.mayRefuse || slices.ContainsFunc(notAlways, p.Uses)
	return p
}

// patternNames are what any pattern may have.
func patternNames() []string { return slices.Sorted(maps.Keys(valueKinds())) }

// uses says which setting has a value of the engine in it, before all one that may be signed; empty: none has.
func (c *Contract) uses(name string) string {
	e, s := c.settings.Encoding, c.settings.Signer
	for _, field := range slices.Sorted(maps.Keys(e.Fields)) {
		if strings.TrimSuffix(e.Fields[field], "!") == "@"+name {
			return "encoding.fields[" + quoted(field) + "]"
		}
	}
	for _, end := range []string{"}", "!", "|"} {
		if strings.Contains(e.Template, "{@"+name+end) {
			return "encoding.template"
		}
	}
	switch in := "{" + name + "}"; {
	case strings.Contains(s.Input, in):
		return "signer.input"
	case strings.Contains(c.settings.Encryption.AssociatedData, in):
		return "encryption.associated_data"
	case strings.Contains(s.HeaderValue, in):
		return "signer.header_value"
	}
	for _, header := range slices.Sorted(maps.Keys(e.Headers)) {
		if strings.Contains(e.Headers[header], "{"+name+"}") {
			return "encoding.headers[" + quoted(header) + "]"
		}
	}
	return ""
}

// notAlways are names without a value in some notifications, or with one that no header can carry.
var notAlways = []string{"merchant_id", "scene", "key_id", "sign_type", "app_id", "event_type", "order_id", "order_status", "batch_id", "currency", "minor_units", "occurred_at", "order_created_at"}
