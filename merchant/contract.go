package merchant

import "time"

// Contract is how a merchant wants to be told: a profile by name, and what differs from it. Package contract knows the
// profiles and what each field may hold.
type Contract struct {
	Profile         string          `json:"profile,omitempty"` // "standard"
	Encoding        Encoding        `json:"encoding,omitzero"`
	Signer          Signer          `json:"signer,omitzero"`
	Acknowledgement Acknowledgement `json:"acknowledgement,omitzero"`
	Encryption      Encryption      `json:"encryption,omitzero"`
}

// Encoding makes the request's body, or its query, from the payload.
type Encoding struct {
	Method      string            `json:"method,omitempty"`
	Format      string            `json:"format,omitempty"`
	Charset     string            `json:"charset,omitempty"`
	Fields      map[string]string `json:"fields,omitempty"` // each with its source
	Template    string            `json:"template,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	XMLRoot     string            `json:"xml_root,omitempty"`
	CDATA       bool              `json:"cdata,omitempty"`
	OmitEmpty   bool              `json:"omit_empty,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"` // each with its pattern
}

// Signer signs each request, with Secrets.SigningSecret or with the key that KeyID names.
type Signer struct {
	Algorithm      string        `json:"algorithm,omitempty"`
	KeyID          string        `json:"key_id,omitempty"`
	Input          string        `json:"input,omitempty"`  // a pattern: the string that is signed
	Output         string        `json:"output,omitempty"` // how the signature is written
	Field          string        `json:"field,omitempty"`  // where it goes
	Header         string        `json:"header,omitempty"` // or there
	HeaderValue    string        `json:"header_value,omitempty"`
	UnsignedFields []string      `json:"unsigned_fields,omitempty"`
	SignEmpty      bool          `json:"sign_empty,omitempty"`
	UserID         string        `json:"user_id,omitempty"` // SM2's
	RawSignature   bool          `json:"raw_signature,omitempty"`
	Frozen         bool          `json:"frozen,omitempty"`
	Rotation       time.Duration `json:"rotation,omitempty"` // how long a secret that is replaced still signs; 0: the engine's default
	NoRotation     bool          `json:"no_rotation,omitempty"`
}

// Acknowledgement is the merchant's agreed answer; the zero value is the profile's.
type Acknowledgement struct {
	Statuses          []uint32        `json:"statuses,omitempty"`
	BodyExact         string          `json:"body_exact,omitempty"`
	BodyTrimmed       string          `json:"body_trimmed,omitempty"`
	BodyIgnoringCase  string          `json:"body_ignoring_case,omitempty"`
	BodyContains      string          `json:"body_contains,omitempty"`
	BodyMatches       string          `json:"body_matches,omitempty"`
	JSON              PathValue       `json:"json,omitzero"`
	XML               PathValue       `json:"xml,omitzero"`
	FinalStatuses     []uint32        `json:"final_statuses,omitempty"`
	FinalAbortMessage bool            `json:"final_abort_message,omitempty"`
	Signature         AnswerSignature `json:"signature,omitzero"`
}

// IsZero reports whether nothing is given.
func (a Acknowledgement) IsZero() bool {
	return len(a.Statuses) == 0 && a.BodyExact == "" && a.BodyTrimmed == "" && a.BodyIgnoringCase == "" && a.BodyContains == "" && a.BodyMatches == "" &&
		a.JSON == (PathValue{}) && a.XML == (PathValue{}) && len(a.FinalStatuses) == 0 && !a.FinalAbortMessage && a.Signature.IsZero()
}

// With lays what is given over a: what acknowledges is replaced as a whole, and so is what is final, and the signature.
func (a Acknowledgement) With(given Acknowledgement) Acknowledgement {
	final, abort := a.FinalStatuses, a.FinalAbortMessage
	if len(given.FinalStatuses) > 0 || given.FinalAbortMessage {
		final, abort = given.FinalStatuses, given.FinalAbortMessage
	}
	signature := a.Signature
	if !given.Signature.IsZero() {
		signature = given.Signature
	}
	given.FinalStatuses, given.FinalAbortMessage, given.Signature = nil, false, AnswerSignature{}
	if !given.IsZero() {
		a = given
	}
	a.FinalStatuses, a.FinalAbortMessage, a.Signature = final, abort, signature
	return a
}

// AnswerSignature is how the merchant signs its answers, with the key that KeyID names, or with what signs the requests. The zero
// value says nothing; the algorithm none, that they are not signed.
type AnswerSignature struct {
	Algorithm      string   `json:"algorithm,omitempty"`
	KeyID          string   `json:"key_id,omitempty"`
	Input          string   `json:"input,omitempty"`  // a pattern: the string that is signed
	Output         string   `json:"output,omitempty"` // how the signature is written
	Field          string   `json:"field,omitempty"`  // where it is
	Header         string   `json:"header,omitempty"` // or there
	Format         string   `json:"format,omitempty"` // what the fields are read from
	Charset        string   `json:"charset,omitempty"`
	UnsignedFields []string `json:"unsigned_fields,omitempty"`
	SignEmpty      bool     `json:"sign_empty,omitempty"`
	UserID         string   `json:"user_id,omitempty"` // SM2's
	RawSignature   bool     `json:"raw_signature,omitempty"`
}

// IsZero reports whether nothing is given.
func (s AnswerSignature) IsZero() bool {
	return s.Algorithm == "" && s.KeyID == "" && s.Input == "" && s.Output == "" && s.Field == "" && s.Header == "" && s.Format == "" && s.Charset == "" &&
		len(s.UnsignedFields) == 0 && !s.SignEmpty && s.UserID == "" && !s.RawSignature
}

// PathValue is where in an answer something stands, and what.
type PathValue struct {
	Path  string `json:"path"`
	Value string `json:"value"`
}

// Encryption seals the encoded fields with the key that KeyID names.
type Encryption struct {
	Algorithm      string `json:"algorithm,omitempty"`
	KeyID          string `json:"key_id,omitempty"`
	AssociatedData string `json:"associated_data,omitempty"` // a pattern
}
