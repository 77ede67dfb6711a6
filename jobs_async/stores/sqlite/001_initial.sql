-- Instants are microseconds since 1970 in UTC, leases seconds of the machine's uptime. Columns are read by position:
-- a later migration appends.

CREATE TABLE jobs_async_jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state INTEGER NOT NULL,
    queue TEXT NOT NULL,
    worker TEXT NOT NULL,
    args TEXT NOT NULL,
    priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    scheduled_at INTEGER NOT NULL,
    inserted_at INTEGER NOT NULL,
    attempted_at INTEGER,
    completed_at INTEGER,
    rescues INTEGER NOT NULL,
    claim INTEGER NOT NULL,
    node TEXT,
    timeout_seconds REAL,
    cancel_requested INTEGER NOT NULL,
    progress TEXT,
    result TEXT,
    errors TEXT,
    unique_key TEXT,
    idempotency_key TEXT,
    correlation_id TEXT,
    tags TEXT,
    meta TEXT
) STRICT;

CREATE INDEX jobs_async_claimable ON jobs_async_jobs (queue, priority, id) WHERE state = 0;

CREATE INDEX jobs_async_due ON jobs_async_jobs (queue, scheduled_at, id) WHERE state IN (3, 6);

CREATE INDEX jobs_async_executing ON jobs_async_jobs (node, id) WHERE state = 1;

CREATE INDEX jobs_async_ended ON jobs_async_jobs (completed_at, state) WHERE completed_at IS NOT NULL;

CREATE UNIQUE INDEX jobs_async_unique ON jobs_async_jobs (unique_key)
    WHERE unique_key IS NOT NULL AND state IN (0, 1, 3, 6);

CREATE UNIQUE INDEX jobs_async_idempotent ON jobs_async_jobs (idempotency_key, worker)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE jobs_async_ticks (
    name TEXT NOT NULL,
    at INTEGER NOT NULL,
    job_id INTEGER,
    PRIMARY KEY (name, at)
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs_async_queues (
    name TEXT NOT NULL PRIMARY KEY,
    paused INTEGER NOT NULL,
    slots INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs_async_nodes (
    id TEXT NOT NULL PRIMARY KEY,
    boot TEXT NOT NULL,
    expires_at REAL NOT NULL,
    started_at INTEGER NOT NULL,
    beat_at INTEGER NOT NULL,
    info TEXT NOT NULL
) STRICT, WITHOUT ROWID;
