package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
)

// ErrOtherMasterKey says that what is sealed in this database cannot be opened with the master key of this process.
var ErrOtherMasterKey = errors.New("the database was written under another master key: nodes that share it share the key")

const masterKeyWord = "notifyd"

var masterKeyPlace = []byte("master key check")

const (
	masterKeyEvery = 10 * time.Second
	resealEvery    = 5 * time.Minute
	// holderGone is how long a process is reckoned with that was not seen any more: several times masterKeyEvery.
	holderGone = "1 minute"
	resealRows = 50 // in one transaction, which puts off whoever changes settings meanwhile
)

// Rotation of the master key. A keyset holds several keys; whoever has it opens what any of them sealed. A word in the ledger,
// sealed with the key in use, says which one seals. Each process leaves there which keys it holds; when all that were seen
// lately hold a key that was added after the one in use, it comes into use, in one step that no start can overlap. So nobody
// meets what it cannot open: who lacks a key that is in use, or that still seals something, does not start.

// checkMasterKey keeps a node with another key from writing secrets that the others could not read, and from starting where it
// cannot read theirs. The first node to come leaves the word that all others open.
func (l *Postgres) checkMasterKey(ctx context.Context) error {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	err := l.underMasterKeyLock(ctx, func(tx pgx.Tx) error {
		word, err := l.masterKeyWord(ctx, tx)
		if errors.Is(err, pgx.ErrNoRows) {
			word, err = l.leaveMasterKeyWord(ctx, tx)
		}
		if err != nil {
			return err
		}
		if got, err := l.cfg.Keys.Open(word, masterKeyPlace); err != nil || string(got) != masterKeyWord {
			return ErrOtherMasterKey
		}
		sealed, err := sealedWith(ctx, tx)
		if err != nil {
			return err
		}
		for id := range sealed {
			if !slices.Contains(l.cfg.Keys.ids, id) {
				return fmt.Errorf("%w: key %d, which still seals something, is not in this node's keyset", ErrOtherMasterKey, id)
			}
		}
		l.cfg.Keys.using.Store(sealedBy(word))
		return l.showMasterKeys(ctx, tx)
	})
	if err != nil && !errors.Is(err, ErrOtherMasterKey) {
		return fmt.Errorf("check master key: %w", err)
	}
	return err
}

func (l *Postgres) underMasterKeyLock(ctx context.Context, do func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, lockMasterKey); err != nil {
			return err
		}
		return do(tx)
	})
}

func (l *Postgres) masterKeyWord(ctx context.Context, tx pgx.Tx) (sealed []byte, err error) {
	return sealed, tx.QueryRow(ctx, `select sealed from master_key_check`).Scan(&sealed)
}

// leaveMasterKeyWord is for the first node, and for a database from before the word: its merchants must open.
func (l *Postgres) leaveMasterKeyWord(ctx context.Context, tx pgx.Tx) (sealed []byte, err error) {
	rows, err := l.merchants.stored(ctx, tx, `order by id limit 1`)
	if err != nil {
		return nil, err
	}
	if _, err := l.merchants.openAll(rows); errors.Is(err, errNotOpened) {
		return nil, errors.Join(ErrOtherMasterKey, err)
	} else if err != nil {
		return nil, err
	}
	if sealed, err = l.cfg.Keys.Seal([]byte(masterKeyWord), masterKeyPlace); err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `insert into master_key_check (sealed) values ($1)`, sealed)
	return sealed, err
}

// showMasterKeys leaves in the ledger which keys this process holds. The clock is the database's: nodes' own may differ.
func (l *Postgres) showMasterKeys(ctx context.Context, tx pgx.Tx) error {
	ids := make([]int64, len(l.cfg.Keys.ids))
	for i, id := range l.cfg.Keys.ids {
		ids[i] = int64(id)
	}
	_, err := tx.Exec(ctx, `insert into master_key_holders (process, key_ids, seen_at) values ($1, $2, now())
		on conflict (process) do update set key_ids = excluded.key_ids, seen_at = excluded.seen_at`, l.process, ids)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `delete from master_key_holders where seen_at < now() - interval '`+holderGone+`'`)
	return err
}

