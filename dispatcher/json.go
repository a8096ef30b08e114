package dispatcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// StrictJSON makes a handler refuse JSON with a field or an enum's word that it does not know. Passed over, a misspelled
// notBefore would be sent at once, and a misspelled filter would list everything. (In protobuf's binary form there are no
// names to misspell: there, what a newer caller knows is passed over.)
func StrictJSON() connect.HandlerOption {
	return connect.WithHandlerOptions(connect.WithCodec(strictJSON("json")), connect.WithCodec(strictJSON("json; charset=utf-8")))
}

// strictJSON is a codec of this name.
type strictJSON string

var errNotProto = errors.New("not a protobuf message")

// Name is what content types call it.
func (c strictJSON) Name() string { return string(c) }

// Marshal writes an answer.
func (strictJSON) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, errNotProto
	}
	return protojson.Marshal(m)
}

// Unmarshal reads a request. What it refuses it names by its path.
func (strictJSON) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return errNotProto
	}
	if len(data) == 0 {
		return errors.New("the body is empty: want a JSON object, such as {}")
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		return jsonError(data, err, m.ProtoReflect().Descriptor())
	}
	return nil
}

// protojsonText takes apart what protojson says. Its prefix differs from build to build, so that nobody relies on it.
var protojsonText = regexp.MustCompile(`(?s)^proto:[\s\x{a0}]*(syntax error)? ?(?:\(line (\d+):(\d+)\):? )?(.*)$`)

// wants are the rules that protojson does not say.
var wants = map[string]string{
	"google.protobuf.Timestamp": "RFC 3339, such as 2026-11-11T08:00:00+08:00",
	"google.protobuf.Duration":  "seconds, such as 600s or 1.5s",
}

// jsonError says what protojson says, with the path of the field and with the rule.
func jsonError(data []byte, err error, message protoreflect.MessageDescriptor) error {
	said := protojsonText.FindStringSubmatch(err.Error())
	if said == nil {
		return errors.New("is not valid")
	}
	text := cut(said[4])
	if said[1] != "" {
		text = "syntax error: " + text
	}
	line, _ := strconv.Atoi(said[2])   // digits, or none
	column, _ := strconv.Atoi(said[3]) // as above
	switch {
	case text == "unexpected EOF":
		return errors.New("unexpected EOF: the JSON ends too early, or is cut off")
	case line == 0:
		return errors.New(text)
	}
	path := pathAt(data, offsetOf(data, line, column))
	for kind, want := range wants {
		if strings.Contains(text, kind) {
			text += "; want " + want
		}
	}
	if words := enumWords(message, path); words != "" && said[1] == "" {
		text += "; want " + words
	}
	if path != "" {
		text = cut(path) + ": " + text
	}
	return fmt.Errorf("%s (line %d, column %d)", text, line, column)
}

// cut keeps an error short, whatever was sent.
func cut(text string) string {
	if runes := []rune(text); len(runes) > 200 {
		return string(runes[:200]) + "…"
	}
	return text
}

var indexes = regexp.MustCompile(`\[\d+\]`)

// enumWords are the words that a field may have; empty: it is no enum.
func enumWords(message protoreflect.MessageDescriptor, path string) string {
	var field protoreflect.FieldDescriptor
	for name := range strings.SplitSeq(indexes.ReplaceAllString(path, ""), ".") {
		switch {
		case field != nil && field.IsMap(): // the name is a key
			field = field.MapValue()
			continue
		case field != nil && field.Message() != nil:
			message = field.Message()
		case field != nil:
			return ""
		}
		if field = message.Fields().ByJSONName(name); field == nil {
			return ""
		}
	}
	if field == nil || field.Enum() == nil {
		return ""
	}
	var words []string
	for i := range field.Enum().Values().Len() {
		if value := field.Enum().Values().Get(i); value.Number() != 0 {
			words = append(words, string(value.Name()))
		}
	}
	return strings.Join(words, ", ")
}

// offsetOf a line and a column, both from 1; columns count characters.
func offsetOf(data []byte, line, column int) int {
	offset := 0
	for ; line > 1; line-- {
		offset += bytes.IndexByte(data[offset:], '\n') + 1
	}
	for ; column > 1 && offset < len(data); column-- {
		_, size := utf8.DecodeRune(data[offset:])
		offset += size
	}
	return offset
}

// pathAt is the path of the key or value that stands at an offset: notification.labels or notifications[3].scene.
func pathAt(data []byte, offset int) string {
	type level struct {
		list  bool
		index int    // of the item that is next
		named bool   // a key has been read, its value is next
		key   string //
	}
	var levels []level
	path := func() string {
		var out strings.Builder
		for _, l := range levels {
			switch {
			case l.list:
				fmt.Fprintf(&out, "[%d]", l.index)
			case l.named && printable(l.key):
				out.WriteString("." + l.key)
			case l.named:
				fmt.Fprintf(&out, ".%q", l.key)
			}
		}
		return strings.TrimPrefix(out.String(), ".")
	}
	tokens := json.NewDecoder(bytes.NewReader(data))
	for {
		token, err := tokens.Token()
		if err != nil {
			return path()
		}
		isKey := false
		if len(levels) > 0 {
			top := &levels[len(levels)-1]
			if isKey = !top.list && !top.named && token != json.Delim('}'); isKey {
				top.named, top.key = true, fmt.Sprint(token)
			}
		}
		switch {
		case tokens.InputOffset() > int64(offset):
			return path()
		case isKey:
			continue
		case token == json.Delim('{'), token == json.Delim('['):
			levels = append(levels, level{list: token == json.Delim('[')})
			continue
		case token == json.Delim('}'), token == json.Delim(']'):
			levels = levels[:len(levels)-1]
		}
		if len(levels) > 0 { // a value has ended
			top := &levels[len(levels)-1]
			top.index, top.named = top.index+1, false
		}
	}
}
