-- Numbers $1 to $2; number 0 was accepted at $3, each next one $4 microseconds later; one of $5 is rare in one way; with attempts
-- if $6; what waits is due from $7 on. Columns stand in the order of the tables.
with made as materialized (
    select accepted_at,
        -- DeriveID (notification/id.go): each field behind its length.
        encode(substr(sha256(int8send(13) || 'notifyd/id/v1'::bytea || int8send(7) || 'request'::bytea
            || int8send(length(source)) || source::bytea || int8send(length(request)) || request::bytea), 1, 16), 'hex')::uuid as id,
        sha256(int8send(i)) as digest, source, request, merchant, 'app-1' as app_id, scene, scene || '.succeeded' as event_type,
        'order-' || i / 2 as order_id, 'paid' as order_status, true as terminal, 1 as status_version,
        case when i % 1000000 < 100000 then 'payday-' || i / 1000000 when i % 10 = 0 then 'batch-' || i / 5000 else '' end as batch_id,
        'https://' || merchant || '.example/notify' as notify_url,
        convert_to('{"order":"order-' || i / 2 || '","amount":"10.50","currency":"CNY","note":"' || repeat(md5(i::text), 7) || '"}', 'UTF8') as body,
        '' as content_type, 'CNY' as currency, 1050 as minor_units, accepted_at as occurred_at, null::timestamptz as order_created_at,
        null::timestamptz as not_before, null::timestamptz as expires_at, '' as ordering_key, '' as supersede_key, '' as labels,
        0 as requested_lane, 2 as route_lane, merchant as isolation_key, 'direct' as egress, 'default' as schedule, 1 as persist,
        'default' as rule, 'submit' as origin, state, reason, 0 as generation, tries, tries as step,
        case when state in (1, 2, 3) then $7::timestamptz + (random() - 0.02) * interval '20 hours' end as next_at,
        accepted_at as window_from, false as resting, 0 as deferred_for, null::timestamptz as deferred_since,
        case when state > 3 then accepted_at + interval '300 milliseconds' end as settled_at,
        case when state = 4 then 'acknowledgement' when state > 4 then 'schedule' else '' end as settled_by,
        accepted_at + interval '300 milliseconds' as updated_at, state > 3 or random() < 0.02 as fed, null::timestamptz as claimed_until, '' as operator
    from (
        select i, accepted_at, source, request, merchant, scene, state,
            case when state = 4 and dice < 0.995 then 'acknowledged' when state = 4 then 'late_acknowledgement'
                when i % $5::bigint = 7 then 'tls_certificate' when state = 1 then 'queued' when state = 3 then 'merchant_paused'
                when state = 6 then 'canceled' when state = 7 then 'expired' when state = 5 and dice < 0.7 then 'schedule_exhausted'
                when state = 5 and dice < 0.9 then 'gone' when state = 5 then 'abort_message'
                when dice < 0.5 then 'http_server_error' when dice < 0.8 then 'response_timeout' else 'connect_refused' end as reason,
            case when state = 1 then 0 when state = 5 and dice < 0.7 then 12 when state = 2 then 3 else 1 end as tries
        from (
            select i, $3::timestamptz + i * $4::bigint * interval '1 microsecond' as accepted_at, random() as dice,
                case when i % $5::bigint = 13 then 'rare-source' else 'source-' || lpad(floor(40 * power(random(), 3))::text, 2, '0') end as source,
                'request-' || md5(i::text) as request, 'merchant-' || lpad(number::text, 4, '0') as merchant,
                case when i % $5::bigint = 11 then 'rare_scene' else (array['scan', 'netbank', 'withhold', 'payout', 'recharge'])[1 + floor(5 * power(random(), 2))::int]
                    || floor(8 * random()) end as scene,
                -- of a thousand: 985 delivered, 5 dead, 4 retrying, 2 held, 2 expired, 1.5 canceled, 0.5 accepted; one merchant of ten never fails
                case when i % $5::bigint = 7 then 5 when luck < 985 or number % 10 = 3 then 4 when luck < 990 then 5 when luck < 994 then 2
                    when luck < 996 then 3 when luck < 998 then 7 when luck < 999.5 then 6 else 1 end as state
            from (select i, floor(2000 * power(random(), 3))::int as number, 1000 * random() as luck from generate_series($1::bigint, $2::bigint) i) numbers
        ) drawn
    ) judged
), told as (
    insert into notifications select * from made
), reserved as (
    insert into reservations select id, digest, accepted_at, false from made
)
insert into attempts
select accepted_at, id, number, md5(id::text || number)::uuid, 0, 1, 1, case when state = 4 and number = tries then 1 else 3 end,
    case when state = 4 and number = tries then reason else 'http_server_error' end, 'status 200', true, accepted_at + number * interval '1 second', 250000, 0, 0, 0, 40, 240000, 900,
    1, '10.0.0.1:40000', '203.0.113.9:443', 'TLS 1.3', 'direct', '["k-1"]', 1, 'POST', notify_url,
    '[{"Name":"webhook-id","Value":"' || id || '"},{"Name":"webhook-timestamp","Value":"1790000000"},{"Name":"webhook-signature","Value":"v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="},{"Name":"content-type","Value":"application/json"}]',
    null, 200, '[{"Name":"Content-Type","Value":"application/json"},{"Name":"Date","Value":"Sun, 22 Nov 2026 10:00:00 GMT"}]', '{"code":"SUCCESS"}', false, null, '', 0
from made cross join lateral generate_series(1, tries) number
where $6