// TurnMasterKey shows which keys this process holds, seals with the one in use from now on, and brings the keyset's primary into
// use if it was added after that one and everybody holds it. Run does so every few seconds.
func (l *Postgres) TurnMasterKey(ctx context.Context) (turned bool, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	held, next := l.cfg.Keys.ids, l.cfg.Keys.primary
	var using uint32
	err = l.underMasterKeyLock(ctx, func(tx pgx.Tx) error {
		if err := l.showMasterKeys(ctx, tx); err != nil {
			return err
		}
		word, err := l.masterKeyWord(ctx, tx)
		if err != nil {
			return err
		}
		if using = sealedBy(word); !slices.Contains(held, using) { // it was away for so long that nobody reckoned with it
			return fmt.Errorf("%w: key %d is in use", ErrOtherMasterKey, using)
		}
		if slices.Index(held, next) <= slices.Index(held, using) {
			return nil // also where another node's keyset is newer than this one's
		}
		var lacking int
		err = tx.QueryRow(ctx, `select count(*) from master_key_holders where not key_ids @> array[$1::bigint]`, int64(next)).Scan(&lacking)
		if err != nil || lacking > 0 {
			return err
		}
		if word, err = l.cfg.Keys.sealWith(next, []byte(masterKeyWord), masterKeyPlace); err != nil {
			return err
		}
		using, turned = next, true
		_, err = tx.Exec(ctx, `update master_key_check set sealed = $1`, word)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("turn master key: %w", err)
	}
	l.cfg.Keys.using.Store(using)
	return turned, nil
}

// keepMasterKey turns the master key and seals anew what older ones sealed, until ctx ends.
func (l *Postgres) keepMasterKey(ctx context.Context) {
	tick := time.NewTicker(masterKeyEvery)
	defer tick.Stop()
	defer l.leaveMasterKeys(context.WithoutCancel(ctx))
	reseal := resealEvery // since the last time
	for {
		turned, err := l.TurnMasterKey(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrOtherMasterKey):
			l.log.Error("what is sealed now cannot be opened by this node: give it the keyset of the others and restart it", zap.Error(err))
		case err != nil:
			l.log.Debug("which master keys are held is shown later", zap.Error(err))
		case turned:
			l.log.Info("another master key is in use: what older ones sealed is sealed anew", zap.Uint32("key", l.cfg.Keys.using.Load()))
		}
		if reseal += masterKeyEvery; err == nil && !l.cfg.LeaveUpkeep && (turned || reseal >= resealEvery) {
			reseal = 0
			n, err := l.Reseal(ctx)
			if n > 0 {
				l.log.Info("sealed anew under the master key in use", zap.Int("rows", n))
			}
			if err != nil && ctx.Err() == nil {
				l.log.Warn("not everything is sealed anew; it is tried again", zap.Error(err))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// leaveMasterKeys says that this process needs to open nothing any more. If it cannot, the others find out in a minute.
func (l *Postgres) leaveMasterKeys(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if _, err := l.pool.Exec(ctx, `delete from master_key_holders where process = $1`, l.process); err != nil {
		l.log.Debug("that this process has ended is not shown", zap.Error(err))
	}
}

// Reseal seals anew, under the key in use, whatever another key has sealed, in small transactions: it may end anywhere, and go on
// where it has ended, here or on another node. Each row counts as changed, so that all nodes read it again, which shows that
// they can, and renew their snapshots. What does not open is left as it is and named by the error.
func (l *Postgres) Reseal(ctx context.Context) (n int, err error) {
	var errs []error
	for _, reseal := range []func(context.Context) (int, error){l.merchants.reseal, l.sources.reseal, l.access.reseal, l.keys.reseal} {
		some, err := reseal(ctx)
		n += some
		errs = append(errs, err)
	}
	return n, errors.Join(errs...)
}

func (s *settingsTable[T]) reseal(ctx context.Context) (n int, err error) {
	var errs []error
	for after := ""; ; {
		some, last, damaged, err := s.resealSome(ctx, after)
		if err != nil {
			return n, errors.Join(append(errs, fmt.Errorf("reseal %ss: %w", s.noun, err))...)
		}
		n += some
		errs = append(errs, damaged...)
		if last == "" {
			return n, errors.Join(errs...)
		}
		after = last
	}
}

// resealSome reseals one page, behind an id; last is empty when there was none.
func (s *settingsTable[T]) resealSome(ctx context.Context, after string) (n int, last string, damaged []error, err error) {
	ctx, cancel := s.ledger.bounded(ctx)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.ledger.pool, func(tx pgx.Tx) error {
		// As in put: versions become visible in order. And what is kept of changes is not told of this one.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1), set_config('notifyd.resealing', 'on', true)`, s.lock); err != nil {
			return err
		}
		rows, err := s.stored(ctx, tx, `where id collate "C" > $1 and substring(secrets from 1 for 5) <> $2 order by id collate "C" limit $3`,
			after, sealedPrefix(s.ledger.cfg.Keys.using.Load()), resealRows)
		if err != nil {
			return err
		}
		for _, row := range rows {
			last = row.ID
			secret, err := s.ledger.cfg.Keys.Open(row.Secrets, s.place(row.ID))
			if err != nil {
				damaged = append(damaged, fmt.Errorf("reseal %s %q: %w", s.noun, row.ID, err))
				continue
			}
			sealed, err := s.ledger.cfg.Keys.Seal(secret, s.place(row.ID))
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `update `+s.noun+`s set secrets = $2, version = nextval('`+s.noun+`_versions') where id = $1`, row.ID, sealed); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil {
		return 0, "", nil, err
	}
	return n, last, damaged, nil
}

// MasterKey is one key of the master keyset, or one that something is sealed with: never the key itself.
type MasterKey struct {
	ID        uint32
	InUse     bool
	Sealed    int64 // how much in the ledger is sealed with it
	Held      bool  // by this process
	MissingOn int   // processes that were seen lately
}

// MasterKeys are those that this process holds, in the order in which they were added, then those that it does not.
func (l *Postgres) MasterKeys(ctx context.Context) ([]MasterKey, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	var out []MasterKey
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		word, err := l.masterKeyWord(ctx, tx)
		if err != nil {
			return err
		}
		sealed, err := sealedWith(ctx, tx)
		if err != nil {
			return err
		}
		ids := slices.Clone(l.cfg.Keys.ids)
		for id := range sealed {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		for i, id := range ids {
			k := MasterKey{ID: id, InUse: id == sealedBy(word), Sealed: sealed[id], Held: i < len(l.cfg.Keys.ids)}
			err := tx.QueryRow(ctx, `select count(*) from master_key_holders where not key_ids @> array[$1::bigint] and seen_at >= now() - interval '`+holderGone+`'`,
				int64(id)).Scan(&k.MissingOn)
			if err != nil {
				return err
			}
			out = append(out, k)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read master keys: %w", err)
	}
	return out, nil
}

// sealedWith counts what each key has sealed. What is damaged beyond naming its key counts as key 0.
func sealedWith(ctx context.Context, q querier) (map[uint32]int64, error) {
	rows, err := q.Query(ctx, `select substring(secrets from 1 for 5), count(*) from (
			select secrets from merchants union all select secrets from sources union all select secrets from access_rules union all select secrets from keys
			union all select sealed from master_key_check) sealed group by 1`)
	if err != nil {
		return nil, err
	}
	counts := map[uint32]int64{}
	var prefix []byte
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&prefix, &n}, func() error {
		counts[sealedBy(prefix)] += n
		return nil
	})
	return counts, err
}
