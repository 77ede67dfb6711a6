-- One block a statement. Each term that guards a write stands on a line of its own. Parameters are named as psql has
-- them, save those of a batch, which are arrays by number. Where :lease_now is null the server's clock judges leases.
-- Hints are not said while the queue of notifications runs full: a commit that says one into a full queue fails.
-- A + before a column leads past the indexes that have it. JSON comes and goes as text wherever the connection may be an application's own, for that may have a codec for it.

-- name: insert
WITH fresh AS (
    INSERT INTO jobs_async_jobs (
        state, queue, worker, args, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
        completed_at, rescues, claim, node, timeout_seconds, cancel_requested, progress, result, errors,
        unique_key, idempotency_key, correlation_id, tags, meta, external_id
    )
    SELECT * FROM unnest(
        $1::smallint[], $2::text[], $3::text[], $4::text[]::json[], $5::integer[], $6::integer[], $7::integer[],
        $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::integer[], $13::bigint[],
        $14::text[], $15::double precision[], $16::boolean[], $17::text[]::json[], $18::text[]::json[],
        $19::text[]::json[], $20::text[], $21::text[], $22::text[], $23::text[]::json[], $24::text[]::json[],
        $25::text[]
    )
    RETURNING id
)
SELECT id, (
    SELECT count(pg_notify($26, hint)) FROM unnest($27::text[]) AS hint WHERE pg_notification_queue_usage() < 0.5
) FROM fresh

-- name: hint
SELECT pg_notify(:channel, hint) FROM unnest(:hints::text[]) AS hint WHERE pg_notification_queue_usage() < 0.5

-- name: hold
SELECT pg_advisory_xact_lock(number)
FROM (SELECT DISTINCT hashtextextended(key, 0) AS number FROM unnest(:keys::text[]) AS key ORDER BY number) AS numbers

-- name: twins
SELECT
    id, state, queue, worker, args::text, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
    completed_at, rescues, claim, node, timeout_seconds, cancel_requested, progress::text, result::text, errors::text,
    unique_key, idempotency_key, correlation_id, tags::text, meta::text, external_id
FROM jobs_async_jobs
WHERE id = ANY(ARRAY(
    SELECT id FROM jobs_async_jobs
    WHERE unique_key = ANY(ARRAY(SELECT jsonb_array_elements_text(:unique_keys::text::jsonb)))
        AND unique_key IS NOT NULL
        AND state IN (0, 1, 3, 6)
    UNION
    SELECT id FROM jsonb_array_elements(:idempotency_keys::text::jsonb) AS wanted
    CROSS JOIN LATERAL (
        SELECT id FROM jobs_async_jobs
        WHERE idempotency_key = wanted ->> 1
            AND worker = wanted ->> 0
            AND idempotency_key IS NOT NULL
    ) AS known
))
ORDER BY id
FOR UPDATE

-- name: spend_tick
INSERT INTO jobs_async_ticks (name, at, job_id)
SELECT :name::text, :at::timestamptz, NULL
WHERE (:late::text IS NULL OR EXISTS (SELECT 1 FROM jobs_async_ticks WHERE name = :late AND at < :at))
ON CONFLICT DO NOTHING
RETURNING at

-- name: link_tick
UPDATE jobs_async_ticks SET job_id = :job_id WHERE name = :name AND at = :at

-- name: forget_ticks
DELETE FROM jobs_async_ticks WHERE name = :name AND at < :before

-- name: peek
SELECT
    EXISTS (SELECT 1 FROM jobs_async_jobs WHERE queue = :queue AND state = 0),
    (SELECT scheduled_at FROM jobs_async_jobs WHERE queue = :queue AND state IN (3, 6) ORDER BY scheduled_at LIMIT 1)

-- name: stage
UPDATE jobs_async_jobs SET state = 0
WHERE id = ANY(ARRAY(
    SELECT id FROM jobs_async_jobs
    WHERE queue = :queue
        AND state IN (3, 6)
        AND scheduled_at <= :now
    ORDER BY scheduled_at, id
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
))

-- name: claim
UPDATE jobs_async_jobs
SET state = 1, attempt = attempt + 1, claim = claim + 1, attempted_at = :now, node = :node, progress = NULL
WHERE id = ANY(ARRAY(
    SELECT id FROM jobs_async_jobs
    WHERE queue = :queue
        AND state = 0
        AND NOT EXISTS (SELECT 1 FROM jobs_async_queues WHERE name = :queue AND paused)
        AND (:node::text IS NULL OR EXISTS (
            SELECT 1 FROM jobs_async_nodes
            WHERE id = :node
                AND expires_at > coalesce(:lease_now::timestamptz, clock_timestamp())
        ))
    ORDER BY priority, id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
))
RETURNING *

