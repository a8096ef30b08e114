package dispatcher

import (
	"cmp"
	"reflect"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/contract"
	"notifyd/merchant"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// contractFromProto leaves out the secret.
func contractFromProto(p *notifydv1.Contract) merchant.Contract {
	e, s, seal := p.GetEncoding(), p.GetSigner(), p.GetEncryption()
	return merchant.Contract{
		Profile: cmp.Or(p.GetProfile(), contract.Standard),
		Encoding: merchant.Encoding{
			Method: e.GetMethod(), Format: e.GetFormat(), Charset: e.GetCharset(), Fields: e.GetFields(), Template: e.GetTemplate(),
			ContentType: e.GetContentType(), XMLRoot: e.GetXmlRoot(), CDATA: e.GetCdata(), OmitEmpty: e.GetOmitEmpty(), Headers: e.GetHeaders(),
		},
		Signer: merchant.Signer{
			Algorithm: s.GetAlgorithm(), KeyID: s.GetKeyId(), Input: s.GetInput(), Output: s.GetOutput(), Field: s.GetField(),
			Header: s.GetHeader(), HeaderValue: s.GetHeaderValue(), UnsignedFields: s.GetUnsignedFields(), SignEmpty: s.GetSignEmpty(),
			UserID: s.GetUserId(), RawSignature: s.GetRawSignature(), Frozen: s.GetFrozen(), Rotation: s.GetRotation().AsDuration(),
			NoRotation: s.GetRotation() != nil && s.GetRotation().AsDuration() == 0,
		},
		Acknowledgement: ackFromProto(p.GetAcknowledgement()),
		Encryption:      merchant.Encryption{Algorithm: seal.GetAlgorithm(), KeyID: seal.GetKeyId(), AssociatedData: seal.GetAssociatedData()},
	}
}

func contractToProto(c merchant.Contract) *notifydv1.Contract {
	p := &notifydv1.Contract{Profile: c.Profile, Acknowledgement: ackToProto(c.Acknowledgement)}
	if e := c.Encoding; !reflect.ValueOf(e).IsZero() {
		p.Encoding = &notifydv1.Encoding{
			Method: e.Method, Format: e.Format, Charset: e.Charset, Fields: e.Fields, Template: e.Template,
			ContentType: e.ContentType, XmlRoot: e.XMLRoot, Cdata: e.CDATA, OmitEmpty: e.OmitEmpty, Headers: e.Headers,
		}
	}
	s := c.Signer
	p.Signer = &notifydv1.Signer{
		Algorithm: s.Algorithm, KeyId: s.KeyID, Input: s.Input, Output: s.Output, Field: s.Field, Header: s.Header, HeaderValue: s.HeaderValue,
		UnsignedFields: s.UnsignedFields, SignEmpty: s.SignEmpty, UserId: s.UserID, RawSignature: s.RawSignature, Frozen: s.Frozen,
	}
	if s.Rotation > 0 || s.NoRotation {
		p.Signer.Rotation = durationpb.New(s.Rotation)
	}
	if seal := c.Encryption; seal != (merchant.Encryption{}) {
		p.Encryption = &notifydv1.Encryption{Algorithm: seal.Algorithm, KeyId: seal.KeyID, AssociatedData: seal.AssociatedData}
	}
	return p
}

func ackFromProto(p *notifydv1.Acknowledgement) merchant.Acknowledgement {
	return merchant.Acknowledgement{
		Statuses: p.GetStatuses(), BodyExact: p.GetBodyExact(), BodyTrimmed: p.GetBodyTrimmed(), BodyIgnoringCase: p.GetBodyIgnoringCase(),
		BodyContains: p.GetBodyContains(), BodyMatches: p.GetBodyMatches(), FinalStatuses: p.GetFinalStatuses(), FinalAbortMessage: p.GetFinalAbortMessage(),
		JSON: merchant.PathValue{Path: p.GetJson().GetPath(), Value: p.GetJson().GetValue()},
		XML:  merchant.PathValue{Path: p.GetXml().GetPath(), Value: p.GetXml().GetValue()},

		Signature: answerSignatureFromProto(p.GetSignature()),
	}
}

func answerSignatureFromProto(p *notifydv1.AnswerSignature) merchant.AnswerSignature {
	return merchant.AnswerSignature{
		Algorithm: p.GetAlgorithm(), KeyID: p.GetKeyId(), Input: p.GetInput(), Output: p.GetOutput(), Field: p.GetField(), Header: p.GetHeader(),
		Format: p.GetFormat(), Charset: p.GetCharset(), UnsignedFields: p.GetUnsignedFields(), SignEmpty: p.GetSignEmpty(),
		UserID: p.GetUserId(), RawSignature: p.GetRawSignature(),
	}
}

func ackToProto(a merchant.Acknowledgement) *notifydv1.Acknowledgement {
	if a.IsZero() {
		return nil
	}
	at := func(v merchant.PathValue) *notifydv1.PathValue {
		if v == (merchant.PathValue{}) {
			return nil
		}
		return &notifydv1.PathValue{Path: v.Path, Value: v.Value}
	}
	return &notifydv1.Acknowledgement{
		Statuses: a.Statuses, BodyExact: a.BodyExact, BodyTrimmed: a.BodyTrimmed, BodyIgnoringCase: a.BodyIgnoringCase, BodyContains: a.BodyContains,
		BodyMatches: a.BodyMatches, Json: at(a.JSON), Xml: at(a.XML), FinalStatuses: a.FinalStatuses, FinalAbortMessage: a.FinalAbortMessage,
		Signature: answerSignatureToProto(a.Signature),
	}
}

func answerSignatureToProto(s merchant.AnswerSignature) *notifydv1.AnswerSignature {
	if s.IsZero() {
		return nil
	}
	return &notifydv1.AnswerSignature{
		Algorithm: s.Algorithm, KeyId: s.KeyID, Input: s.Input, Output: s.Output, Field: s.Field, Header: s.Header, Format: s.Format, Charset: s.Charset,
		UnsignedFields: s.UnsignedFields, SignEmpty: s.SignEmpty, UserId: s.UserID, RawSignature: s.RawSignature,
	}
}

// checkContracts refuses contracts that cannot work: the merchant's own, and what scenes make of it.
func (s *MerchantService) checkContracts(m *merchant.Merchant, now time.Time) error {
	var vs []*errdetails.BadRequest_FieldViolation
	refuse := func(prefix string, err error) {
		for _, e := range contract.Errors(err) {
			vs = append(vs, &errdetails.BadRequest_FieldViolation{Field: prefix + e.Field, Description: e.Rule})
		}
	}
	refuse("merchant.contract.", s.contracts.CheckSettings(m, now))
	for scene, over := range m.Scenes {
		if len(vs) == 0 && !over.Acknowledgement.IsZero() {
			refuse("merchant.scenes["+strconv.Quote(scene)+"].", s.contracts.CheckSettings(m.ForScene(scene), now))
		}
	}
	if len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}
