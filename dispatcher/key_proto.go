package dispatcher

import (
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/keys"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// activated is what the calls that make a version have in common.
type activated interface {
	GetActiveFrom() *timestamppb.Timestamp
	GetOperator() string
}

var purposes = map[notifydv1.KeyPurpose]keys.Purpose{
	notifydv1.KeyPurpose_KEY_PURPOSE_SIGN: keys.PurposeSign, notifydv1.KeyPurpose_KEY_PURPOSE_ENCRYPT: keys.PurposeEncrypt,
	notifydv1.KeyPurpose_KEY_PURPOSE_TLS_CLIENT: keys.PurposeTLSClient, notifydv1.KeyPurpose_KEY_PURPOSE_VERIFY: keys.PurposeVerify,
}

func purposeToProto(p keys.Purpose) notifydv1.KeyPurpose {
	for number, purpose := range purposes {
		if purpose == p {
			return number
		}
	}
	return notifydv1.KeyPurpose_KEY_PURPOSE_UNSPECIFIED
}

// storedToProto is what is open of a set.
func storedToProto(s *keys.Set, now time.Time) *notifydv1.StoredKey {
	p := &notifydv1.StoredKey{
		Name: s.Name, Purpose: purposeToProto(s.Purpose), MerchantId: s.MerchantID, UpdatedAt: toTimestamp(s.UpdatedAt), UpdatedBy: s.UpdatedBy,
		Version: s.Version, Etag: etagOf(s.Version),
	}
	for i := range slices.Backward(s.Keys) {
		p.Versions = append(p.Versions, keyVersionToProto(&s.Keys[i], now))
	}
	return p
}

func keyVersionToProto(k *keys.Key, now time.Time) *notifydv1.KeyVersion {
	p := &notifydv1.KeyVersion{
		Number: int32(k.Version), State: stateOfVersion(k, now), Algorithm: string(k.Algorithm), Fingerprint: k.Fingerprint, //nolint:gosec // counts rotations
		SerialNumber: k.SerialNumber, SerialNumberDecimal: k.Decimal(), NotBefore: toTimestamp(k.NotBefore), NotAfter: toTimestamp(k.NotAfter),
		ActiveFrom: toTimestamp(k.ActiveFrom), RetireAt: toTimestamp(k.RetireAt), CreatedAt: toTimestamp(k.CreatedAt), CreatedBy: k.CreatedBy, Note: k.Note,
	}
	if k.Public != nil {
		p.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.Public}))
	}
	var chain strings.Builder
	for _, der := range k.Certificates {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	p.CertificateChain = chain.String()
	return p
}

func stateOfVersion(k *keys.Key, now time.Time) notifydv1.KeyState {
	switch {
	case k.Retired(now):
		return notifydv1.KeyState_KEY_STATE_RETIRED
	case k.Live(now):
		return notifydv1.KeyState_KEY_STATE_LIVE
	}
	return notifydv1.KeyState_KEY_STATE_PENDING
}