-- name: apply
UPDATE jobs_async_jobs AS job
SET
    state = step.state,
    attempt = step.attempt,
    rescues = step.rescues,
    claim = step.claim,
    scheduled_at = step.scheduled_at,
    completed_at = step.completed_at,
    result = step.result,
    errors = step.errors,
    cancel_requested = step.cancel_requested,
    progress = coalesce(step.progress, job.progress),
    args = coalesce(step.args, job.args),
    priority = coalesce(step.priority, job.priority),
    queue = step.queue,
    max_attempts = step.max_attempts
FROM unnest(
    $1::bigint[], $2::smallint[], $3::bigint[], $4::boolean[], $5::smallint[], $6::integer[], $7::integer[],
    $8::bigint[], $9::timestamptz[], $10::timestamptz[], $11::text[]::json[], $12::text[]::json[], $13::boolean[],
    $14::text[]::json[], $15::text[]::json[], $16::integer[], $17::text[], $18::integer[]
) AS step (
    id, old_state, old_claim, old_cancel_requested, state, attempt, rescues, claim, scheduled_at, completed_at, result,
    errors, cancel_requested, progress, args, priority, queue, max_attempts
)
WHERE job.id = step.id
    AND job.id = ANY($1)
    AND job.state = step.old_state
    AND job.claim = step.old_claim
    AND job.cancel_requested = step.old_cancel_requested
RETURNING job.id, job.args::text, job.priority, job.progress::text

-- name: end
UPDATE jobs_async_jobs AS job
SET state = step.state, completed_at = step.completed_at, result = step.result, errors = step.errors
FROM unnest(
    $1::bigint[], $2::bigint[], $3::boolean[], $4::smallint[], $5::timestamptz[], $6::text[]::json[],
    $7::text[]::json[]
) AS step (id, old_claim, old_cancel_requested, state, completed_at, result, errors)
WHERE job.id = step.id
    AND job.id = ANY($1)
    AND +job.state = 1
    AND job.claim = step.old_claim
    AND job.cancel_requested = step.old_cancel_requested
RETURNING job.id, job.args::text, job.priority, job.progress::text

-- name: by_ids
SELECT
    id, state, queue, worker, args::text, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
    completed_at, rescues, claim, node, timeout_seconds, cancel_requested, progress::text, result::text, errors::text,
    unique_key, idempotency_key, correlation_id, tags::text, meta::text, external_id
FROM jobs_async_jobs
WHERE id = ANY(ARRAY(SELECT jsonb_array_elements_text(:ids::text::jsonb)::bigint))

-- name: is_one_of
id = ANY(ARRAY(SELECT jsonb_array_elements_text(:ids::jsonb)::bigint))

-- name: in_queues
queue = ANY(ARRAY(SELECT jsonb_array_elements_text(:queues::jsonb)))

-- name: has_worker
worker = ANY(ARRAY(SELECT jsonb_array_elements_text(:workers::jsonb)))

-- name: has_external_id
id = ANY(ARRAY(
    SELECT id FROM jobs_async_jobs
    WHERE external_id = ANY(ARRAY(SELECT jsonb_array_elements_text(:external_ids::jsonb)))
))

-- name: has_error
strpos(errors -> -1 ->> 'error', :error) > 0

-- name: is_orphaned
node IS NOT NULL
AND NOT EXISTS (
    SELECT 1 FROM jobs_async_nodes AS owner
    WHERE owner.id = job.node
        AND owner.expires_at > coalesce(:lease_now::timestamptz, clock_timestamp())
)

-- name: has_tags
coalesce(tags::jsonb, '[]') @> :tags::jsonb

-- name: has_args
(:args::jsonb = '{}' OR args::jsonb @> :args::jsonb)

-- name: is_due
(state = 0 OR (state IN (3, 6) AND scheduled_at <= :now))

-- name: is_due_in
id = ANY(ARRAY(
    SELECT id FROM jobs_async_jobs
    WHERE queue = ANY(ARRAY(SELECT jsonb_array_elements_text(:queues::jsonb)))
        AND state = 0
    UNION ALL
    SELECT id FROM jobs_async_jobs
    WHERE queue = ANY(ARRAY(SELECT jsonb_array_elements_text(:queues::jsonb)))
        AND state IN (3, 6)
        AND scheduled_at <= :now
))

-- name: delete
DELETE FROM jobs_async_jobs
WHERE id = ANY(ARRAY(SELECT jsonb_array_elements_text(:ids::jsonb)::bigint))
    AND state <> 1
    AND state = ANY(ARRAY(SELECT jsonb_array_elements_text(:states::jsonb)::smallint))
RETURNING id

-- name: purge
DELETE FROM jobs_async_jobs
WHERE id = ANY(ARRAY(
    SELECT id FROM jobs_async_jobs
    WHERE completed_at IS NOT NULL
        AND completed_at < :before
        AND state = :state
    ORDER BY completed_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
))
RETURNING id

