-- +goose Up

-- Every id that was ever accepted, for as long as the ledger keeps it. Not partitioned: the id alone is unique here,
-- over all days (P4). It is also how a notification is found by id: it knows the day.
create table reservations (
    id          uuid primary key,
    digest      bytea not null,
    accepted_at timestamptz not null,
    -- Somebody was told that it is accepted, and a while later no row showed it. Without it and without a row, nobody was
    -- told: the submission was cut short and comes again.
    answered    boolean not null default false
) with (fillfactor = 95);
create index reservations_accepted on reservations (accepted_at, id);

-- One row for each notification, in daily partitions by acceptance. Partitions are made and dropped by partitions.go;
-- there is no default partition on purpose: it would have to be scanned for each new one.
create table notifications (
    accepted_at      timestamptz not null,
    id               uuid        not null,
    digest           bytea       not null,
    source           text        not null,
    request_id       text        not null,
    merchant_id      text        not null,
    app_id           text        not null,
    scene            text        not null,
    event_type       text        not null,
    order_id         text        not null,
    order_status     text        not null,
    terminal         boolean     not null,
    status_version   bigint      not null,
    batch_id         text        not null,
    notify_url       text        not null,
    body             bytea       not null,
    content_type     text        not null,
    currency         text        not null,
    minor_units      bigint      not null,
    occurred_at      timestamptz,
    order_created_at timestamptz,
    not_before       timestamptz,
    expires_at       timestamptz,
    ordering_key     text        not null,
    supersede_key    text        not null,
    labels           text        not null, -- a JSON object, or empty
    requested_lane   smallint    not null,
    route_lane       smallint    not null,
    isolation_key    text        not null,
    egress           text        not null,
    schedule         text        not null,
    persist          smallint    not null,
    rule             text        not null,
    origin           text        not null,
    state            smallint    not null,
    reason           text        not null,
    generation       bigint      not null,
    attempts         integer     not null,
    step             integer     not null,
    next_at          timestamptz,
    window_from      timestamptz,
    resting          boolean     not null,
    deferred_for     bigint      not null, -- microseconds
    deferred_since   timestamptz,
    settled_at       timestamptz,
    settled_by       text        not null,
    updated_at       timestamptz not null,
    fed              boolean     not null, -- its due time is known to the delay queue
    claimed_until    timestamptz,          -- in no index, so that a claim is a HOT update
    operator         text        not null default '', -- who canceled or resent it last
    primary key (accepted_at, id)
) partition by range (accepted_at);

-- No index on (id): whoever has a row has a reservation, which knows accepted_at (store.go adds a missing one in the
-- same transaction), and a second random index would cost every row about 2 µs.
create index notifications_merchant on notifications (merchant_id, accepted_at, id);
create index notifications_order on notifications (order_id) where order_id <> '';
create index notifications_batch on notifications (batch_id, accepted_at, id) where batch_id <> '';
create index notifications_undelivered on notifications (accepted_at, id, state) where state <> 4;
-- Rescue reads the overdue end of this one ...
create index notifications_due on notifications (next_at)
    where state in (1, 2, 3) and not resting and next_at is not null;
-- ... and Feed this one, which leaves out what the delay queue knows already.
create index notifications_unfed on notifications (next_at)
    where state in (1, 2, 3) and not resting and next_at is not null and not fed;

-- One row for each request on the wire; append only. Partitioned by the notification's acceptance, so that both drop together.
create table attempts (
    accepted_at        timestamptz not null,
    notification_id    uuid        not null,
    number             integer     not null,
    key                uuid        not null,
    generation         bigint      not null,
    kind               smallint    not null,
    trigger            smallint    not null,
    outcome            smallint    not null,
    reason             text        not null,
    detail             text        not null,
    counted            boolean     not null,
    started_at         timestamptz,
    took               bigint      not null, -- this and all below: microseconds
    took_dns           bigint      not null,
    took_connect       bigint      not null,
    took_tls           bigint      not null,
    took_write         bigint      not null,
    took_first_byte    bigint      not null,
    took_read          bigint      not null,
    connects           integer     not null,
    local_addr         text        not null,
    remote_addr        text        not null,
    tls                text        not null,
    egress             text        not null,
    key_ids            text        not null, -- a JSON array, or empty
    settings_version   bigint      not null,
    request_method     text        not null,
    request_url        text        not null,
    request_headers    text        not null, -- a JSON array, or empty
    request_body       bytea,                -- null: the notification's body
    response_status    integer,              -- null: no answer
    response_headers   text,
    response_body      bytea,
    response_truncated boolean,
    late_at            timestamptz,
    operator           text        not null,
    retry_after        bigint      not null,
    primary key (accepted_at, notification_id, number, key)
) partition by range (accepted_at);

-- What Postgres refused to store: never lost, never in the way.
create table quarantine (
    id              bigint generated always as identity primary key,
    at              timestamptz not null,
    notification_id uuid        not null,
    reason          text        not null,
    record          bytea       not null -- gob of Record
);
create index quarantine_notification on quarantine (notification_id);

create sequence merchant_versions;
create table merchants (
    id         text primary key,
    version    bigint      not null unique,
    updated_at timestamptz not null,
    settings   text        not null, -- JSON without secrets
    secrets    bytea       not null  -- sealed, see secrets.go
);

-- +goose Down
drop table merchants;
drop sequence merchant_versions;
drop table quarantine;
drop table attempts;
drop table notifications;
drop table reservations;
