package verify

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"

	"notifyd/contract/encode"
	"notifyd/contract/sign"
)

// Standard verifies Standard Webhooks: `v1` signatures with secrets whsec_…, `v1a` with public keys whpk_….
func Standard(keys ...string) (*Verifier, error) {
	return New("standard", Settings{}, Keys{Secrets: keys})
}

// Stripe verifies Stripe-Signature; a secret is the whole text, whsec_ included.
func Stripe(secrets ...string) (*Verifier, error) {
	return New("stripe", Settings{}, Keys{Secrets: secrets})
}

// Alipay verifies RSA2 (SHA256withRSA) over the sorted fields.
func Alipay(platform ...crypto.PublicKey) (*Verifier, error) {
	return New("alipay", Settings{}, Keys{Public: platform})
}

// WeChatPayV2 verifies XML that is signed with the API key, by MD5 or HMAC-SHA256 as it says itself.
func WeChatPayV2(apiKeys ...string) (*Verifier, error) {
	return New("wechatpay-v2", Settings{}, Keys{Secrets: apiKeys})
}

// WeChatPayV3 verifies with the platform's keys, by their certificates' serial numbers, and decrypts the resource with the
// APIv3 keys.
func WeChatPayV3(platform map[string]crypto.PublicKey, apiV3Keys ...string) (*Verifier, error) {
	return New("wechatpay-v3", Settings{}, Keys{BySerial: platform, Decryption: apiV3Keys})
}

// UnionPay verifies 5.1.0 with the platform's keys, by their certificates' serial numbers in decimal digits (certId).
func UnionPay(platform map[string]crypto.PublicKey) (*Verifier, error) {
	return New("unionpay", Settings{}, Keys{BySerial: platform})
}

// Adyen verifies the eight fields with HMAC keys in hexadecimal digits.
func Adyen(hmacKeys ...string) (*Verifier, error) {
	return New("adyen", Settings{}, Keys{Secrets: hmacKeys})
}

// Custom verifies what settings say.
func Custom(settings Settings, keys Keys) (*Verifier, error) { return New("custom", settings, keys) }

// Profiles are the names that New takes.
func Profiles() []string {
	return []string{"standard", "alipay", "wechatpay-v2", "wechatpay-v3", "unionpay", "stripe", "adyen", "custom"}
}

// New makes the verifier of a profile by its name.
func New(profile string, settings Settings, keys Keys) (*Verifier, error) {
	s, err := schemeOf(profile, settings)
	if err != nil {
		return nil, fmt.Errorf("verify: %s: %w", profile, err)
	}
	r, err := s.ring(keys)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return &Verifier{Tolerance: DefaultTolerance, MaxBody: DefaultMaxBody, scheme: s, ring: r}, nil
}

func schemeOf(profile string, given Settings) (*scheme, error) {
	if profile == "custom" {
		return custom(given)
	}
	var s *scheme
	switch profile {
	case "standard":
		s = standard()
	case "stripe":
		s = stripe()
	case "alipay":
		s = alipay()
	case "wechatpay-v2":
		s = weChatPayV2()
	case "wechatpay-v3":
		s = weChatPayV3()
	case "unionpay":
		s = unionPay()
	case "adyen":
		s = adyen()
	default:
		return nil, fmt.Errorf("profile: must be one of %s", strings.Join(Profiles(), ", "))
	}
	s.name = profile
	if _, err := decoderOf(given.Charset); err != nil {
		return nil, fmt.Errorf("charset: %w", err)
	}
	s.charset, s.frozen = given.Charset, s.frozen || given.Frozen
	return s, s.restrict(given.Algorithm)
}

// restrict leaves one algorithm of those that a profile has.
func (s *scheme) restrict(name string) error {
	if name == "" {
		return nil
	}
	a, err := sign.ParseAlgorithm(name)
	if err != nil {
		return err
	}
	if s.name == "alipay" && a == sign.RSASHA1 {
		s.shapes = []shape{{nil, a}}
		s.choose = algorithmNamed(map[string]sign.Algorithm{"RSA": sign.RSASHA1}, "sign_type")
		return nil
	}
	if !slices.Contains(s.algorithms(), a) {
		return fmt.Errorf("algorithm: %s is not one of the profile's", name)
	}
	s.shapes = slices.DeleteFunc(s.shapes, func(one shape) bool { return one.algorithm != 0 && one.algorithm != a })
	return nil
}

func standard() *scheme {
	return &scheme{
		format: encode.FormatRaw, input: mustPattern("{id}.{timestamp}.{body}"),
		headers: map[string]*pattern{"webhook-id": mustPattern("{id}"), "webhook-timestamp": mustPattern("{timestamp}")},
		header:  "webhook-signature", separator: " ", output: sign.Base64,
		shapes: []shape{{mustPattern("v1,{signature}"), sign.HMACSHA256}, {mustPattern("v1a,{signature}"), sign.Ed25519}},
		time:   "timestamp", id: "id",
		secret: func(text string) (sign.Key, error) {
			switch {
			case strings.HasPrefix(text, "whsec_"):
				return plainSecret(text)
			case strings.HasPrefix(text, "whpk_"):
				return sign.ParseWebhookKey(text)
			}
			return sign.Key{}, errors.New("want whsec_ and base64 of 16 to 64 bytes, or whpk_ and base64 of an Ed25519 public key")
		},
	}
}

