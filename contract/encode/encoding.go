package encode

import (
	"fmt"
	"mime"
	"strings"
)

// Settings say how a merchant's requests are written.
type Settings struct {
	Format  string // raw, json, form, query, xml or template
	Charset string // utf-8 (also if empty), gbk or gb18030; raw is sent as it came

	Root  string // xml: the root element's name; empty: xml
	CDATA bool   // xml: strings in CDATA sections, as WeChat Pay writes them

	Template    string // template: its text
	ContentType string // template: must be set; raw: for what came without one; the others have their own
}

// The formats.
const (
	FormatRaw      = "raw"      // the payload, byte for byte
	FormatJSON     = "json"     // an object of the fields
	FormatForm     = "form"     // application/x-www-form-urlencoded
	FormatQuery    = "query"    // the same, behind the notify URL; no body
	FormatXML      = "xml"      // an element for each field within a root
	FormatTemplate = "template" // the merchant's own text
)

// Formats are the names that settings may use.
func Formats() []string {
	return []string{FormatRaw, FormatJSON, FormatForm, FormatQuery, FormatXML, FormatTemplate}
}

// Encoding writes the requests of one setting. It can be used by many goroutines.
type Encoding struct {
	format      string
	charset     charset
	contentType string
	root        string
	cdata       bool
	template    *template
}

// Input is what a request is made of. Which parts are needed depends on the format.
type Input struct {
	URL         string   // query: the notify URL
	Raw         []byte   // raw: the payload as it came
	ContentType string   // raw: what came with it
	Fields      []Field  // json, form, query, xml
	Payload     *Payload // template, if it has paths
	Values      Values   // template, if it has names
}

// Request is what goes to the merchant.
type Request struct {
	URL         string
	Body        []byte
	ContentType string // empty if there is no body
}

// Compile checks settings. A template may use the names.
func Compile(s Settings, names Names) (*Encoding, error) {
	set, err := charsetNamed(s.Charset)
	if err != nil {
		return nil, err
	}
	if err := checkUse(s); err != nil {
		return nil, err
	}
	e := &Encoding{format: s.Format, charset: set, contentType: s.ContentType, root: s.Root, cdata: s.CDATA}
	switch s.Format {
	case FormatRaw:
		if set.scheme != nil {
			return nil, refuse("charset", "%s: the format raw is sent as it came", clip(s.Charset))
		}
		if s.ContentType == "" {
			e.contentType = "application/json"
		}
	case FormatJSON:
		e.contentType = "application/json"
		if set.scheme != nil {
			e.contentType += "; charset=" + set.name
		}
	case FormatForm:
		e.contentType = "application/x-www-form-urlencoded; charset=" + set.name
	case FormatQuery:
	case FormatXML:
		e.contentType = "text/xml; charset=" + set.name
		if e.root == "" {
			e.root = "xml"
		}
		if !isXMLName(e.root) {
			return nil, refuse("xml_root", "%s: %s", clip(e.root), ruleXMLName)
		}
	case FormatTemplate:
		if e.template, err = compileTemplate(s.Template, mediaType(s.ContentType), set, names); err != nil {
			return nil, err
		}
	default:
		return nil, refuse("format", "%s: must be one of %s", clip(s.Format), strings.Join(Formats(), ", "))
	}
	return e, nil
}

// checkUse refuses what the format would not read, and a content type that is none.
func checkUse(s Settings) error {
	if s.Format != FormatXML && s.Root != "" {
		return refuse("xml_root", "%s: only the format xml has one", clip(s.Root))
	}
	if s.Format != FormatXML && s.CDATA {
		return refuse("cdata", "true: only the format xml has it")
	}
	if s.Format != FormatTemplate && s.Template != "" {
		return refuse("template", "only the format template has one")
	}
	switch {
	case s.ContentType == "" && s.Format == FormatTemplate:
		return refuse("content_type", "must be set for the format template")
	case s.ContentType == "":
		return nil
	case s.Format != FormatTemplate && s.Format != FormatRaw:
		return refuse("content_type", "%s: the format %s has its own", clip(s.ContentType), clip(s.Format))
	}
	_, parameters, err := mime.ParseMediaType(s.ContentType)
	if err != nil || !isASCII(s.ContentType) || strings.ContainsAny(s.ContentType, "\r\n") {
		return refuse("content_type", "%s: must be a media type, as in text/plain; charset=utf-8", clip(s.ContentType))
	}
	named := parameters["charset"]
	if s.Format == FormatRaw || named == "" {
		return nil
	}
	said, _ := charsetNamed(named)
	if set, _ := charsetNamed(s.Charset); said.name != set.name {
		return refuse("content_type", "%s: its charset must be that of the setting, %s", clip(s.ContentType), set.name)
	}
	return nil
}

func mediaType(contentType string) string {
	media, _, _ := mime.ParseMediaType(contentType) // checkUse has parsed it before
	return media
}

// UsesPayload reports whether Encode itself needs the payload.
func (e *Encoding) UsesPayload() bool { return e.template != nil && e.template.usesPayload() }

// UsesFields reports whether Encode writes the fields.
func (e *Encoding) UsesFields() bool { return e.format != FormatRaw && e.template == nil }

// Encode writes one request. Every error is one of the input: the same input fails again.
func (e *Encoding) Encode(in Input) (Request, error) {
	out := Request{URL: in.URL, ContentType: e.contentType}
	var err error
	switch e.format {
	case FormatRaw:
		out.Body = in.Raw
		if in.ContentType != "" {
			out.ContentType = in.ContentType
		}
		return out, nil
	case FormatTemplate:
		out.Body, err = e.template.execute(in.Payload, in.Values)
	default:
		if err = checkNames(in.Fields); err != nil {
			break
		}
		switch e.format {
		case FormatJSON:
			out.Body, err = e.json(in.Fields)
		case FormatForm:
			out.Body, err = e.form(in.Fields)
		case FormatQuery:
			out.URL, err = e.query(in.URL, in.Fields)
		case FormatXML:
			out.Body, err = e.xml(in.Fields)
		}
	}
	if err != nil {
		return Request{}, fmt.Errorf("encode %s: %w", e.format, err)
	}
	return out, nil
}

// checkNames refuses a name that comes twice: each reader would take another of the two.
func checkNames(fields []Field) error {
	var names nameSet
	for i := range fields {
		if !names.add(fields[i].Name) {
			return &FieldError{Field: fields[i].Name, Rule: "comes twice"}
		}
	}
	return nil
}

// sizeOf guesses how long the fields become.
func sizeOf(fields []Field) int {
	size := 64
	for i := range fields {
		size += 2*len(fields[i].Name) + len(fields[i].Text) + len(fields[i].Text)/4 + 16
	}
	return min(size, maxEncoded)
}
