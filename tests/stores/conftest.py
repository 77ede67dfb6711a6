import pytest

pytest.register_assert_rewrite("jobs_async.testing.conformance", "jobs_async.testing.model")
