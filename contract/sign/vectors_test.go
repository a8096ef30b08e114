package sign

import (
	"bytes"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm2"
)

// Published messages, keys and signatures: pattern, algorithm, encoding and placement together.
func TestPublishedSignatures(t *testing.T) {
	webhook := map[string]string{"id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "timestamp": "1614265330", "body": `{"test": 2432232314}`}
	// WeChat Pay v2, "signature algorithm" of its documentation.
	wechat := map[string]string{
		"sorted": "appid=wxd930ea5d5a258f4f&body=test&device_info=1000&mch_id=10000100&nonce_str=ibuaiVcKdpRxkhJA",
		"secret": "192006250b4c09247ec02edce69f6a2d",
	}
	for _, c := range []struct {
		source    string
		pattern   string
		values    map[string]string
		a         Algorithm
		key       Key
		options   Options
		encoding  Encoding
		placement string
		want      string
	}{
		{
			source: "standard-webhooks, the libraries' tests: v1", pattern: "{id}.{timestamp}.{body}", values: webhook,
			a: HMACSHA256, key: secretKey(t, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), encoding: Base64,
			placement: "v1,{signature}", want: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		},
		{
			source: "svix-webhooks, test_asymmetric_key_signing: v1a", pattern: "{id}.{timestamp}.{body}", values: webhook,
			a: Ed25519, key: must(ParseWebhookKey("whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==")), encoding: Base64,
			placement: "v1a,{signature}", want: "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==",
		},
		{
			source: "WeChat Pay v2, documentation: MD5", pattern: "{sorted}&key={secret}", values: wechat,
			a: MD5, key: secretKey(t, wechat["secret"]), encoding: HexUpper, placement: "{signature}", want: "9A0A8659F005D6984697E2CA0A9CF3B7",
		},
		{
			source: "WeChat Pay v2, documentation: HMAC-SHA256", pattern: "{sorted}&key={secret}", values: wechat,
			a: HMACSHA256, key: secretKey(t, wechat["secret"]), encoding: HexUpper, placement: "{signature}",
			want: "6A9AE1657590FD6257D693A078E1C3E4BB6BA4DC30B23E0EE2496E54170DACD6",
		},
		{
			source:  "Adyen, the API libraries' HMAC tests",
			pattern: "{$.pspReference}:{$.originalReference}:{$.merchantAccountCode}:{$.merchantReference}:{$.amount.value}:{$.amount.currency}:{$.eventCode}:{$.success}",
			values: map[string]string{
				"$.pspReference": "7914073381342284", "$.originalReference": "", "$.merchantAccountCode": "TestMerchant",
				"$.merchantReference": "TestPayment-1407325143704", "$.amount.value": "1130", "$.amount.currency": "EUR",
				"$.eventCode": "AUTHORISATION", "$.success": "true",
			},
			a: HMACSHA256, key: secretKey(t, "hex:44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"), encoding: Base64,
			placement: "{signature}", want: "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0=",
		},
		{
			source: "Square, \"validate webhooks\" of its documentation", pattern: "{url}{body}",
			values: map[string]string{"url": "https://example.com/webhook", "body": `{"hello":"world"}`},
			a:      HMACSHA256, key: secretKey(t, "asdf1234"), options: Options{ShortSecret: true}, encoding: Base64,
			placement: "{signature}", want: "2kRE5qRU2tR+tBGlDwMEw2avJ7QM4ikPYD/PJ3bd9Og=",
		},
		{
			source: "RFC 1321, A.5", pattern: "{body}", values: map[string]string{"body": "abc"}, a: MD5, key: secretKey(t, "any"),
			encoding: Hex, placement: "{signature}", want: "900150983cd24fb0d6963f7d28e17f72",
		},
		{
			source: "FIPS 180-2, B.1", pattern: "{body}", values: map[string]string{"body": "abc"}, a: SHA256, key: secretKey(t, "any"),
			encoding: Hex, placement: "{signature}", want: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		},
		{
			source: "RFC 2202, HMAC-MD5 1", pattern: "{body}", values: map[string]string{"body": "Hi There"}, a: HMACMD5,
			key: secretKey(t, "hex:"+strings.Repeat("0b", 16)), encoding: Hex, placement: "{signature}", want: "9294727a3638bb1c13f48ef8158bfc9d",
		},
		{
			source: "RFC 2202, HMAC-SHA-1 1", pattern: "{body}", values: map[string]string{"body": "Hi There"}, a: HMACSHA1,
			key: secretKey(t, "hex:"+strings.Repeat("0b", 20)), encoding: Hex, placement: "{signature}", want: "b617318655057264e28bc0b6fb378c8ef146be00",
		},
		{
			source: "RFC 4231, 1, SHA-256", pattern: "{body}", values: map[string]string{"body": "Hi There"}, a: HMACSHA256,
			key: secretKey(t, "hex:"+strings.Repeat("0b", 20)), encoding: Hex, placement: "{signature}",
			want: "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
		},
		{
			source: "RFC 4231, 1, SHA-512", pattern: "{body}", values: map[string]string{"body": "Hi There"}, a: HMACSHA512,
			key: secretKey(t, "hex:"+strings.Repeat("0b", 20)), encoding: Hex, placement: "{signature}",
			want: "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
		},
	} {
		t.Run(c.source, func(t *testing.T) {
			message := filled(t, c.pattern, c.values)
			signature := signed(t, newSigner(t, c.a, c.key, c.options), message)
			got := filled(t, c.placement, map[string]string{"signature": c.encoding.Encode(signature)})
			if string(got) != c.want {
				t.Fatalf("signed %q as\n%s, want\n%s", message, got, c.want)
			}
			if !newVerifier(t, c.a, c.key, c.options).Verify(message, signature) {
				t.Error("it does not verify")
			}
		})
	}
}

func filled(tb testing.TB, text string, values map[string]string) []byte {
	tb.Helper()
	pattern, err := CompilePattern(text, []string{"id", "timestamp", "nonce", "body", "url", "sorted", "secret", "signature", "$.*"})
	if err != nil {
		tb.Fatal(err)
	}
	out, err := pattern.Append(nil, func(name string) ([]byte, bool) {
		value, ok := values[name]
		return []byte(value), ok
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// RFC 8032, 7.1, test 2: key, message and signature.
func TestPublishedEd25519(t *testing.T) {
	seed := unhex(t, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
	key, err := ParseWebhookKey("whsk_" + Base64.Encode(seed))
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, `92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da
		085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00`)
	if got := signed(t, newSigner(t, Ed25519, key, Options{}), []byte{0x72}); !bytes.Equal(got, want) {
		t.Errorf("signature %x, want %x", got, want)
	}
	public, err := WebhookPublicKey(key)
	if want := "whpk_" + Base64.Encode(unhex(t, "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")); err != nil || public != want {
		t.Errorf("public key %s, want %s (%v)", public, want, err)
	}
}

// GB/T 32918.5-2017, A.2: the signature on the recommended curve, with the user id 1234567812345678.
func TestPublishedSM2(t *testing.T) {
	private, err := sm2.NewPrivateKey(unhex(t, "3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8"))
	if err != nil {
		t.Fatal(err)
	}
	raw := unhex(t, `F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3
		B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA`)
	verifier := newVerifier(t, SM2SM3, privateKey(t, private), Options{Raw: true, UserID: "1234567812345678"})
	if !verifier.Verify([]byte("message digest"), raw) {
		t.Error("it does not verify")
	}
	if verifier.Verify([]byte("message digesT"), raw) {
		t.Error("it verifies for another message")
	}
}

func TestPublishedCiphers(t *testing.T) {
	for _, c := range []struct {
		source, key, nonce, plain, additional, want string
		cipher                                      Cipher
	}{
		{
			source: "McGrew and Viega, GCM, test case 16", cipher: AES256GCM,
			key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", nonce: "cafebabefacedbaddecaf888",
			plain: `d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
				1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39`,
			additional: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
			want: `522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
				8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662 76fc6ece0f4e1768cddf8853bb2d551b`,
		},
		{
			source: "RFC 8998, A.1", cipher: SM4GCM,
			key: "0123456789ABCDEFFEDCBA9876543210", nonce: "00001234567800000000ABCD",
			plain: `AAAAAAAAAAAAAAAABBBBBBBBBBBBBBBBCCCCCCCCCCCCCCCCDDDDDDDDDDDDDDDD
				EEEEEEEEEEEEEEEEFFFFFFFFFFFFFFFFEEEEEEEEEEEEEEEEAAAAAAAAAAAAAAAA`,
			additional: "FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2",
			want: `17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735
				D82710CA5C22F0CCFA7CBF93D496AC15A56834CBCF98C397B4024A2691233B8D 83DE3541E4C2B58177E065A9BF7B62EC`,
		},
		{
			source: "draft-ribose-cfrg-sm4, CBC example 1, whose padding is its own", cipher: SM4CBC,
			key: "0123456789ABCDEFFEDCBA9876543210", nonce: "000102030405060708090A0B0C0D0E0F",
			plain: "AAAAAAAABBBBBBBBCCCCCCCCDDDDDDDDEEEEEEEEFFFFFFFFAAAAAAAABBBBBBBB",
			want:  "78EBB11CC40B0A48312AAEB2040244CB4CB7016951909226979B0D15DC6A8F6D",
		},
	} {
		t.Run(c.source, func(t *testing.T) {
			sealer, err := NewSealer(c.cipher, NewSecret(unhex(t, c.key)))
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := sealer.Seal(unhex(t, c.nonce), unhex(t, c.plain), unhex(t, c.additional))
			if err != nil {
				t.Fatal(err)
			}
			if c.cipher == SM4CBC {
				sealed = sealed[:len(sealed)-16] // a block of padding
			}
			if !bytes.Equal(sealed, unhex(t, c.want)) {
				t.Errorf("sealed %X, want %s", sealed, c.want)
			}
		})
	}
}
