"""Reading a function's annotations: resolved in the caller's scope, and refused where JSON has no form for them."""

from __future__ import annotations

import functools
import inspect
import sys
from types import FrameType, FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ParamSpecArgs, ParamSpecKwargs, get_args, get_origin, get_type_hints

from msgspec import inspect as forms

from jobs_async.core.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_EMPTY = inspect.Parameter.empty
_NODES = (forms.Type, forms.Field)
_ARRAY: Any = (list, tuple)  # Any, for isinstance would narrow to members of unknown types


class Unresolved(WorkerError):
    """An annotation names something that does not exist, or does not exist yet."""


class Hints:
    """A function's signature, and its annotations looked up: in its module, and where it was defined locally.

    Raises:
        WorkerError: the signature cannot be read.
    """

    def __init__(self, fn: Callable[..., Any], worker: str, frame: FrameType | None = None) -> None:
        try:
            self.signature = inspect.signature(fn)
        except (TypeError, ValueError):
            raise WorkerError(f"{worker}: its signature cannot be read; wrap it in a def") from None
        self._home = layers(fn)[-1]
        self._annotations = {name: it.annotation for name, it in self.signature.parameters.items()}
        self._annotations["return"] = self.signature.return_annotation
        self._known: dict[str, Any] = {}
        names = _local_names(frame, self._home)
        for name in self._annotations if names else ():
            try:
                self._known[name] = self.resolve(name, names)
            except Exception:  # noqa: S112  # tried again, and reported, when it is needed
                continue

    def resolve(self, name: str, local: Mapping[str, Any] | None = None) -> Any:
        """The type of a parameter, or of "return"; Any for none. Raises what looking it up raises."""
        if name in self._known:
            return self._known[name]
        annotation = self._annotations[name]
        if annotation is _EMPTY:
            return Any
        names = {it.__name__: it for it in getattr(self._home, "__type_params__", ())} | dict(local or {})
        holder = SimpleNamespace(__annotations__={"it": annotation})
        kind = get_type_hints(holder, getattr(self._home, "__globals__", {}), names, include_extras=True)["it"]
        return Any if kind is object or isinstance(kind, (ParamSpecArgs, ParamSpecKwargs)) else kind


def layers(fn: Any) -> list[Any]:
    """A callable and what it wraps, outermost first: partials, bound methods, decorated functions, callable objects."""
    found = [fn]
    while True:
        inner: Any = getattr(fn, "__wrapped__", None)
        if isinstance(fn, functools.partial):
            inner = fn.func
        elif inspect.ismethod(fn):
            inner = fn.__func__
        elif inner is None and not isinstance(fn, FunctionType):
            inner = inspect.getattr_static(fn.__class__, "__call__", None)
            inner = inner if isinstance(inner, FunctionType) else None
        if inner is None or any(inner is one for one in found):
            return found
        found.append(fn := inner)


def _local_names(frame: FrameType | None, home: Any) -> dict[str, Any]:
    """The local names where `home` is defined, if that is `frame`: a class body, and the function around it."""
    names: dict[str, Any] = {}
    code = getattr(home, "__code__", None)
    if frame is None or code is None or home.__globals__ is not frame.f_globals:
        return names
    if not code.co_qualname.startswith(f"{frame.f_code.co_qualname}."):
        return names
    outer: FrameType | None = frame
    while outer is not None and outer.f_code.co_name != "<module>":
        names = {**outer.f_locals, **names}
        if outer.f_code.co_flags & inspect.CO_OPTIMIZED:
            break  # a function; what encloses it is not its caller
        outer = outer.f_back
    return names


def check_type(kind: Any) -> bool:
    """Refuse what msgspec would refuse at the first decode only, or not check at all; True where Any is part of it.

    Raises:
        TypeError: saying why.
    """
    _check_metadata(kind)
    loose = False
    seen: dict[int, Any] = {}
    stack: list[Any] = [forms.type_info(kind)]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        cls = getattr(node, "cls", None)
        if isinstance(node, forms.CustomType):
            if cls is not object and not is_model(cls):
                raise TypeError(f"{getattr(cls, '__name__', cls)} has no JSON form")
            loose |= cls is object
        elif isinstance(node, forms.AnyType):
            loose = True
        elif cls is not None:
            _check_class(cls)
        for name in node.__struct_fields__:
            value: Any = getattr(node, name)
            stack += [it for it in (value if isinstance(value, _ARRAY) else (value,)) if isinstance(it, _NODES)]
    return loose


def _check_class(cls: type) -> None:
    if hasattr(cls, "__pydantic_fields__"):
        raise TypeError(f"the rules of pydantic dataclass {cls.__name__} would not be checked; use a BaseModel")
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception:
        return
    for hint in hints.values():
        _check_metadata(hint)


def _check_metadata(kind: Any) -> None:
    for note in getattr(kind, "__metadata__", ()) if get_origin(kind) is Annotated else ():
        if any(base.__module__.partition(".")[0] in ("pydantic", "annotated_types") for base in type(note).__mro__):
            raise TypeError(f"the rule {type(note).__name__} would not be checked; use msgspec.Meta or a BaseModel")
    for inner in get_args(kind):
        _check_metadata(inner)


def is_model(cls: Any) -> bool:
    """Whether this is a pydantic model. A user who has one has imported pydantic; this package never does."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)
