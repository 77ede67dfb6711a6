-- What other systems call a job; many jobs may share one.

ALTER TABLE jobs_async_jobs ADD COLUMN external_id TEXT;

CREATE INDEX jobs_async_external ON jobs_async_jobs (external_id, id) WHERE external_id IS NOT NULL;
