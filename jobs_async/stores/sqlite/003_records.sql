-- Small documents beside the jobs.

CREATE TABLE jobs_async_records (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX jobs_async_records_by_age ON jobs_async_records (kind, at);
