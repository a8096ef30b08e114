package dispatcher

import (
	"fmt"
	"strconv"

	"connectrpc.com/connect"

	"notifyd/ledger"
)

// etagOf is a version as callers see it.
func etagOf(version int64) string { return strconv.FormatInt(version, 10) }

// versionOf reads an etag; nil: none was given.
func versionOf(etag string) (*int64, error) {
	if etag == "" {
		return nil, nil
	}
	v, err := strconv.ParseInt(etag, 10, 64)
	if err != nil || v < 0 {
		return nil, invalid("etag", fmt.Sprintf("%q: is not one of ours", etag))
	}
	return &v, nil
}

// stale says that settings are not what the caller has read.
func stale(what, id string) *connect.Error {
	return connect.NewError(connect.CodeAborted, fmt.Errorf("etag: %s %q: %w; read it again", what, id, ledger.ErrConflict))
}

// defaultSettingsPage is the page size of lists of settings.
const defaultSettingsPage = 100

// settingsPage reads the page that was asked for, and says after which id the next one begins; empty: it is the last.
func settingsPage[T any](asked interface {
	GetPageSize() int32
	GetPageToken() string
}, read func(after string, limit int) ([]T, error), id func(T) string,
) (page []T, next string, _ error) {
	size := int(asked.GetPageSize())
	if size == 0 {
		size = defaultSettingsPage
	}
	found, err := read(asked.GetPageToken(), size+1)
	if err != nil || len(found) <= size {
		return found, "", err
	}
	return found[:size], id(found[size-1]), nil
}
