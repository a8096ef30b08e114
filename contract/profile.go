package contract

import (
	"errors"
	"slices"
	"strings"

	"notifyd/contract/sign"
	"notifyd/merchant"
)

// The profiles.
const (
	Standard    = "standard"
	Alipay      = "alipay"
	WeChatPayV2 = "wechatpay-v2"
	WeChatPayV3 = "wechatpay-v3"
	UnionPay    = "unionpay"
	Stripe      = "stripe"
	Adyen       = "adyen"
	Custom      = "custom"
)

// Profiles are the names, in the order of the documentation.
func Profiles() []string {
	return []string{Standard, Alipay, WeChatPayV2, WeChatPayV3, UnionPay, Stripe, Adyen, Custom}
}

// profile is what a platform's callbacks look like.
type profile struct {
	// settings are what it fixes, and what holds where a merchant leaves open what it may say.
	settings merchant.Contract
	// open names the settings that a merchant may give beside key, secret and acknowledgement.
	open []string
	// algorithms that a merchant may choose from; the first one is the default. None: all of them, and one must be given.
	algorithms []choice
	// adds are fields beside the merchant's own, each with its source; a field of the merchant's own of that name is not one.
	adds []addition
	// several says how two live keys sign; nil: the newest does.
	several *several
	// makesSecret says that a secret is made for who has none, and that a short one is refused.
	makesSecret bool
	// secret says how a platform writes its secrets; nil: as sign.ParseSecret says.
	secret func(text string) (sign.Secret, error)
}

func (p profile) parse(text string) (sign.Secret, error) {
	if p.secret == nil {
		return sign.ParseSecret(text)
	}
	return p.secret(text)
}

// choice is an algorithm, and what it changes.
type choice struct {
	algorithm sign.Algorithm
	word      string // @sign_type
	each      string // in place of several.each
	output    string // in place of Signer.Output
}

type addition struct{ name, source string }

// several is a header's value with a signature of each live key: head, then each, with the separator between.
type several struct{ head, each, separator string }

const (
	openFields    = "encoding.fields"
	openCharset   = "encoding.charset"
	openEmpty     = "encoding.omit_empty"
	openHeaders   = "encoding.headers"
	openFrozen    = "signer.frozen"
	openField     = "signer.field"
	openShape     = "signer.input" // and everything else that only custom leaves open
	openAlgorithm = "signer.algorithm"
	openTemplate  = "encoding.template"
	openSealing   = "encryption.associated_data"
)

// profiles are all that there are; docs/contracts has a page for each, with its sources.
func profiles(name string) (profile, bool) {
	switch name {
	case Standard, "":
		return standard(), true
	case Alipay:
		return alipay(), true
	case WeChatPayV2:
		return weChatPayV2(), true
	case WeChatPayV3:
		return weChatPayV3(), true
	case UnionPay:
		return unionPay(), true
	case Stripe:
		return stripe(), true
	case Adyen:
		return adyen(), true
	case Custom:
		return custom(), true
	}
	return profile{}, false
}

// standard is Standard Webhooks: `webhook-signature` is `v1,` and the HMAC over id, timestamp and body, or `v1a,` and an
// Ed25519 signature; several stand side by side.
func standard() profile {
	return profile{
		settings: merchant.Contract{
			Encoding:        merchant.Encoding{Format: "raw", Headers: map[string]string{"webhook-id": "{id}", "webhook-timestamp": "{timestamp}"}},
			Signer:          merchant.Signer{Input: "{id}.{timestamp}.{body}", Output: "base64", Header: "webhook-signature"},
			Acknowledgement: merchant.Acknowledgement{FinalStatuses: []uint32{410}, FinalAbortMessage: true},
		},
		open:        []string{openHeaders},
		algorithms:  []choice{{algorithm: sign.HMACSHA256}, {algorithm: sign.Ed25519, each: "v1a,{signature}"}},
		several:     &several{each: "v1,{signature}", separator: " "},
		makesSecret: true,
		secret:      standardSecret,
	}
}

func standardSecret(text string) (sign.Secret, error) {
	if !strings.HasPrefix(text, "whsec_") {
		return sign.Secret{}, errors.New("must be whsec_ and base64 of 24 to 64 bytes")
	}
	return sign.ParseSecret(text)
}

// alipay signs all parameters but sign and sign_type, sorted by name and decoded; no parameter is empty. The merchant answers
// exactly `success`.
func alipay() profile {
	return profile{
		settings: merchant.Contract{
			Encoding:        merchant.Encoding{Format: "form", OmitEmpty: true},
			Signer:          merchant.Signer{Input: "{sorted}", Output: "base64", Field: "sign", UnsignedFields: []string{"sign_type"}},
			Acknowledgement: merchant.Acknowledgement{Statuses: []uint32{200}, BodyExact: "success"},
		},
		open:       []string{openFields, openCharset, openHeaders, openFrozen},
		algorithms: []choice{{algorithm: sign.RSASHA256, word: "RSA2"}, {algorithm: sign.RSASHA1, word: "RSA"}},
		adds: []addition{
			{"notify_id", "@id"},
			{"notify_time", "@datetime"},
			{"notify_type", "=trade_status_sync"},
			{"charset", "@charset"},
			{"version", "=1.0"},
			{"sign_type", "@sign_type"},
		},
	}
}

