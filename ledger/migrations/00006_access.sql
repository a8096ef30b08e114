-- +goose Up

-- The rules of the blacklist and the whitelist. A removed one stays, marked so: nodes learn what has changed by its version.
create sequence access_rule_versions;
create table access_rules (
    id         text primary key,
    version    bigint      not null unique,
    updated_at timestamptz not null,
    settings   text        not null, -- JSON
    secrets    bytea       not null  -- sealed; rules have none
);

-- Who changed what, kept by the database itself in the same transaction, whoever makes the change.
create table access_changes (
    number     bigint generated always as identity primary key,
    changed_at timestamptz not null,
    rule_id    text        not null,
    before     text, -- settings; null: there was none
    after      text        not null
);
create index access_changes_rule on access_changes (rule_id, number);
-- +goose StatementBegin
create function note_access_change() returns trigger language plpgsql as $$
begin
    insert into access_changes (changed_at, rule_id, before, after)
        values (new.updated_at, new.id, case when tg_op = 'UPDATE' then old.settings end, new.settings);
    return null;
end
$$;
-- +goose StatementEnd
create trigger access_rules_noted after insert or update on access_rules for each row execute function note_access_change();
create trigger access_rules_stay before delete on access_rules for each row execute function refuse_change();
create trigger access_rules_not_truncated before truncate on access_rules for each statement execute function refuse_change();
create trigger access_changes_append_only before update or delete on access_changes for each row execute function refuse_change();
create trigger access_changes_not_truncated before truncate on access_changes for each statement execute function refuse_change();

-- How far a merchant's held notifications have been given due times: whoever releases more of them, on any node, goes on from
-- there, so that the rate holds over nodes and restarts.
create table access_releases (
    merchant_id text primary key,
    due_until   timestamptz not null
);

-- What the lists hold. On the parent only, as in 00003: indexes.go builds it for the days that are there.
set local lock_timeout = '3s';
create index notifications_barred on only notifications (merchant_id, source, scene, accepted_at)
    where state = 3 and reason in ('blocked', 'not_allowed');

-- +goose Down
drop index notifications_barred;
drop table access_releases;
drop table access_changes;
drop table access_rules;
drop sequence access_rule_versions;
drop function note_access_change;
