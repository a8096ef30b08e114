-- +goose Up

-- One sealed word: who cannot open it has another master key than those who write here.
create table master_key_check (
    one    boolean primary key default true check (one),
    sealed bytea not null
);

create sequence source_versions;
create table sources (
    id         text primary key,
    version    bigint      not null unique,
    updated_at timestamptz not null,
    settings   text        not null, -- JSON without secrets
    secrets    bytea       not null  -- sealed, see secrets.go
);

-- One row for each time that an alarm was raised.
-- Its key is what the node that raised it knows without asking: what could not be stored at once is stored later, also twice.
create table alarms (
    raised_at  timestamptz not null,
    name       text        not null,
    subject    text        not null, -- what it is about, for example a merchant's id; may be empty
    node       text        not null,
    severity   text        not null,
    detail     text        not null, -- as it was when last seen
    seen_at    timestamptz not null, -- when it was last found true
    cleared_at timestamptz,
    primary key (raised_at, name, subject, node)
);
create index alarms_open on alarms (node) where cleared_at is null;

-- +goose Down
drop table master_key_check;
drop table alarms;
drop table sources;
drop sequence source_versions;