// weChatPayV2 is XML with a signature over all elements that are not empty, sorted, and the API key behind them.
func weChatPayV2() profile {
	return profile{
		settings: merchant.Contract{
			Encoding:        merchant.Encoding{Format: "xml", XMLRoot: "xml", CDATA: true, OmitEmpty: true},
			Signer:          merchant.Signer{Input: "{sorted}&key={secret}", Output: "HEX", Field: "sign"},
			Acknowledgement: merchant.Acknowledgement{Statuses: []uint32{200}, XML: merchant.PathValue{Path: "xml/return_code", Value: "SUCCESS"}},
		},
		open:       []string{openFields, openHeaders, openFrozen},
		algorithms: []choice{{algorithm: sign.MD5, word: "MD5"}, {algorithm: sign.HMACSHA256, word: "HMAC-SHA256"}},
		adds:       []addition{{"nonce_str", "@nonce"}, {"sign_type", "@sign_type"}},
	}
}

// weChatPayV3 is an envelope around a resource that is encrypted with the merchant's APIv3 key; the platform's key signs
// timestamp, nonce and body. Only the answer's status counts.
func weChatPayV3() profile {
	return profile{
		settings: merchant.Contract{
			Encoding: merchant.Encoding{
				Format: "template", ContentType: "application/json", Headers: map[string]string{
					"Wechatpay-Timestamp": "{timestamp}", "Wechatpay-Nonce": "{nonce}", "Wechatpay-Serial": "{serial}",
					"Wechatpay-Signature-Type": "WECHATPAY2-SHA256-RSA2048",
				},
				Template: `{{"id":{@id|json},"create_time":{@create_time|json},"resource_type":"encrypt-resource","event_type":{@event_type|json},"summary":{@event_type|json},` +
					`"resource":{{"original_type":"transaction","algorithm":"AEAD_AES_256_GCM","ciphertext":{@ciphertext|json},"associated_data":{@associated_data|json},"nonce":{@seal_nonce|json}}}}}`,
			},
			Signer:          merchant.Signer{Input: "{timestamp}\n{nonce}\n{body}\n", Output: "base64", Header: "Wechatpay-Signature"},
			Acknowledgement: merchant.Acknowledgement{Statuses: []uint32{200, 204}},
			Encryption:      merchant.Encryption{Algorithm: "aes-256-gcm", AssociatedData: "transaction"},
		},
		open:       []string{openFields, openHeaders, openSealing},
		algorithms: []choice{{algorithm: sign.RSASHA256}},
	}
}

// unionPay (5.1.0) signs the hexadecimal SHA-256 of the sorted parameters; a redirect is a success, too.
func unionPay() profile {
	return profile{
		settings: merchant.Contract{
			Encoding:        merchant.Encoding{Format: "form", OmitEmpty: true},
			Signer:          merchant.Signer{Input: "{sorted_sha256}", Output: "base64", Field: "signature"},
			Acknowledgement: merchant.Acknowledgement{Statuses: []uint32{200, 302}},
		},
		open:       []string{openFields, openCharset, openHeaders, openFrozen},
		algorithms: []choice{{algorithm: sign.RSASHA256}},
		adds: []addition{
			{"version", "=5.1.0"}, {"encoding", "@charset_upper"}, {"signMethod", "=01"}, {"certId", "@serial_decimal"},
		},
	}
}

// stripe signs timestamp and body: `t=…,v1=…`, one v1 for each live secret.
func stripe() profile {
	return profile{
		settings: merchant.Contract{
			Encoding: merchant.Encoding{Format: "raw"},
			Signer:   merchant.Signer{Input: "{timestamp}.{body}", Output: "hex", Header: "Stripe-Signature"},
		},
		open:       []string{openHeaders},
		algorithms: []choice{{algorithm: sign.HMACSHA256}},
		several:    &several{head: "t={timestamp},", each: "v1={signature}", separator: ","},
		secret:     func(text string) (sign.Secret, error) { return sign.ParseSecret("text:" + text) }, // the whole of whsec_…
	}
}

const adyenItem = "$.notificationItems[0].NotificationRequestItem."

// adyen signs eight fields of the first item and puts the signature into it.
func adyen() profile {
	input := ""
	for _, path := range []string{"pspReference", "originalReference", "merchantAccountCode", "merchantReference", "amount.value", "amount.currency", "eventCode", "success"} {
		if input != "" {
			input += ":"
		}
		input += "{" + adyenItem + path + "}"
	}
	return profile{
		settings: merchant.Contract{
			Encoding: merchant.Encoding{Format: "raw"},
			Signer:   merchant.Signer{Input: input, Output: "base64", Field: adyenItem + "additionalData.hmacSignature"},
		},
		open:       []string{openHeaders},
		algorithms: []choice{{algorithm: sign.HMACSHA256}},
		secret: func(text string) (sign.Secret, error) {
			return sign.ParseSecret("hex:" + strings.TrimPrefix(text, "hex:"))
		},
	}
}

// custom leaves everything open.
func custom() profile {
	return profile{open: []string{
		openFields, openCharset, openEmpty, openHeaders, openFrozen, openField, openShape, openAlgorithm, openTemplate, openSealing,
	}}
}

func (p profile) leavesOpen(setting string) bool { return slices.Contains(p.open, setting) }
