-- +goose Up

create sequence source_versions;
create table sources (
    id         text primary key,
    version    bigint      not null unique,
    updated_at timestamptz not null,
    settings   text        not null, -- JSON without secrets
    secrets    bytea       not null  -- sealed, see secrets.go
);

-- One row for each time that an alarm was raised.
create table alarms (
    id         bigint generated always as identity primary key,
    name       text        not null,
    subject    text        not null, -- what it is about, for example a merchant's id; may be empty
    node       text        not null,
    severity   text        not null,
    detail     text        not null, -- as it was when last seen
    raised_at  timestamptz not null,
    seen_at    timestamptz not null, -- when it was last found true
    cleared_at timestamptz
);
create unique index alarms_open on alarms (name, subject, node) where cleared_at is null;
create index alarms_raised on alarms (raised_at, id);

-- +goose Down
drop table alarms;
drop table sources;
drop sequence source_versions;
