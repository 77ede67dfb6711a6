"""Log lines that say which job wrote them: the job's fields on every record, and two formatters that show them.

What they say of a job are its id, worker, queue, attempt and correlation id, and where OpenTelemetry traces it, the
trace and the span; never its arguments or keys.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from jobs_async.core import limits
from jobs_async.core.context import current
from jobs_async.core.instrument import Instrument

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from jobs_async.core.context import JobContext

FIELDS = ("job_id", "worker", "queue", "attempt", "correlation_id", "trace_id", "span_id")
ABSENT = "-"
"""What a record says where there is nothing to say, so that a format string may name any field."""


def current_log_context() -> Mapping[str, object]:
    """What a line logged right now says of its job: those of `FIELDS` that there are; empty outside a job.

    It reads the context variable that the runtime sets for each attempt, so it holds in async handlers, in threads
    and in tasks that a handler has spawned; not in worker processes. Trace and span are those of this moment.
    """
    ctx = current.get(None)
    return {} if ctx is None else {**_of_job(ctx), **_of_span()}


def _of_job(ctx: JobContext) -> dict[str, object]:
    job = ctx.job
    fields: dict[str, object] = {"job_id": job.id, "worker": job.worker, "queue": job.queue, "attempt": ctx.attempt}
    if ctx.correlation_id is not None:
        fields["correlation_id"] = ctx.correlation_id
    return fields


def _of_span() -> dict[str, object]:
    """The current span of an OpenTelemetry that somebody else has imported, written as W3C has it."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    with suppress(Exception):  # half imported, or somebody's own span
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    return {}


class JobFilter(logging.Filter):
    """Puts `FIELDS` on every record, "-" for those that are missing. It lets every record pass.

    Give it to handlers: a filter on a logger does not see the records of the loggers below. What `extra=` has set
    stays, and so does what another JobFilter has set, in another thread say, before a queue of records.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if "job_id" in record.__dict__ and "span_id" in record.__dict__:
            return True
        fields: Mapping[str, object] = {}
        with suppress(Exception):  # whoever logs must not fail for it
            fields = current_log_context()
        for name in FIELDS:
            record.__dict__.setdefault(name, fields.get(name, ABSENT))
        return True


class LogContext(Instrument):
    """Binds the fields of the job into `structlog.contextvars` while its handler runs, where structlog is imported.

    Afterwards what was bound before is bound again. Give it behind the tracer, if there is one, so that the trace is
    known. JobFilter and `current_log_context` do not need it.
    """

    @contextmanager
    def running(self, ctx: JobContext) -> Generator[None]:
        structlog: Any = sys.modules.get("structlog.contextvars")
        if structlog is None:
            yield
            return
        with structlog.bound_contextvars(**_of_job(ctx), **_of_span()):
            yield


# --- formatters ---


class HumanFormatter(logging.Formatter):
    r"""One line a record, an exception below it; the time is UTC.

        2026-03-01 12:00:00.125Z WARNING shop.mail [send_email #12 attempt 2] no answer yet

    The job is there where a JobFilter was before. Line breaks and other control characters of a message are written as
    `\n` and the like, so that no message can look like another line.
    """

    def format(self, record: logging.LogRecord) -> str:
        try:
            return "\n".join([self._head(record), *_below(record)])
        except Exception as error:
            return f"a log record could not be formatted: {limits.type_name(error)}"

    def _head(self, record: logging.LogRecord) -> str:
        at = f"{instant_of(record):%Y-%m-%d %H:%M:%S.%f}"[:-3]
        job = "".join(f" [{name}]" for name in _job_name(record))
        line = f"{at}Z {record.levelname:<7} {record.name}{job} {message_of(record)}"
        return _CONTROL.sub(_escaped, line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, whatever the record holds: it never raises, and holds no NUL and no line break.

    `time` (ISO 8601, UTC), `level`, `logger`, `message`; the job's fields, where a JobFilter was before; what `extra=`
    has set; `exception` and `stack`, where there are any. A field of `extra` that has no form in JSON is shown by the
    name of its type, and one whose name is taken gets an underscore behind it.
    """

    def format(self, record: logging.LogRecord) -> str:
        try:
            return _line(_document(record))
        except Exception as error:
            return _line({"message": f"a log record could not be formatted: {limits.type_name(error)}"})


def _document(record: logging.LogRecord) -> dict[str, object]:
    document: dict[str, object] = {
        "time": f"{instant_of(record):%Y-%m-%dT%H:%M:%S.%fZ}",
        "level": clean(record.levelname),
        "logger": clean(record.name),
        "message": message_of(record),
        **{name: _plain(value) for name, value in _job_fields(record).items()},
    }
    for name, text in (("exception", exception_of(record)), ("stack", _stack_of(record))):
        if text:
            document[name] = text
    for name, value in list(record.__dict__.items()):
        if name not in _STANDARD and name not in FIELDS:
            document[_free_name(clean(name), document)] = _plain(value)
    return document


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    while name in taken:
        name += "_"
    return name


def _plain(value: object) -> object:
    """A value that JSON has a form for, or the name of its type."""
    if isinstance(value, str):
        return clean(value)
    try:
        plain = msgspec.to_builtins(value, str_keys=True)
        msgspec.json.encode(plain)
    except Exception:
        return f"<{limits.type_name(value)}>"
    return plain


def _line(document: Mapping[str, object]) -> str:
    text = msgspec.json.encode(document).decode()
    if "\\u0000" in text:
        text = _NUL.sub(r"\1\\ufffd", text)
    return text if text.isascii() else text.translate(_LINE_BREAKS)


# --- what a record holds, read without trust ---


def message_of(record: logging.LogRecord) -> str:
    """The message; where its arguments cannot be put into it, without them."""
    try:
        return clean(record.getMessage())
    except Exception as error:
        text = record.msg if isinstance(record.msg, str) else f"<{limits.type_name(record.msg)}>"
        return f"{clean(text)} (its arguments could not be shown: {limits.type_name(error)})"


def exception_of(record: logging.LogRecord) -> str:
    """The traceback, or an empty text."""
    try:
        if record.exc_text:
            return clean(record.exc_text)
        return clean(_plainly.formatException(record.exc_info)) if record.exc_info else ""
    except Exception as error:
        return f"the traceback could not be shown: {limits.type_name(error)}"


def instant_of(record: logging.LogRecord) -> datetime:
    """When the record was made; 1970 where it says nothing of use."""
    try:
        return datetime.fromtimestamp(record.created, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def clean(text: object) -> str:
    """Text that any reader can take: valid Unicode, no NUL."""
    return str(text).encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _stack_of(record: logging.LogRecord) -> str:
    return clean(record.stack_info) if record.stack_info else ""


def _below(record: logging.LogRecord) -> list[str]:
    return [_CONTROL_IN_TEXT.sub(_escaped, text) for text in (exception_of(record), _stack_of(record)) if text]


def _job_fields(record: logging.LogRecord) -> dict[str, object]:
    found = {name: record.__dict__.get(name) for name in FIELDS}
    return {
        name: value
        for name, value in found.items()
        if value is not None and not (isinstance(value, str) and value == ABSENT)
    }


def _job_name(record: logging.LogRecord) -> list[str]:
    """The job in a few words; nothing outside one."""
    fields = _job_fields(record)
    if "job_id" not in fields:
        return []
    return [f"{clean(fields.get('worker', ABSENT))} #{fields['job_id']} attempt {fields.get('attempt', ABSENT)}"]


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


_plainly = logging.Formatter()
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
