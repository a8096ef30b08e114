package router

import (
	"errors"
	"strings"

	"notifyd/merchant"
	"notifyd/notification"
)

// isolation is how a key is made: tagged segments joined by "/". Values are escaped, so that no two lists of values
// have the same key:
//
//	merchant        m:<id>
//	merchant_scene  m:<id>/s:<scene>
//	merchant_url    m:<id>/u:<scheme://host:port/path>
//
// A label that is missing is l:<name>, an empty one l:<name>=.
type isolation []segment

type segment struct {
	tag string
	arg string // the label's name, or the literal text
}

// The segments' tags.
const (
	tagMerchant = "m:"
	tagScene    = "s:"
	tagURL      = "u:" // last only: its slashes stay as they are
	tagEvent    = "e:"
	tagSource   = "o:"
	tagApp      = "a:"
	tagCurrency = "c:"
	tagLabel    = "l:"
	tagLiteral  = "t:"
)

var (
	byMerchant      = isolation{{tag: tagMerchant}}
	byMerchantScene = isolation{{tag: tagMerchant}, {tag: tagScene}}
	byMerchantURL   = isolation{{tag: tagMerchant}, {tag: tagURL}}
)

var placeholders = map[string]string{
	"{merchant}": tagMerchant, "{scene}": tagScene, "{url}": tagURL, "{event_type}": tagEvent,
	"{source}": tagSource, "{app}": tagApp, "{currency}": tagCurrency,
}

// isolationOf answers merchant for a word it does not know: settings were checked when they were put.
func isolationOf(i merchant.Isolation) isolation {
	switch i {
	case merchant.IsolationMerchantScene:
		return byMerchantScene
	case merchant.IsolationMerchantURL:
		return byMerchantURL
	case merchant.IsolationMerchant:
		return byMerchant
	}
	return byMerchant
}

var (
	errIsolationWord = errors.New("must be merchant, merchant_scene, merchant_url, or a template of segments such as " +
		"{merchant}/{label:channel}; a segment is a text or one of {merchant} {scene} {url} {event_type} {source} {app} {currency} {label:NAME}")
	// P8: what merchants share, one of them can fill for the others.
	errIsolationShared = errors.New("must have {merchant} in it: merchants never share a key")
	errIsolationURL    = errors.New("must have {url} as its last segment")
)

func parseIsolation(text string) (isolation, error) {
	if !strings.Contains(text, "{") {
		switch i := merchant.Isolation(text); i {
		case merchant.IsolationMerchant, merchant.IsolationMerchantScene, merchant.IsolationMerchantURL:
			return isolationOf(i), nil
		}
		return nil, errIsolationWord
	}
	var out isolation
	shared := true
	parts := strings.Split(text, "/")
	for i, part := range parts {
		s, err := parseSegment(part)
		if err != nil {
			return nil, err
		}
		if s.tag == tagURL && i < len(parts)-1 {
			return nil, errIsolationURL
		}
		shared = shared && s.tag != tagMerchant
		out = append(out, s)
	}
	if shared {
		return nil, errIsolationShared
	}
	return out, nil
}

func parseSegment(text string) (segment, error) {
	if tag, ok := placeholders[text]; ok {
		return segment{tag: tag}, nil
	}
	if rest, ok := strings.CutPrefix(text, "{label:"); ok {
		if name, closed := strings.CutSuffix(rest, "}"); closed && name != "" && !strings.ContainsAny(name, "{}") {
			return segment{tag: tagLabel, arg: name}, nil
		}
		return segment{}, errIsolationWord
	}
	if text == "" || strings.ContainsAny(text, "{}") {
		return segment{}, errIsolationWord
	}
	return segment{tag: tagLiteral, arg: text}, nil
}

// key costs one allocation for keys of up to 256 bytes.
func (i isolation) key(n *notification.Notification, m *merchant.Merchant) string {
	var room [256]byte
	key := room[:0]
	for at, s := range i {
		if at > 0 {
			key = append(key, '/')
		}
		key = append(key, s.tag...)
		switch s.tag {
		case tagMerchant:
			key = appendEscaped(key, n.MerchantID)
		case tagScene:
			key = appendEscaped(key, n.Scene)
		case tagEvent:
			key = appendEscaped(key, n.EventType)
		case tagSource:
			key = appendEscaped(key, n.Source)
		case tagApp:
			key = appendEscaped(key, n.AppID)
		case tagCurrency:
			key = appendEscaped(key, n.Amount.Currency)
		case tagLiteral:
			key = appendEscaped(key, s.arg)
		case tagURL:
			key = appendURL(key, urlOf(n, m))
		case tagLabel:
			key = appendEscaped(key, s.arg)
			if value, ok := n.Labels[s.arg]; ok {
				key = append(key, '=')
				key = appendEscaped(key, value)
			}
		}
	}
	return string(key)
}

func urlOf(n *notification.Notification, m *merchant.Merchant) string {
	if n.NotifyURL != "" {
		return n.NotifyURL
	}
	if over := m.Scenes[n.Scene].NotifyURL; over != "" {
		return over
	}
	return m.NotifyURL
}

// appendEscaped writes a value without the characters that part a key: "/", "=" and the escape itself.
func appendEscaped(key []byte, value string) []byte {
	for i := range len(value) {
		switch c := value[i]; c {
		case '/':
			key = append(key, "%2F"...)
		case '=':
			key = append(key, "%3D"...)
		case '%':
			key = append(key, "%25"...)
		default:
			key = append(key, c)
		}
	}
	return key
}
