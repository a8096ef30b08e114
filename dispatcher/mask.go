package dispatcher

import (
	"bytes"
	"context"

	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// seesAll reports whether a caller sees bodies as they are: a source, which sees its own only.
func seesAll(ctx context.Context) bool { return CallerOf(ctx).Source != "" }

// maskNotification hides numbers of people in the bodies that an answer shows. What is kept and sent stays as it is.
func maskNotification(p *notifydv1.Notification) (hidden bool) {
	if masked := notification.Mask([]byte(p.Payload)); string(masked) != p.Payload {
		p.Payload, hidden = string(masked), true
	}
	return maskBody(&p.Body) || hidden
}

func maskAttempt(p *notifydv1.Attempt) (hidden bool) {
	if p.Request != nil {
		hidden = maskBody(&p.Request.Body)
	}
	for _, r := range []*notifydv1.HttpResponse{p.Response, p.LateResponse} {
		if r != nil {
			hidden = maskBody(&r.Body) || hidden
		}
	}
	return hidden
}

func maskBody(body *[]byte) (hidden bool) {
	masked := notification.Mask(*body)
	hidden = !bytes.Equal(masked, *body)
	*body = masked
	return hidden
}
