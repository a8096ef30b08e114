-- +goose Up

-- The places of notifications in their lines: one for an ordering_key, one for a supersede_key, none for all the others. A
-- place is taken together with the notification's row, under the line's lock, so that the order of acceptance is one over
-- all nodes.
create table lines (
    line          uuid        not null, -- a hash of what the line is for, the merchant and the key
    at            timestamptz not null, -- the order in the line: the acceptance, but never before those that waited already
    id            uuid        not null,
    accepted_at   timestamptz not null, -- where the notification's row is
    standing      smallint    not null, -- 1 open, 2 dead, 3 ended
    superseded_by uuid,                 -- of an open one: a newer one in a line of a supersede_key
    primary key (id, line)
);
-- Who is first is one look into the index, however many have ended or wait.
create index lines_open on lines (line, at, id) where standing = 1;
create index lines_dead on lines (line, at, id) where standing = 2;
create index lines_accepted on lines (accepted_at);

-- +goose Down
drop table lines;
