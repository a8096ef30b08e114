-- +goose Up

-- What was accepted, sent and answered is evidence: nobody changes or removes it, but for whole days that the retention
-- drops. What moves in a row of notifications is its progress.
-- In the order in which writers lock: the other way round, the two would wait for each other.
set local lock_timeout = '3s';
lock table notifications, attempts in share row exclusive mode;
-- +goose StatementBegin
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append only: % is not allowed', tg_table_name, tg_op using errcode = 'insufficient_privilege';
end
$$;
-- +goose StatementEnd
create trigger attempts_append_only before update or delete on attempts for each row execute function refuse_change();
create trigger attempts_not_truncated before truncate on attempts for each statement execute function refuse_change();
create trigger notifications_frozen before delete or update of accepted_at, id, digest, source, request_id, merchant_id, app_id, scene,
    event_type, order_id, order_status, terminal, status_version, batch_id, notify_url, body, content_type, currency, minor_units,
    occurred_at, order_created_at, not_before, expires_at, ordering_key, supersede_key, labels, origin
    on notifications for each row execute function refuse_change();
create trigger notifications_not_truncated before truncate on notifications for each statement execute function refuse_change();

-- +goose Down
drop trigger notifications_not_truncated on notifications;
drop trigger notifications_frozen on notifications;
drop trigger attempts_not_truncated on attempts;
drop trigger attempts_append_only on attempts;
drop function refuse_change;
