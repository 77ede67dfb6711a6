"""What a function takes and returns, bound and checked as JSON: what is accepted at the call is accepted at the run.

Arguments are stored as one JSON object, parameter name → value, holding only what the caller gave: `*rest` is a list
and `**extra` an object under its own name. Defaults are applied when the job runs and need not be JSON.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, cast, get_args, get_origin

import msgspec
from msgspec import UNSET, Struct, defstruct
from msgspec.structs import asdict

from jobs_async.core import codec
from jobs_async.core.annotations import Hints, Unresolved, check_type, is_model
from jobs_async.core.context import JobContext
from jobs_async.core.errors import ArgsError, UnreadableArgs, WorkerError

_Kind = inspect.Parameter
_EMPTY = inspect.Parameter.empty
_NAMED = (_Kind.POSITIONAL_OR_KEYWORD, _Kind.KEYWORD_ONLY)
_POSITIONAL = (_Kind.POSITIONAL_ONLY, _Kind.POSITIONAL_OR_KEYWORD)
_OBJECT: Any = dict  # Any, for isinstance would narrow to members of unknown types
_ARRAY: Any = (list, tuple)
_MUTABLE: Any = (list, dict, set, bytearray, Struct)
_KEYS = "must have string keys where its type does not declare others"


class Arguments:
    """The parameters of one function, without its context. Prepared once, at the latest at the first use.

    Raises:
        WorkerError: there is no place for the context.
    """

    def __init__(self, hints: Hints, worker: str, *, context: bool = False) -> None:
        parameters = list(hints.signature.parameters.values())
        self._context: str | None = None
        if context:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                raise WorkerError(f"{worker}: context=True needs a first, positional parameter for the JobContext")
            first = parameters.pop(0)
            _refuse_as_context(hints, first.name, worker)
            self._context = None if first.kind is _Kind.POSITIONAL_ONLY else first.name
        self._worker = worker
        self._what = f"arguments of {worker}"
        self._hints = hints
        self._signature = hints.signature.replace(parameters=parameters)
        self._named = all(parameter.kind in _NAMED for parameter in parameters)
        self._loose: tuple[str, ...] = ()
        self._ready = False

    def prepare(self) -> None:
        """Build binder and decoder. Harmless when done.

        Raises:
            WorkerError: naming the parameter that cannot be stored as JSON, or whose annotation cannot be resolved.
        """
        if self._ready:
            return
        parameters = self._signature.parameters.values()
        checked = {parameter.name: self._checked(parameter.name) for parameter in parameters}
        try:
            fields = [_field(parameter, checked[parameter.name][0]) for parameter in parameters]
            run: Any = defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, gc=False)
            self._decode: Any = msgspec.json.Decoder(run, dec_hook=_decode_hook).decode
            self._bind: Any = self._binder() if self._named else self._bind_slowly
        except Exception as error:
            raise WorkerError(f"{self._what} cannot be stored as JSON: {error}") from None
        self._loose = tuple(name for name, (_, loose) in checked.items() if loose)
        self._ready = True

    def pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The JSON of a call's arguments, checked by the decoder that will read it.

        Raises:
            ArgsError: they do not fit the signature, or are not JSON any reader can load.
        """
        if not self._ready:
            self.prepare()
        try:
            given = self._bind(*args, **kwargs)
        except TypeError as error:
            taken = ", ".join(self._signature.parameters) or "none"
            raise self._misfit(f"{_lower(str(error))}; it takes {taken}") from None
        try:
            data = codec.encode(given, self._what, _encode_hook)
            text = codec.finish(data, given, self._what)
        except ArgsError as error:
            raise self._blamed(given) or error from None
        try:
            decoded = self._decode(data)
        except Exception as error:
            raise self._misfit(_reason(error)) from None
        if self._loose:
            self._check_keys(_given(given), decoded)
        return text

    def unpack(self, args_json: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call the function with, besides its context.

        Raises:
            UnreadableArgs: the stored arguments do not fit the function, or no longer; the text shows no values.
        """
        if not self._ready:
            self.prepare()
        try:
            values = asdict(self._decode(args_json))
        except Exception as error:
            raise self._misfit(_reason(error), UnreadableArgs) from None
        if self._named:
            return (), values
        bound: Any = inspect.BoundArguments(self._signature, values)
        return bound.args, bound.kwargs

    def _checked(self, name: str) -> tuple[Any, bool]:
        """A parameter's type, and whether Any is part of it."""
        try:
            kind = self._hints.resolve(name)
            if kind is JobContext or JobContext in get_args(kind):
                raise self._misused_context(name)
            return kind, check_type(kind)
        except WorkerError:
            raise
        except (NameError, AttributeError) as error:
            if re.search(r"\bJobContext\b", str(self._signature.parameters[name].annotation)):
                raise self._misused_context(name) from None
            raise Unresolved(
                f"{self._worker}: the annotation of {name!r} cannot be resolved ({error}); "
                "import what it names at run time, not only under TYPE_CHECKING"
            ) from None
        except Exception as error:
            raise WorkerError(f"{self._worker}: {name!r} cannot be stored as JSON: {error}") from None

    def _misused_context(self, name: str) -> WorkerError:
        return WorkerError(
            f"{self._worker}: {name!r} is no argument; a JobContext is passed as first parameter under "
            "@worker(context=True), or found with current_context()"
        )

    def _binder(self) -> Any:
        """A struct, for it binds in C: positional parameters, and in a subclass those that are keyword-only."""
        levels: tuple[list[Any], list[Any]] = [], []
        for parameter in self._signature.parameters.values():
            default = () if parameter.default is _EMPTY else (UNSET,)
            levels[parameter.kind is _Kind.KEYWORD_ONLY].append((parameter.name, Any, *default))
        base = defstruct("Given", levels[0], gc=False)
        return defstruct("Given", levels[1], bases=(base,), kw_only=True, gc=False) if levels[1] else base

    def _bind_slowly(self, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Positional-only and variable parameters are more than a struct can bind."""
        if self._context in kwargs:
            raise TypeError(f"unexpected keyword argument {self._context!r}")  # **extra would take it, the run not
        return self._signature.bind(*args, **kwargs).arguments

    def _check_keys(self, given: dict[str, Any], decoded: Any) -> None:
        for name in self._loose:
            if name in given and not keys_kept(given[name], getattr(decoded, name)):
                raise ArgsError(f"argument {name!r} of {self._worker} {_KEYS}")

    def _misfit(self, reason: str, kind: type[ArgsError] = ArgsError) -> ArgsError:
        return kind(f"{self._what} do not fit: {reason}")

    def _blamed(self, given: Any) -> ArgsError | None:
        """The same error again, of the one argument that causes it, where there is one."""
        for name, value in _given(given).items():
            what = f"argument {name!r} of {self._worker}"
            try:
                codec.finish(codec.encode(value, what, _encode_hook), value, what)
            except ArgsError as error:
                return error
        return None


class Result:
    """What one function returns. An annotation that cannot be built leaves results as they are and fails nothing."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._ready = self._loose = False
        self._decode: Callable[[bytes], Any] | None = None

    def dump(self, value: Any) -> str:
        """The JSON of a returned value.

        Raises:
            ArgsError: it is not JSON any reader can load.
        """
        self._prepare()
        if self._decode is None:
            return codec.dumps(value, "result")
        data = codec.encode(value, "result", _encode_hook)
        text = codec.finish(data, value, "result")
        if self._loose and not keys_kept(value, self.load(codec.loads(data))):
            raise ArgsError(f"result {_KEYS}")
        return text

    def load(self, value: Any) -> Any:
        """A stored result as the annotated type; as it is where that does not fit."""
        self._prepare()
        if self._decode is None or value is None:
            return value
        try:
            return self._decode(msgspec.json.encode(value))  # convert would be strict about keys and slow about dicts
        except Exception:
            return value

    def _prepare(self) -> None:
        if self._ready:
            return
        try:
            kind = self._hints.resolve("return")
            if get_origin(kind) in (Awaitable, Coroutine):
                kind = get_args(kind)[-1]
            self._loose = check_type(kind)
            if kind is not Any:
                self._decode = msgspec.json.Decoder(kind, dec_hook=_decode_hook).decode
        except Exception:
            self._decode = None
        self._ready = True


def _field(parameter: inspect.Parameter, kind: Any) -> tuple[Any, ...]:
    """The parameter in the struct that is read at the run."""
    if parameter.kind is _Kind.VAR_POSITIONAL:
        return parameter.name, tuple[kind, ...], ()
    if parameter.kind is _Kind.VAR_KEYWORD:
        return parameter.name, dict[str, kind], {}
    if parameter.default is _EMPTY:
        return parameter.name, kind
    if isinstance(parameter.default, _MUTABLE):
        return parameter.name, kind, msgspec.field(default_factory=lambda: parameter.default)  # shared, as in a call
    return parameter.name, kind, msgspec.field(default=parameter.default)


def _encode_hook(value: Any) -> Any:
    """A pydantic model as its own JSON, read again by `_decode_hook`."""
    if not is_model(type(value)):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    data = value.model_dump_json(by_alias=True, round_trip=True).encode()
    if b'"**********"' in data:
        raise TypeError(f"{type(value).__name__} holds a secret, which would be stored masked")
    if b"null" in data:
        try:
            codec.finish(data, value.model_dump(), type(value).__name__)
        except ArgsError as error:
            raise TypeError(str(error)) from None
    return msgspec.Raw(data)


class _Refused(ValueError):
    """A model refused a value; its text shows none."""


def _decode_hook(kind: Any, value: Any) -> Any:
    if kind is object:
        return value
    try:
        return kind.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        refused: Any = error
        found = refused.errors(include_input=False, include_context=False, include_url=False)
        rules = ", ".join(" ".join([*map(str, it["loc"][:1]), it["type"]]) for it in found[:3])
        raise _Refused(f"{kind.__name__} does not accept it ({rules})") from None


def _given(bound: Any) -> dict[str, Any]:
    """What a call gave, whichever way it was bound."""
    if isinstance(bound, Struct):
        return {name: value for name, value in asdict(bound).items() if value is not UNSET}
    return cast("dict[str, Any]", bound)


def keys_kept(old: Any, new: Any) -> bool:
    """Whether a round trip through JSON kept every key; under Any it turns numbers into strings without a word."""
    stack = [(old, new)]
    while stack:
        old, new = stack.pop()
        if old == new:
            continue
        if isinstance(old, _OBJECT) and isinstance(new, _OBJECT):
            if any(not isinstance(key, str) and key not in new for key in old):
                return False
            stack += [(value, new[key]) for key, value in old.items() if key in new]
        elif isinstance(old, _ARRAY) and isinstance(new, _ARRAY):
            stack += zip(old, new, strict=False)
        elif type(old) is type(new):
            names: Any = getattr(new, "__struct_fields__", ()) or getattr(new, "__dataclass_fields__", ())
            stack += [(getattr(old, name), getattr(new, name)) for name in names]
    return True


def _reason(error: Exception) -> str:
    """Why decoding failed, without values: what a user's own check says may show some, so only its type is told."""
    if not isinstance(error, msgspec.DecodeError):
        return f"reading them raised {type(error).__name__}"
    text, at, path = str(error).rpartition(" - at ")
    where = path.replace("`", "").replace("$.", "") if at else ""
    text = _lower(text if at else path)
    if isinstance(error.__cause__, _Refused):
        text = str(error.__cause__)
    elif error.__cause__ is not None:
        text = f"its own check raised {type(error.__cause__).__name__}"
    elif text.startswith(("invalid enum value", "invalid value")):
        text = "not one of the values allowed"
    elif where and "unknown field" in text:
        text = "an unknown field"
    return f"{where}: {text}" if where else text


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _refuse_as_context(hints: Hints, name: str, worker: str) -> None:
    """A first parameter that is plainly an argument would be given the context instead."""
    try:
        kind = hints.resolve(name)
    except Exception:  # what it cannot be found out about is left alone
        return
    if isinstance(kind, type) and kind.__module__ == "builtins" and kind is not object:
        raise WorkerError(
            f"{worker}: context=True passes the JobContext as first parameter, and {name!r} is a {kind.__name__}; "
            "put the context before it, or leave context=True out"
        )
