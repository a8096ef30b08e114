-- +goose Up

-- On the parents only, which takes a moment however much is there: days made from now on have these indexes from the start,
-- and indexes.go builds them for the days that are there, beside the running engine, then drops those that they replace.
-- Whoever cannot get the lock in time tries again; writers queue behind it meanwhile.
set local lock_timeout = '3s';

-- (…, id) is left out where it costs every row: rows of one microsecond are sorted when read. The columns after
-- accepted_at are there to pass over rows without reading them.
create index notifications_merchant_time on only notifications (merchant_id, accepted_at, source, scene);
create index notifications_source on only notifications (source, accepted_at, scene);
create index notifications_scene on only notifications (scene, accepted_at);

-- What is delivered as it should be is in none of these, so it does not pay for them.
create index notifications_unsettled on only notifications (accepted_at, id, state, merchant_id, source, reason) where state <> 4;
create index notifications_reason on only notifications (reason, accepted_at, merchant_id, source) where reason <> 'acknowledged';

-- Holds all that GetBatch counts. A change of state is no HOT update anyway.
create index notifications_progress on only notifications (batch_id, accepted_at, id, state, source) include (settled_at) where batch_id <> '';

-- An empty ledger has nothing to wait for.
-- +goose StatementBegin
do $$ begin
    if not exists (select from pg_inherits where inhparent = 'notifications'::regclass) then
        drop index notifications_merchant, notifications_undelivered, notifications_batch;
    end if;
end $$;
-- +goose StatementEnd

-- +goose Down
create index if not exists notifications_merchant on notifications (merchant_id, accepted_at, id);
create index if not exists notifications_undelivered on notifications (accepted_at, id, state) where state <> 4;
create index if not exists notifications_batch on notifications (batch_id, accepted_at, id) where batch_id <> '';
drop index notifications_merchant_time, notifications_source, notifications_scene, notifications_unsettled, notifications_reason,
    notifications_progress;
