import sys

import pytest

SHIPPED = ("jobs_async.testing.conformance", "jobs_async.testing.machine", "jobs_async.testing.model")

# too late for a module that another test has imported: its checks work all the same, and tell less when they fail
pytest.register_assert_rewrite(*(name for name in SHIPPED if name not in sys.modules))
