"""An application that cannot be imported."""

import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401
