-- +goose Up

-- What notifications are signed, encrypted, verified and proven with: one row for each name, with all its versions.
create sequence key_versions;
create table keys (
    id         text primary key,
    version    bigint      not null unique,
    updated_at timestamptz not null,
    settings   text        not null, -- JSON without secrets
    secrets    bytea       not null  -- sealed, see secrets.go
);

-- Who changed what, kept by the database itself in the same transaction. Sealing anew changes nothing that is kept.
create table key_changes (
    number     bigint generated always as identity primary key,
    changed_at timestamptz not null,
    name       text        not null,
    after      text        not null -- settings
);
create index key_changes_name on key_changes (name, number);

-- +goose StatementBegin
create function note_key_change() returns trigger language plpgsql as $$
begin
    if current_setting('notifyd.resealing', true) is distinct from 'on' then
        insert into key_changes (changed_at, name, after) values (new.updated_at, new.id, new.settings);
    end if;
    return null;
end
$$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function note_access_change() returns trigger language plpgsql as $$
begin
    if current_setting('notifyd.resealing', true) is distinct from 'on' then
        insert into access_changes (changed_at, rule_id, before, after)
            values (new.updated_at, new.id, case when tg_op = 'UPDATE' then old.settings end, new.settings);
    end if;
    return null;
end
$$;
-- +goose StatementEnd
create trigger keys_noted after insert or update on keys for each row execute function note_key_change();
create trigger keys_stay before delete on keys for each row execute function refuse_change();
create trigger keys_not_truncated before truncate on keys for each statement execute function refuse_change();
create trigger key_changes_append_only before update or delete on key_changes for each row execute function refuse_change();
create trigger key_changes_not_truncated before truncate on key_changes for each statement execute function refuse_change();

-- Who was told how many days before its end that a certificate ends; 0: that it has ended.
create table key_expiries (
    name     text        not null,
    version  integer     not null,
    days     integer     not null,
    noted_at timestamptz not null,
    primary key (name, version, days)
);

-- Which master keys the processes hold that use this database: one is sealed with when all of them can open what it seals.
create table master_key_holders (
    process text primary key,
    key_ids bigint[]    not null,
    seen_at timestamptz not null
);

-- +goose Down
drop table master_key_holders;
drop table key_expiries;
drop table key_changes;
drop table keys;
drop sequence key_versions;
drop function note_key_change;
-- +goose StatementBegin
create or replace function note_access_change() returns trigger language plpgsql as $$
begin
    insert into access_changes (changed_at, rule_id, before, after)
        values (new.updated_at, new.id, case when tg_op = 'UPDATE' then old.settings end, new.settings);
    return null;
end
$$;
-- +goose StatementEnd
