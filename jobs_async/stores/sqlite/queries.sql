-- One block a statement. Each term that guards a write stands on a line of its own. A batch comes in at :rows.

-- name: insert
INSERT INTO jobs_async_jobs (
    state, queue, worker, args, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
    completed_at, rescues, claim, node, timeout_seconds, cancel_requested, progress, result, errors,
    unique_key, idempotency_key, correlation_id, tags, meta, external_id
)
SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL
RETURNING id

-- name: twins
SELECT * FROM jobs_async_jobs
WHERE unique_key IN (SELECT value FROM json_each(:unique_keys))
    AND unique_key IS NOT NULL
    AND state IN (0, 1, 3, 6)
UNION ALL
SELECT jobs_async_jobs.* FROM json_each(:idempotency_keys) AS wanted
CROSS JOIN jobs_async_jobs
    ON idempotency_key = wanted.value ->> 1
    AND worker = wanted.value ->> 0
    AND idempotency_key IS NOT NULL

-- name: spend_tick
INSERT INTO jobs_async_ticks (name, at, job_id)
SELECT :name, :at, NULL
WHERE (:late IS NULL OR EXISTS (SELECT 1 FROM jobs_async_ticks WHERE name = :late AND at < :at))
ON CONFLICT DO NOTHING
RETURNING at

-- name: link_tick
UPDATE jobs_async_ticks SET job_id = :job_id WHERE name = :name AND at = :at

-- name: forget_ticks
DELETE FROM jobs_async_ticks WHERE name = :name AND at < :before

-- name: peek
SELECT
    EXISTS (SELECT 1 FROM jobs_async_jobs WHERE queue = :queue AND state = 0),
    (SELECT min(scheduled_at) FROM jobs_async_jobs WHERE queue = :queue AND state IN (3, 6))

-- name: stage
UPDATE jobs_async_jobs SET state = 0
WHERE id IN (
    SELECT id FROM jobs_async_jobs
    WHERE queue = :queue
        AND state IN (3, 6)
        AND scheduled_at <= :now
    ORDER BY scheduled_at, id
    LIMIT 1000
)

-- name: claim
UPDATE jobs_async_jobs
SET state = 1, attempt = attempt + 1, claim = claim + 1, attempted_at = :now, node = :node, progress = NULL
WHERE id IN (
    SELECT id FROM jobs_async_jobs
    WHERE queue = :queue
        AND state = 0
    ORDER BY priority, id
    LIMIT :limit
)
    AND NOT EXISTS (SELECT 1 FROM jobs_async_queues WHERE name = :queue AND paused = 1)
    AND (:node IS NULL OR EXISTS (
        SELECT 1 FROM jobs_async_nodes
        WHERE id = :node
            AND boot = :boot
            AND expires_at > :uptime
    ))
RETURNING *

-- name: apply
UPDATE jobs_async_jobs
SET
    state = step.column5,
    attempt = step.column6,
    rescues = step.column7,
    claim = step.column8,
    scheduled_at = step.column9,
    completed_at = step.column10,
    result = step.column11,
    errors = step.column12,
    cancel_requested = step.column13,
    progress = coalesce(step.column14, progress),
    args = coalesce(step.column15, args),
    priority = coalesce(step.column16, priority),
    queue = step.column17,
    max_attempts = step.column18
FROM (VALUES :rows) AS step
WHERE jobs_async_jobs.id = step.column1
    AND jobs_async_jobs.state = step.column2
    AND jobs_async_jobs.claim = step.column3
    AND jobs_async_jobs.cancel_requested = step.column4
RETURNING jobs_async_jobs.id, jobs_async_jobs.args, jobs_async_jobs.priority, jobs_async_jobs.progress

-- name: end
UPDATE jobs_async_jobs
SET state = step.column4, completed_at = step.column5, result = step.column6, errors = step.column7
FROM (VALUES :rows) AS step
WHERE jobs_async_jobs.id = step.column1
    AND jobs_async_jobs.state = 1
    AND jobs_async_jobs.claim = step.column2
    AND jobs_async_jobs.cancel_requested = step.column3
RETURNING jobs_async_jobs.id, jobs_async_jobs.args, jobs_async_jobs.priority, jobs_async_jobs.progress

-- name: by_ids
SELECT * FROM jobs_async_jobs WHERE id IN (SELECT value FROM json_each(:ids))

-- name: is_one_of
id IN (SELECT value FROM json_each(:ids))

-- name: in_queues
queue IN (SELECT value FROM json_each(:queues))

-- name: has_worker
worker IN (SELECT value FROM json_each(:workers))

-- name: has_external_id
external_id IN (SELECT value FROM json_each(:external_ids))

-- name: has_error
instr(errors ->> '$[#-1].error', :error)

