-- What ended before some instant, state by state: each is kept for a time of its own.

DROP INDEX jobs_async_ended;

CREATE INDEX jobs_async_ended ON jobs_async_jobs (state, completed_at) WHERE completed_at IS NOT NULL;
