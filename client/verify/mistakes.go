package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

// mistake is a common one, with what undoes it.
type mistake struct {
	words  string
	change func(t *trial) bool // false: it does not fit here
}

// trial is a copy of everything, to be changed.
type trial struct {
	scheme scheme
	m      Message
	ring   *ring
	keys   Keys // of before
}

// mistakes are those that a message of this scheme can have, the likely ones first.
func (v *Verifier) mistakes(m Message, h Hints) []mistake {
	all := v.keyMistakes()
	if v.scheme.input != nil && v.scheme.input.uses("body") {
		all = append(all, bodyMistakes(m.Body)...)
	}
	if v.scheme.input != nil && v.scheme.input.uses("url") {
		all = append(all, urlMistakes()...)
	}
	if v.scheme.input != nil && (v.scheme.input.uses("sorted") || v.scheme.input.uses("sorted_sha256")) {
		all = append(all, sortMistakes()...)
	}
	all = append(all, v.signatureMistakes()...)
	return append(all, v.attemptMistakes(h)...)
}

func (v *Verifier) keyMistakes() []mistake {
	all := []mistake{{"it was signed with a key of before the rotation", func(t *trial) bool {
		keys := t.keys
		keys.Decryption = nil
		without := t.scheme
		without.sealed = nil
		before, err := without.ring(keys)
		if err != nil {
			return false
		}
		t.ring = before
		return true
	}}, {"the key is there under another serial number", func(t *trial) bool {
		named := slices.ContainsFunc(t.ring.keys, func(k held) bool { return k.serial != "" })
		t.scheme.serial = ""
		nameless := &ring{}
		for _, k := range t.ring.keys {
			k.serial = ""
			nameless.keys = append(nameless.keys, k)
		}
		t.ring = nameless
		return named
	}}}
	for _, other := range otherSecrets {
		all = append(all, mistake{other.words, func(t *trial) bool {
			keys := &ring{}
			for _, text := range v.ring.texts() {
				raw, ok := other.read(text)
				if !ok || len(raw) == 0 {
					continue
				}
				key, err := sign.SecretKey(sign.NewSecret(raw))
				if err == nil {
					lenient := t.scheme
					lenient.options.ShortSecret = true
					err = lenient.add(keys, "", key)
				}
				if err != nil {
					return false
				}
			}
			t.ring = keys
			return len(keys.keys) > 0
		}})
	}
	return all
}

// otherSecrets are wrong ways from a secret's text to its bytes, as the sender may have it.
var otherSecrets = []struct {
	words string
	read  func(text string) ([]byte, bool)
}{
	{"the secret is used as its whole text, whsec_ included; decode the base64 behind it", func(text string) ([]byte, bool) {
		return []byte(text), true
	}},
	{"the secret is used as the text behind its prefix; decode it", func(text string) ([]byte, bool) {
		rest, ok := prefixed(text)
		return []byte(rest), ok
	}},
	{"the secret is decoded from base64, and is meant as its text", func(text string) ([]byte, bool) {
		rest, _ := prefixed(text)
		raw, err := base64.StdEncoding.DecodeString(rest)
		return raw, err == nil
	}},
	{"the secret is decoded from hexadecimal digits, and is meant as its text", func(text string) ([]byte, bool) {
		rest, _ := prefixed(text)
		raw, err := hex.DecodeString(rest)
		return raw, err == nil
	}},
	{"the secret has a newline at its end", func(text string) ([]byte, bool) { return []byte(text + "\n"), true }},
	{"the secret is in lower case", func(text string) ([]byte, bool) { return []byte(strings.ToLower(text)), true }},
	{"the secret is in upper case", func(text string) ([]byte, bool) { return []byte(strings.ToUpper(text)), true }},
}

func prefixed(text string) (rest string, ok bool) {
	for _, prefix := range []string{"whsec_", "hex:", "base64:", "text:"} {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			return rest, true
		}
	}
	return text, false
}