-- name: is_orphaned
node IS NOT NULL
AND NOT EXISTS (
    SELECT 1 FROM jobs_async_nodes AS owner
    WHERE owner.id = job.node
        AND owner.boot = :boot
        AND owner.expires_at > :uptime
)

-- name: has_tags
NOT EXISTS (SELECT 1 FROM json_each(:tags) AS wanted WHERE wanted.value NOT IN (SELECT value FROM json_each(tags)))

-- name: has_args
NOT EXISTS (
    SELECT 1 FROM json_each(:args) AS wanted
    WHERE NOT EXISTS (
        SELECT 1 FROM json_each(job.args) AS given
        WHERE given.key = wanted.key
            AND replace(given.type, 'real', 'integer') = replace(wanted.type, 'real', 'integer')
            AND given.atom IS wanted.atom
    )
)

-- name: is_due
id IN (
    SELECT id FROM jobs_async_jobs WHERE state = 0
    UNION ALL
    SELECT id FROM jobs_async_jobs WHERE state IN (3, 6) AND scheduled_at <= :now
)

-- name: is_due_in
id IN (
    SELECT id FROM jobs_async_jobs WHERE queue IN (SELECT value FROM json_each(:queues)) AND state = 0
    UNION ALL
    SELECT id FROM jobs_async_jobs
    WHERE queue IN (SELECT value FROM json_each(:queues))
        AND state IN (3, 6)
        AND scheduled_at <= :now
)

-- name: delete
DELETE FROM jobs_async_jobs
WHERE id IN (SELECT value FROM json_each(:ids))
    AND state <> 1
    AND state IN (SELECT value FROM json_each(:states))
RETURNING id

-- name: purge
DELETE FROM jobs_async_jobs
WHERE id IN (
    SELECT id FROM jobs_async_jobs
    WHERE completed_at IS NOT NULL
        AND completed_at < :before
        AND state = :state
    ORDER BY completed_at
    LIMIT :limit
)
RETURNING id

-- name: tally
SELECT queue, state, count(*) FROM jobs_async_jobs GROUP BY queue, state

-- name: queues
SELECT name, paused, slots FROM jobs_async_queues

-- name: set_queue
INSERT INTO jobs_async_queues (name, paused, slots) VALUES (:name, :paused, :slots)
ON CONFLICT (name) DO UPDATE SET paused = :paused, slots = :slots

-- name: join_node
INSERT INTO jobs_async_nodes (id, boot, expires_at, started_at, beat_at, info)
VALUES (:id, :boot, :uptime + :ttl, :now, :now, :info)
ON CONFLICT (id) DO UPDATE SET expires_at = :uptime + :ttl, beat_at = :now, info = :info
WHERE jobs_async_nodes.expires_at > :uptime
RETURNING id

-- name: renew_node
UPDATE jobs_async_nodes SET expires_at = :uptime + :ttl, beat_at = :now, info = :info
WHERE id = :id
    AND boot = :boot
    AND expires_at > :uptime
RETURNING id

-- name: prolong_node
UPDATE jobs_async_nodes SET expires_at = max(expires_at, :uptime + :ttl), beat_at = :now
WHERE id = :id
    AND boot = :boot
    AND expires_at > :uptime
RETURNING id

-- name: forget_nodes
DELETE FROM jobs_async_nodes WHERE boot <> :boot OR expires_at < :uptime - :kept

-- name: asked_to_cancel
SELECT id FROM jobs_async_jobs WHERE state = 1 AND node = :id AND cancel_requested = 1

-- name: nodes
SELECT id, boot, expires_at, started_at, beat_at, info FROM jobs_async_nodes ORDER BY started_at, id

-- name: put_record
INSERT INTO jobs_async_records (kind, key, value, at) VALUES (:kind, :key, :value, :now)
ON CONFLICT (kind, key) DO UPDATE SET value = :value, at = :now
WHERE :only_new = 0
RETURNING key

-- name: get_records
SELECT kind, key, value, at FROM jobs_async_records
WHERE kind = :kind
    AND (:keys IS NULL OR key IN (SELECT value FROM json_each(:keys)))
    AND substr(key, 1, length(:prefix)) = :prefix
    AND key >= :prefix
    AND (:after IS NULL OR key > :after)
ORDER BY key
LIMIT :limit

-- name: drop_records
DELETE FROM jobs_async_records
WHERE (kind, key) IN (
    SELECT kind, key FROM jobs_async_records
    WHERE kind = :kind
        AND (:keys IS NULL OR key IN (SELECT value FROM json_each(:keys)))
        AND (:before IS NULL OR at < :before)
    ORDER BY at, key
    LIMIT :limit
)
RETURNING key
