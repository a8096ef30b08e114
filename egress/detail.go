package egress

import (
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"notifyd/notification"
)

const longestDetail = 240

// detail says in words what happened, without query strings and secrets. A plain acknowledgement needs none.
func detail(what What, v Verdict, err error, location string) string {
	if what.Fault != FaultNone {
		if err == nil {
			return ""
		}
		return tidy(err.Error())
	}
	if v.Reason == notification.ReasonAcknowledged {
		return ""
	}
	text := "answered " + strconv.Itoa(what.Status)
	switch {
	case what.Late:
		text += " after the timeout"
	case v.Reason == notification.ReasonRedirect:
		if to := withoutQuery(location); to != "" {
			text += " to " + to + ", not followed"
		}
	case v.Reason == notification.ReasonWrongAnswer:
		text += ": " + v.Why
	}
	return tidy(text)
}

func withoutQuery(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// tidy makes one short line of a text that a merchant may have had a hand in.
func tidy(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text)
	if len(text) <= longestDetail {
		return text
	}
	cut := longestDetail
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
