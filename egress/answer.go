package egress

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"notifyd/notification"
)

// Of an answer's head this much is kept.
const (
	maxKeptHeaders     = 32
	maxKeptHeaderValue = 1024
)

// readAnswer reads at most limit bytes of the body. The time is bounded by the connection's deadline. The body is not
// closed, which would read it to its end, however far that is: the connection's fate is the caller's to decide.
func readAnswer(resp *http.Response, limit int) (body []byte, truncated bool, err error) {
	if resp.StatusCode < 200 || resp.ContentLength == 0 { // 101 has no body, and no end
		return nil, false, nil
	}
	size := 512
	if resp.ContentLength > 0 {
		size = int(min(resp.ContentLength, int64(limit)))
	}
	// One byte more tells a full answer from one that goes on.
	body = make([]byte, 0, min(size, limit)+1)
	for {
		if len(body) == cap(body) {
			body = slices.Grow(body, len(body))
		}
		n, err := resp.Body.Read(body[len(body):min(cap(body), limit+1)])
		body = body[:len(body)+n]
		switch {
		case len(body) > limit:
			return body[:limit], true, nil
		case err == io.EOF:
			return body, false, nil
		case err != nil:
			return body, true, err
		}
	}
}

func keptHeaders(header http.Header) []notification.Header {
	if len(header) == 0 {
		return nil
	}
	kept := make([]notification.Header, 0, len(header))
	for name, values := range header {
		for _, value := range values {
			if len(value) > maxKeptHeaderValue {
				value = value[:maxKeptHeaderValue]
			}
			kept = append(kept, notification.Header{Name: name, Value: maskHeader(name, strings.ToValidUTF8(value, "\uFFFD"))})
		}
	}
	slices.SortStableFunc(kept, func(a, b notification.Header) int { return strings.Compare(a.Name, b.Name) })
	return kept[:min(len(kept), maxKeptHeaders)]
}

const longestRetryAfter = 24 * time.Hour

// retryAfter reads a Retry-After header: seconds or an HTTP date. What cannot be read, or lies in the past, is nothing.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(longestRetryAfter/time.Second) {
			return longestRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), longestRetryAfter)
}