-- name: tally
SELECT queue, state, count(*) FROM jobs_async_jobs GROUP BY queue, state

-- name: queues
SELECT name, paused, slots FROM jobs_async_queues

-- name: set_queue
INSERT INTO jobs_async_queues (name, paused, slots) VALUES (:name, :paused, :slots)
ON CONFLICT (name) DO UPDATE SET paused = excluded.paused, slots = excluded.slots

-- name: join_node
INSERT INTO jobs_async_nodes AS node (id, expires_at, started_at, beat_at, info)
SELECT :id::text, lease.ends, :now::timestamptz, :now, :info::json
FROM (SELECT coalesce(:lease_now::timestamptz, clock_timestamp()) + make_interval(secs => :ttl) AS ends) AS lease
ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, beat_at = excluded.beat_at, info = excluded.info
WHERE node.expires_at > coalesce(:lease_now::timestamptz, clock_timestamp())
RETURNING id

-- name: renew_node
UPDATE jobs_async_nodes
SET
    expires_at = coalesce(:lease_now::timestamptz, clock_timestamp()) + make_interval(secs => :ttl),
    beat_at = :now,
    info = :info
WHERE id = :id
    AND expires_at > coalesce(:lease_now::timestamptz, clock_timestamp())
RETURNING id

-- name: prolong_node
UPDATE jobs_async_nodes
SET
    expires_at = greatest(expires_at, coalesce(:lease_now::timestamptz, clock_timestamp()) + make_interval(secs => :ttl)),
    beat_at = :now
WHERE id = :id
    AND expires_at > coalesce(:lease_now::timestamptz, clock_timestamp())
RETURNING id

-- name: forget_nodes
DELETE FROM jobs_async_nodes
WHERE expires_at < coalesce(:lease_now::timestamptz, clock_timestamp()) - make_interval(secs => :kept)

-- name: asked_to_cancel
SELECT id FROM jobs_async_jobs WHERE state = 1 AND node = :id AND cancel_requested

-- name: nodes
SELECT id, expires_at > coalesce(:lease_now::timestamptz, clock_timestamp()), started_at, beat_at, info
FROM jobs_async_nodes
ORDER BY started_at, id

-- name: server_time
SELECT clock_timestamp()

-- name: reads_only
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'

-- name: old_transactions
SELECT pid, state, extract(epoch FROM clock_timestamp() - xact_start)::double precision
FROM pg_stat_activity
WHERE datname = current_database()
    AND pid <> pg_backend_pid()
    AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)
    AND xact_start < clock_timestamp() - make_interval(secs => :age)
ORDER BY xact_start
LIMIT 5

-- name: old_prepared
SELECT extract(epoch FROM clock_timestamp() - prepared)::double precision
FROM pg_prepared_xacts
WHERE database = current_database()
    AND prepared < clock_timestamp() - make_interval(secs => :age)
ORDER BY prepared
LIMIT 5

-- name: holding_slots
SELECT slot_name::text, greatest(age(xmin), age(catalog_xmin))
FROM pg_replication_slots
WHERE greatest(age(xmin), age(catalog_xmin)) > :held_back
    AND (database IS NULL OR database = current_database())
ORDER BY 2 DESC
LIMIT 5

-- name: dead_rows
SELECT
    n_live_tup,
    n_dead_tup,
    extract(epoch FROM clock_timestamp() - greatest(last_vacuum, last_autovacuum))::double precision
FROM pg_stat_user_tables
WHERE relid = to_regclass(:jobs_table)
    AND n_dead_tup > greatest(n_live_tup, :dead)
    AND coalesce(greatest(last_vacuum, last_autovacuum), (SELECT min(applied_at) FROM jobs_async_migrations))
        < clock_timestamp() - make_interval(secs => :vacuum)

-- name: connections
SELECT
    (SELECT sum(numbackends)::integer FROM pg_stat_database),
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer

-- name: put_record
INSERT INTO jobs_async_records AS record (kind, key, value, at) VALUES (:kind, :key, :value, :now)
ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, at = excluded.at
WHERE NOT :only_new::boolean
RETURNING key

-- name: get_records
SELECT kind, key, value, at FROM jobs_async_records
WHERE kind = :kind
    AND (:keys::jsonb IS NULL OR key = ANY(ARRAY(SELECT jsonb_array_elements_text(:keys::jsonb))))
    AND starts_with(key, :prefix)
    AND key >= :prefix
    AND (:after::text IS NULL OR key > :after)
ORDER BY key
LIMIT :limit

-- name: drop_records
DELETE FROM jobs_async_records
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM jobs_async_records
    WHERE kind = :kind
        AND (:keys::jsonb IS NULL OR key = ANY(ARRAY(SELECT jsonb_array_elements_text(:keys::jsonb))))
        AND (:before::timestamptz IS NULL OR at < :before)
    ORDER BY at, key
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
))
RETURNING key