// bodyMistakes are what happens to a body on its way to who verifies. Each gives back what may have been sent.
func bodyMistakes(body []byte) []mistake {
	to := func(words string, restore func(body []byte) []byte) mistake {
		return mistake{words, func(t *trial) bool {
			was := t.m.Body
			t.m.Body = restore(was)
			return t.m.Body != nil && !bytes.Equal(t.m.Body, was)
		}}
	}
	all := []mistake{
		to("the body has lost a newline at its end", func(b []byte) []byte { return append(bytes.Clone(b), '\n') }),
		to("the body has lost CR and LF at its end", func(b []byte) []byte { return append(bytes.Clone(b), "\r\n"...) }),
		to("the body has got white space at its end that was not sent", func(b []byte) []byte { return bytes.TrimRight(b, " \t\r\n") }),
		to("the body has got white space around it that was not sent", bytes.TrimSpace),
		to("the body has got CR LF for LF", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")) }),
		to("the body has lost the CR of CR LF", func(b []byte) []byte {
			return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
		}),
		to("the body has got a byte order mark", func(b []byte) []byte { return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")) }),
		to("the body is signed as an empty one", func([]byte) []byte { return []byte{} }),
	}
	if !json.Valid(body) {
		return all
	}
	for _, w := range writers {
		all = append(all, to("the body was parsed and written again; it was sent "+w.words, w.write))
	}
	return all
}

// writers are how JSON is commonly written.
var writers = []struct {
	words string
	write func(body []byte) []byte
}{
	{"without white space", compact},
	{"without white space, with / as \\/", func(b []byte) []byte { return bytes.ReplaceAll(compact(b), []byte("/"), []byte(`\/`)) }},
	{"without white space, with \\/ as /", func(b []byte) []byte { return bytes.ReplaceAll(compact(b), []byte(`\/`), []byte("/")) }},
	{"with characters beyond ASCII as they are", func(b []byte) []byte { return plainCharacters(compact(b)) }},
	{"with characters beyond ASCII as \\u escapes", func(b []byte) []byte { return escapedCharacters(compact(b)) }},
	{"with <, > and & as they are", func(b []byte) []byte {
		return []byte(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(compact(b))))
	}},
	{"with a blank behind each colon and comma", spaced},
	{"indented by 2", func(b []byte) []byte { return indented(b, "  ") }},
	{"indented by 4", func(b []byte) []byte { return indented(b, "    ") }},
	{"indented by tabs", func(b []byte) []byte { return indented(b, "\t") }},
	{"with its members sorted by name", sortedMembers},
}

func compact(body []byte) []byte {
	var out bytes.Buffer
	if json.Compact(&out, body) != nil {
		return nil
	}
	return out.Bytes()
}

func indented(body []byte, by string) []byte {
	var out bytes.Buffer
	if json.Indent(&out, body, "", by) != nil {
		return nil
	}
	return out.Bytes()
}

func sortedMembers(body []byte) []byte {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var tree any
	if d.Decode(&tree) != nil {
		return nil
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if e.Encode(tree) != nil {
		return nil
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// spaced is how Python writes it.
func spaced(body []byte) []byte {
	return outsideStrings(compact(body), func(c byte) string {
		if c == ':' || c == ',' {
			return string(c) + " "
		}
		return string(c)
	})
}

func outsideStrings(text []byte, write func(c byte) string) []byte {
	var out []byte
	within := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case within && c == '\\' && i+1 < len(text):
			out = append(out, c, text[i+1])
			i++
			continue
		case c == '"':
			within = !within
		case !within:
			out = append(out, write(c)...)
			continue
		}
		out = append(out, c)
	}
	return out
}

func escapedCharacters(text []byte) []byte {
	var b strings.Builder
	for _, r := range string(text) {
		switch {
		case r < 0x80:
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return []byte(b.String())
}

func plainCharacters(text []byte) []byte {
	var out []byte
	for i := 0; i < len(text); {
		if !bytes.HasPrefix(text[i:], []byte(`\u`)) || i+6 > len(text) {
			if text[i] == '\\' && i+1 < len(text) {
				out = append(out, text[i])
				i++
			}
			out = append(out, text[i])
			i++
			continue
		}
		end := i + 6
		if i+12 <= len(text) && bytes.HasPrefix(text[end:], []byte(`\u`)) && strings.ContainsRune("dD", rune(text[i+2])) {
			end = i + 12
		}
		var s string
		if json.Unmarshal([]byte(`"`+string(text[i:end])+`"`), &s) != nil || s < "\x80" {
			s = string(text[i:end])
		}
		out = append(out, s...)
		i = end
	}
	return out
}

func urlMistakes() []mistake {
	to := func(words string, change func(url string) string) mistake {
		return mistake{words, func(t *trial) bool {
			was := t.m.URL
			t.m.URL = change(was)
			return t.m.URL != was
		}}
	}
	return []mistake{
		to("the URL is signed with https: give it as it is registered", func(u string) string { return strings.Replace(u, "http://", "https://", 1) }),
		to("the URL is signed with http: give it as it is registered", func(u string) string { return strings.Replace(u, "https://", "http://", 1) }),
		to("the URL is signed without its query", func(u string) string { base, _, _ := strings.Cut(u, "?"); return base }),
		to("the URL is signed without a slash at its end", func(u string) string { return strings.TrimSuffix(u, "/") }),
		to("the URL is signed with a slash at its end", func(u string) string { return u + "/" }),
	}
}

func sortMistakes() []mistake {
	to := func(words string, change func(s *scheme) bool) mistake {
		return mistake{words, func(t *trial) bool { return change(&t.scheme) }}
	}
	empty := func(with bool) func(s *scheme) bool {
		return func(s *scheme) bool { s.how.withEmpty = &with; return true }
	}
	return []mistake{
		to("the fields are sorted without regard to case, and must be in the order of their bytes: capital letters first", func(s *scheme) bool { s.how.foldCase = true; return true }),
		to("the fields are not sorted", func(s *scheme) bool { s.how.noOrder = true; return true }),
		to("fields without a value take part, and must not", empty(true)),
		to("fields without a value are left out, and must take part", empty(false)),
		to("the values are URL-encoded, and must be decoded first", func(s *scheme) bool { s.how.escaped = true; return true }),
		to("fields that are not signed (such as sign_type) take part", func(s *scheme) bool {
			had := len(s.unsigned) > 0
			s.unsigned = nil
			return had
		}),
		to("sign_type is left out, and must take part", func(s *scheme) bool {
			s.unsigned = append(slices.Clone(s.unsigned), "sign_type")
			return true
		}),
		to("the text itself and its SHA-256 are mixed up", func(s *scheme) bool { s.how.plainHash = true; return true }),
		to("the SHA-256 is in upper case, and must be in lower case", func(s *scheme) bool { s.how.upperHash = true; return s.input.uses("sorted_sha256") }),
		to("&key= and the secret are missing at the end", func(s *scheme) bool {
			had := s.input.uses("secret")
			s.input = mustPattern("{sorted}")
			return had
		}),
		to("the secret is at the end without &key=", func(s *scheme) bool {
			had := s.input.uses("secret")
			s.input = mustPattern("{sorted}{secret}")
			return had
		}),
		{"the body is in another charset than was agreed", func(t *trial) bool {
			was := t.scheme.charset
			if t.scheme.format == encode.FormatForm || t.scheme.format == encode.FormatQuery {
				return false
			}
			if t.scheme.charset = "gbk"; was != "" && was != "utf-8" {
				t.scheme.charset = ""
			}
			return true
		}},
	}
}

func (v *Verifier) signatureMistakes() (all []mistake) {
	for _, name := range sign.Encodings() {
		e, err := sign.ParseEncoding(name)
		if err != nil || e == v.scheme.output || v.scheme.input == nil {
			continue
		}
		all = append(all, mistake{"the signature is written as " + name + ", and must be as " + v.scheme.output.String(), func(t *trial) bool {
			t.scheme.output = e
			return true
		}})
	}
	return append(all, mistake{"a + of the signature has become a blank: it was decoded from a form twice", func(t *trial) bool {
		if t.scheme.format != encode.FormatForm || t.scheme.field == "" {
			return false
		}
		pairs := strings.Split(string(t.m.Body), "&")
		changed := false
		for i, p := range pairs {
			if name, value, _ := strings.Cut(p, "="); name == t.scheme.field {
				pairs[i] = name + "=" + strings.NewReplacer("+", "%2B", "%20", "%2B", " ", "%2B").Replace(value)
				changed = pairs[i] != p
			}
		}
		t.m.Body = []byte(strings.Join(pairs, "&"))
		return changed
	}}, mistake{"the signature is of SHA-1, and must be of SHA-256", func(t *trial) bool { return t.otherAlgorithm(sign.RSASHA256, sign.RSASHA1) }},
		mistake{"the signature is of SHA-256, and must be of SHA-1", func(t *trial) bool { return t.otherAlgorithm(sign.RSASHA1, sign.RSASHA256) }},
		mistake{"the signature is a plain SHA-256, and must be an HMAC", func(t *trial) bool { return t.otherAlgorithm(sign.HMACSHA256, sign.SHA256) }},
		mistake{"the signature is an HMAC, and must be a plain MD5", func(t *trial) bool { return t.otherAlgorithm(sign.MD5, sign.HMACSHA256) }})
}

// otherAlgorithm lets the same keys verify another algorithm.
func (t *trial) otherAlgorithm(is, other sign.Algorithm) bool {
	if !slices.Contains(t.scheme.algorithms(), is) || t.ring.texts == nil {
		return false
	}
	keys := &ring{}
	for _, k := range t.ring.keys {
		k.verifiers = map[sign.Algorithm]*sign.Verifier{is: k.as(other)}
		keys.keys = append(keys.keys, k)
	}
	t.ring = keys
	return true
}

// as is the key's verifier of another algorithm; nil: it does not fit.
func (k held) as(other sign.Algorithm) *sign.Verifier {
	if v, err := sign.NewVerifier(other, k.key, sign.Options{ShortSecret: true}); err == nil {
		return v
	}
	return nil
}

// attemptMistakes put the headers of other attempts in place of this one's.
func (v *Verifier) attemptMistakes(h Hints) (all []mistake) {
	for i, other := range h.Attempts {
		for name, p := range v.scheme.headers {
			all = append(all, mistake{fmt.Sprintf("%s is of another attempt (%d of those given)", name, i+1), func(t *trial) bool {
				value := other.Header.Get(name)
				was := t.m.Header.Get(name)
				t.m.Header.Set(name, value)
				return value != "" && was != value && len(p.pieces) > 0
			}})
		}
		all = append(all, mistake{fmt.Sprintf("the headers are of another attempt (%d of those given)", i+1), func(t *trial) bool {
			for name := range v.scheme.headers {
				if value := other.Header.Get(name); value != "" {
					t.m.Header.Set(name, value)
				}
			}
			return len(v.scheme.headers) > 0
		}}, mistake{fmt.Sprintf("the body is of another attempt (%d of those given)", i+1), func(t *trial) bool {
			was := t.m.Body
			t.m.Body = other.Body
			return !bytes.Equal(was, other.Body)
		}})
	}
	return append(all, mistake{"the timestamp is in seconds, and is signed in milliseconds", v.scaled(func(n int64) int64 { return n * 1000 })},
		mistake{"the timestamp is in milliseconds, and is signed in seconds", v.scaled(func(n int64) int64 { return n / 1000 })})
}

func (v *Verifier) scaled(scale func(int64) int64) func(t *trial) bool {
	return func(t *trial) bool {
		for name, p := range v.scheme.headers {
			if p.uses("timestamp") && len(p.pieces) == 1 {
				n, err := strconv.ParseInt(t.m.Header.Get(name), 10, 50)
				t.m.Header.Set(name, strconv.FormatInt(scale(n), 10))
				return err == nil
			}
		}
		return false
	}
}
