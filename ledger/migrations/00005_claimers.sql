-- +goose Up

-- Whose a claim is. In no index, so that claims stay HOT updates. Constant defaults: no row is written, however many there are.
-- A node of the version before writes claimed_until alone: what it claimed is told by a claimed_by_until that does not match.
set local lock_timeout = '3s';
alter table notifications
    add column claimed_by       text        not null default '',    -- a node's run
    add column claimed_by_until timestamptz,                        -- the claimed_until that claimed_by set; any other is somebody else's
    add column held             boolean     not null default false; -- claimed_by has it in hand and has not begun an attempt

-- +goose Down
alter table notifications drop column claimed_by, drop column claimed_by_until, drop column held;
