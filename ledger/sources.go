package ledger

import (
	"context"

	"notifyd/source"
)

func sourceFields(s *source.Source) settingsFields {
	return settingsFields{id: &s.ID, version: &s.Version, updatedAt: &s.UpdatedAt, secrets: &s.Secrets}
}

// PutSource stores a source whole. With ifVersion it does so only if that is the version in the ledger, 0 meaning
// none at all, else ErrConflict. What it returns has the new version.
func (l *Postgres) PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error) {
	return l.sources.put(ctx, s, ifVersion)
}

// SourcesSince are the sources that changed after a version, in the order of their changes. It misses none.
func (l *Postgres) SourcesSince(ctx context.Context, version int64) ([]*source.Source, error) {
	return l.sources.since(ctx, version)
}

// ListSources is a page in the order of ids.
func (l *Postgres) ListSources(ctx context.Context, after string, limit int) ([]*source.Source, error) {
	return l.sources.list(ctx, after, limit)
}

// GetSource is one source, or ErrNotFound.
func (l *Postgres) GetSource(ctx context.Context, id string) (*source.Source, error) {
	return l.sources.get(ctx, id)
}
