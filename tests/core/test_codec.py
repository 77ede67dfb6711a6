"""What is accepted as JSON can be loaded again, by any reader, as it was."""

from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_async import ArgsError
from jobs_async.core import codec
from jobs_async.core.outcome import storable
from jobs_async.runtime.failures import failure_of

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(codec.INT_MIN, codec.INT_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner)
    ),
    max_leaves=20,
)


@given(plain)
def test_row_77_plain_values_come_back_as_they_were(value: Any) -> None:
    text = codec.dumps(value)
    assert codec.loads(text) == value == json.loads(text)


@given(
    st.recursive(
        st.none() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    )
)
def test_row_77_anything_else_is_refused_with_a_typed_error(value: Any) -> None:
    try:
        text = codec.dumps(value)
    except ArgsError:
        return
    assert json.loads(text) == value


def test_values_msgspec_knows_are_written_as_it_writes_them() -> None:
    assert codec.loads(codec.dumps({"day": date(2026, 3, 1), "n": (1, 2)})) == {"day": "2026-03-01", "n": [1, 2]}


def test_a_null_is_no_nan() -> None:
    assert codec.finish(codec.encode([None], "args"), [None], "args") == "[null]"
    with pytest.raises(ArgsError, match="finite"):
        codec.finish(codec.encode([math.nan], "args"), [math.nan], "args")


def test_row_8_error_text_is_always_storable() -> None:
    hostile = "\0" + "\ud800" + "😀" * 1000
    cut = storable(hostile)
    assert len(cut.encode()) <= 2048
    assert "\0" not in cut
    assert cut.endswith("😀"), "never cut inside a character"
    failure = failure_of(ValueError(hostile))
    assert failure.error.startswith("ValueError: ")
    assert len(failure.error.encode()) <= 2048


def test_row_9_an_exception_that_cannot_be_shown_is_shown_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise SystemExit

    assert failure_of(Broken()).error == "Broken: (its message could not be read)"