func stripe() *scheme {
	return &scheme{
		format: encode.FormatRaw, input: mustPattern("{timestamp}.{body}"), header: "Stripe-Signature", separator: ",", output: sign.Hex,
		shapes: []shape{{mustPattern("t={timestamp}"), 0}, {mustPattern("v1={signature}"), sign.HMACSHA256}},
		time:   "timestamp", options: sign.Options{ShortSecret: true},
		secret: func(text string) (sign.Key, error) { return plainSecret("text:" + text) },
	}
}

// alipay's notify_time is the attempt's or, where the signature is frozen, the acceptance's: its age is not judged.
func alipay() *scheme {
	return &scheme{
		format: encode.FormatForm, charsetField: "charset", input: mustPattern("{sorted}"), field: "sign", unsigned: []string{"sign_type"},
		output: sign.Base64, signEmpty: true, // there are none; one that is there was added by somebody
		fields: map[string]string{"notify_id": "id", "notify_time": "datetime"}, id: "id", time: "datetime", frozen: true,
		shapes: []shape{{nil, sign.RSASHA256}},
		choose: algorithmNamed(map[string]sign.Algorithm{"RSA2": sign.RSASHA256}, "sign_type"),
	}
}

func weChatPayV2() *scheme {
	return &scheme{
		format: encode.FormatXML, input: mustPattern("{sorted}&key={secret}"), field: "sign", output: sign.HexUpper,
		shapes: []shape{{nil, sign.MD5}, {nil, sign.HMACSHA256}}, options: sign.Options{ShortSecret: true},
		choose: func(r *reading, signature string) (sign.Algorithm, error) {
			name, said := r.field("sign_type")
			a := map[string]sign.Algorithm{"MD5": sign.MD5, "HMAC-SHA256": sign.HMACSHA256}[name]
			if !said { // old ones do not say
				if a = sign.MD5; len(signature) == 64 {
					a = sign.HMACSHA256
				}
			}
			if !slices.Contains(r.s.algorithms(), a) {
				return 0, refuse(Malformed, "sign_type", "%s is not what was agreed", clip(name))
			}
			return a, nil
		},
	}
}

func weChatPayV3() *scheme {
	path := func(text string) *encode.Path {
		p, err := encode.CompilePath(text)
		if err != nil {
			panic(err)
		}
		return p
	}
	return &scheme{
		format: encode.FormatRaw, input: mustPattern("{timestamp}\n{nonce}\n{body}\n"), header: "Wechatpay-Signature", output: sign.Base64,
		headers: map[string]*pattern{
			"Wechatpay-Timestamp": mustPattern("{timestamp}"), "Wechatpay-Nonce": mustPattern("{nonce}"), "Wechatpay-Serial": mustPattern("{serial}"),
		},
		shapes: []shape{{mustPattern("{signature}"), sign.RSASHA256}}, serial: "serial", time: "timestamp", id: "$.id",
		sealed: &sealing{
			cipher: sign.AES256GCM, ciphertext: path("$.resource.ciphertext"), nonce: path("$.resource.nonce"), additional: path("$.resource.associated_data"),
		},
		check: func(r *reading) error {
			const header, known = "Wechatpay-Signature-Type", "WECHATPAY2-SHA256-RSA2048"
			if _, there := r.m.Header[header]; !there {
				return nil
			}
			text, err := r.get(header)
			if err == nil && text != known {
				return refuse(Malformed, header, "%s: want %s", clip(text), known)
			}
			return err
		},
	}
}

func unionPay() *scheme {
	return &scheme{
		format: encode.FormatForm, charsetField: "encoding", input: mustPattern("{sorted_sha256}"), field: "signature", output: sign.Base64,
		signEmpty: true, // there are none; one that is there was added by somebody
		fields:    map[string]string{"certId": "serial_decimal"}, serial: "serial_decimal", shapes: []shape{{nil, sign.RSASHA256}},
		check: func(r *reading) error {
			if method, _ := r.field("signMethod"); method != "01" {
				return refuse(Malformed, "signMethod", "%s: want 01", clip(method))
			}
			return nil
		},
	}
}

func adyen() *scheme {
	const item = "$.notificationItems[0].NotificationRequestItem."
	s := &scheme{format: encode.FormatRaw, output: sign.Base64, shapes: []shape{{nil, sign.HMACSHA256}}, paths: map[string]*encode.Path{}, field: item + "additionalData.hmacSignature", id: item + "pspReference"}
	var parts []string
	for _, name := range []string{"pspReference", "originalReference", "merchantAccountCode", "merchantReference", "amount.value", "amount.currency", "eventCode", "success"} {
		path, err := encode.CompilePath(item + name)
		if err != nil {
			panic(err)
		}
		s.paths[item+name] = path
		parts = append(parts, "{"+item+name+"}")
	}
	s.input = mustPattern(strings.Join(parts, ":"))
	var err error
	if s.bodyPath, err = encode.CompilePath(s.field); err != nil {
		panic(err)
	}
	second, err := encode.CompilePath("$.notificationItems[1]")
	if err != nil {
		panic(err)
	}
	s.check = func(r *reading) error {
		if _, more := r.payload.Get(second); more {
			return refuse(BadBody, "notificationItems", "has more than one item, and only the first is signed")
		}
		return nil
	}
	s.secret = func(text string) (sign.Key, error) { return plainSecret("hex:" + strings.TrimPrefix(text, "hex:")) }
	return s
}
