"""Binding, checking and reading back arguments: what is accepted at the call is accepted, and equal, at the run."""

import dataclasses
import enum
import functools
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NoReturn,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import annotated_types
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_async.core.context import JobContext
from jobs_async.core.errors import ArgsError, UnreadableArgs, WorkerError
from jobs_async.core.workers import WorkerDef, worker

if TYPE_CHECKING:
    from jobs_async.core.job import Job as OnlyForCheckers

SECRET = "s3cret-value"
CONTEXT: Any = object()


def ready(fn: Any, **options: Any) -> Any:
    made = worker(**options)(fn)
    made.prepare()
    return made


def trip(fn: Any, *args: Any, **kwargs: Any) -> Any:
    """Pack a call, and make it from the text."""
    made = ready(fn)
    return made.invoke(made.arguments.pack(args, kwargs), CONTEXT)


def packed(fn: Any, *args: Any, **kwargs: Any) -> Any:
    return json.loads(ready(fn).arguments.pack(args, kwargs))


def refusal(fn: Any, *args: Any, **kwargs: Any) -> str:
    """The text of the ArgsError that a call meets; it never shows a value, nor does its chain of causes."""
    with pytest.raises(ArgsError) as caught:
        ready(fn).arguments.pack(args, kwargs)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert SECRET not in str(caught.value)
    return str(caught.value)


def unprepared(fn: Any, **options: Any) -> str:
    with pytest.raises(WorkerError) as caught:
        ready(fn, **options)
    return str(caught.value)


class Color(enum.Enum):
    red = "r"
    blue = "b"


class Size(enum.IntEnum):
    small = 1


class Level(enum.StrEnum):
    high = "high"


@dataclasses.dataclass
class Line:
    sku: str
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Order:
    id: UUID
    at: datetime
    lines: list[Line]
    note: str | None = None


class Movie(TypedDict, total=False):
    title: str
    year: int


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Box(msgspec.Struct):
    width: int
    content: dict[str, Any] = {}


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Model(pydantic.BaseModel):
    name: str
    price: float | None = None
    at: datetime | None = None


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    at: date
    tags: tuple[str, ...]
    sender: str = pydantic.Field(alias="from")

    @pydantic.computed_field
    def size(self) -> int:
        return len(self.tags)


UserId = NewType("UserId", int)
Number = TypeVar("Number", bound=float)
Anything = TypeVar("Anything")
ORDER = Order(UUID(int=7), datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), [Line("a", 2), Line("b")], "é€𝄞")


class TestRoundTrip:
    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (int, -(2**63)),
            (int, 2**63 - 1),
            (float, 1.5),
            (bool, True),
            (str, "é€𝄞 \\u0000 \x01\n"),
            (None, None),
            (bytes, b"\x00\xff"),
            (datetime, datetime(2026, 1, 2, 3, 4, 5, 6)),  # a naive one stays naive
            (datetime, datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
            (date, date(2026, 1, 2)),
            (time, time(1, 2, 3, 4)),
            (timedelta, timedelta(days=-3, microseconds=7)),
            (UUID, UUID(int=3)),
            (Decimal, Decimal("1234567890123456789012.50")),
            (Color, Color.blue),
            (Size, Size.small),
            (Level, Level.high),
            (Order, ORDER),
            (Movie, {"title": "M"}),
            (Point, Point(1, 2.5)),
            (Box, Box(1, {"a": [1, None, {"b": "c"}]})),
            (Cat | Dog, Dog("rex")),
            (list[Order], [ORDER]),
            (tuple[int, str], (1, "a")),
            (tuple[int, ...], (1, 2)),
            (set[int], {1, 2}),
            (frozenset[str], frozenset({"a"})),
            (dict[int, str], {1: "a"}),
            (dict[UUID, Point], {UUID(int=1): Point(1)}),
            (dict[Color, int], {Color.red: 1}),
            (Optional[date], None),  # noqa: UP045
            (Union[int, str, None], "a"),  # noqa: UP007
            (int | list[int], [1]),
            (Literal["a", 1], 1),
            (UserId, UserId(3)),
            (Number, 2.5),
            (Annotated[int, msgspec.Meta(gt=0)], 1),
            (Annotated[int, "a note of one's own"], 1),
            (Model, Model(name="a", at=datetime(2026, 1, 2, tzinfo=UTC))),
            (list[Model], [Model(name="a"), Model(name="b", price=1.5)]),
            (Model | None, Model(name="a")),
            (dict[str, Model], {"a": Model(name="a")}),
            (Strict, Strict.model_validate({"at": date(2026, 1, 2), "tags": ("a",), "from": "b"})),
            (Any, {"a": [1, 2.5, "x", None, True, {}]}),
            (object, [1]),
            (dict[str, object], {"a": {"b": 1}}),
            (dict, {"a": 1}),
            (list, [1, "a"]),
            (Anything, "a"),
            (inspect.Parameter.empty, {"a": 1}),
        ],
        ids=str,
    )
    def test_of_a_type(self, kind: Any, value: Any) -> None:
        def take(it: Any) -> Any:
            return it

        if kind is inspect.Parameter.empty:
            del take.__annotations__["it"]
        else:
            take.__annotations__["it"] = kind
        got = trip(take, value)
        assert got == value
        assert type(got) is type(value)

    def test_of_local_classes_by_name(self) -> None:
        @dataclasses.dataclass
        class Local:
            n: int

        @worker
        def take(it: "Local", many: "list[Local]", odd: list["Local"]) -> "Local":
            assert [it, it] == many == odd
            return it

        text = take.arguments.pack((Local(1), [Local(1)] * 2, [Local(1)] * 2), {})
        assert take.invoke(text, CONTEXT) == Local(1)
        assert take.decode_result({"n": 1}) == Local(1)

    def test_a_local_class_defined_below_cannot_be_found(self) -> None:
        @worker
        def take(it: "LocalBelow") -> None: ...

        class LocalBelow(Line):
            """Too late: the frame is not kept."""

        assert LocalBelow.__name__ == "LocalBelow"
        with pytest.raises(WorkerError, match="the annotation of 'it' cannot be resolved"):
            take.prepare()

    def test_of_classes_local_to_a_function_in_a_class_body(self) -> None:
        @dataclasses.dataclass
        class Local:
            n: int

        class Tasks:
            @dataclasses.dataclass
            class Inner:
                local: Local

            @staticmethod
            @worker
            def take(it: "Local", inner: "Inner") -> int:  # a class body's names are known there only
                return it.n + inner.local.n

        packed = Tasks.take.arguments.pack((Local(1), Tasks.Inner(Local(2))), {})
        assert Tasks.take.invoke(packed, CONTEXT) == 3

    def test_of_a_class_defined_below(self) -> None:
        assert below.invoke(below.arguments.pack((Below(2),), {}), CONTEXT) == Below(2)

    def test_the_callers_local_names_do_not_hide_those_of_a_function_defined_elsewhere(self) -> None:
        class Below:
            """Another one."""

        assert worker(name="other")(below_plain).arguments.pack((globals()["Below"](2),), {}) == '{"it":{"n":2}}'
        assert Below is not globals()["Below"]

    def test_a_subclass_comes_back_as_the_declared_class(self) -> None:
        @dataclasses.dataclass
        class Long(Line):
            extra: str = ""

        def take(it: Line) -> Line:
            return it

        assert type(trip(take, Long("a", 2, "x"))) is Line

    def test_only_what_was_given_is_stored(self) -> None:
        def take(a: int, b: str = "x", *, c: float = 0.5, d: object = object()) -> None: ...

        assert packed(take, 1) == {"a": 1}
        assert packed(take, 1, c=0.5) == {"a": 1, "c": 0.5}
        assert packed(take, 1, "x") == {"a": 1, "b": "x"}

    def test_defaults_are_those_of_the_run(self) -> None:
        sentinel = object()
        shared: list[int] = [1]

        def take(a: int = 1, b: Any = sentinel, c: list[int] = shared, d: dict[str, int] = {}) -> Any:  # noqa: B006
            return a, b, c, d

        first, second = trip(take), trip(take)
        assert first == (1, sentinel, [1], {})
        assert first[1] is sentinel
        assert first[2] is second[2] is shared
        assert first[3] is second[3]

    def test_positional_only_and_variable_parameters(self) -> None:
        def take(a: int, b: date = date(2026, 1, 1), /, *rest: int, **extra: UUID) -> Any:
            return a, b, rest, extra

        key = UUID(int=1)
        assert packed(take, 1, date(2026, 1, 2), 3, a=key) == {
            "a": 1,
            "b": "2026-01-02",
            "rest": [3],
            "extra": {"a": str(key)},
        }
        assert trip(take, 1, date(2026, 1, 2), 3, 4, a=key, rest=key) == (
            1,
            date(2026, 1, 2),
            (3, 4),
            {"a": key, "rest": key},
        )
        assert trip(take, 1) == (1, date(2026, 1, 1), (), {})

    def test_keyword_only_before_and_after_defaults(self) -> None:
        def take(a: int = 0, *, b: int, c: int = 2, d: int) -> Any:
            return a, b, c, d

        assert trip(take, b=1, d=3) == (0, 1, 2, 3)
        assert trip(take, 9, d=3, b=1, c=7) == (9, 1, 7, 3)
        assert "'d'" in refusal(take, b=1)

    def test_no_parameters(self) -> None:
        assert packed(lambda_free) == {}
        assert trip(lambda_free) == "free"
        assert "it takes none" in refusal(lambda_free, 1)

    def test_names_that_could_clash(self) -> None:
        def take(self: int, cls: int, args: int, kwargs: int, fn: int, name: int, worker: int) -> Any:  # noqa: PLR0917
            return self, cls, args, kwargs, fn, name, worker

        made = ready(take)
        names = ("self", "cls", "args", "kwargs", "fn", "name", "worker")
        kwargs = {name: n for n, name in enumerate(names)}
        assert made.invoke(made.draft(**kwargs).args_json, CONTEXT) == made(**kwargs) == (0, 1, 2, 3, 4, 5, 6)

    def test_through_partial(self) -> None:
        def take(a: int, b: date, c: int) -> Any:
            return a, b, c

        partial = functools.partial(take, b=date(2026, 1, 1))
        assert trip(partial, 1, c=3) == (1, date(2026, 1, 1), 3)
        assert trip(partial, 1, b=date(2026, 1, 2), c=3) == (1, date(2026, 1, 2), 3)
        assert trip(functools.partial(take, 1), date(2026, 1, 2), 3) == (1, date(2026, 1, 2), 3)

    def test_through_decorators_methods_and_callable_objects(self) -> None:
        def twice(fn: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return [fn(*args, **kwargs)] * 2

            return wrapper

        @twice
        def take(a: date) -> date:
            return a

        class Caller:
            def method(self, a: "date") -> Any:
                return self, a

            def __call__(self, a: "date") -> Any:
                return self, a

        caller, day = Caller(), date(2026, 1, 2)
        assert trip(take, day) == [day, day]
        assert trip(caller.method, day) == (caller, day)
        made = ready(caller, name="caller")
        assert made.invoke(made.arguments.pack((day,), {}), CONTEXT) == (caller, day)

    def test_through_a_decorator_that_hides_the_signature(self) -> None:
        def hide(fn: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return fn(*args, **kwargs)

            return wrapper

        def take(a: int, b: int = 2) -> Any:
            return a, b

        assert packed(hide(take), 1, b=3) == {"args": [1], "kwargs": {"b": 3}}
        assert trip(hide(take), 1, b=3) == (1, 3)

    def test_with_a_context(self) -> None:
        def take(ctx: JobContext, a: int, b: int = 2) -> Any:
            return ctx, a, b

        def odd(ctx: "NoSuchThing", /, a: int, *rest: int) -> Any:  # type: ignore[name-defined]  # noqa: F821
            return ctx, a, rest

        for fn, got in ((take, (CONTEXT, 1, 2)), (odd, (CONTEXT, 1, ()))):
            made = ready(fn, context=True)
            text = made.arguments.pack((1,), {})
            assert text == '{"a":1}'
            assert made.invoke(text, CONTEXT) == got


@worker
def below(it: "Below") -> "Below":
    return it


def below_plain(it: "Below") -> None: ...


def lambda_free() -> str:
    return "free"


@dataclasses.dataclass
class Below:
    n: int


def names_only(a: int, b: str = "x", *, c: float = 0.0) -> None: ...


class TestRefusedAtTheCall:
    def test_arguments_that_do_not_fit_the_signature(self) -> None:
        taken = "it takes a, b, c"
        assert refusal(names_only) == f"arguments of names_only do not fit: missing required argument 'a'; {taken}"
        assert "unexpected keyword argument 'd'" in refusal(names_only, 1, d=SECRET)
        assert "extra positional arguments" in refusal(names_only, 1, "x", SECRET)
        assert "'a' given by name and position" in refusal(names_only, 1, a=2)

    def test_the_same_for_odd_signatures(self) -> None:
        def take(a: int, /, *rest: int, **extra: int) -> None: ...

        assert "missing a required" in refusal(take, b=1)
        assert "argument: 'a'" in refusal(take)

        def pair(a: int, b: int, /) -> None: ...

        assert "too many positional arguments" in refusal(pair, 1, 2, 3)
        assert "'b'" in refusal(pair, 1, b=2)

    def test_a_context_given_by_the_caller(self) -> None:
        def take(ctx: JobContext, a: int) -> None: ...

        def loose(ctx: JobContext, **extra: Any) -> None: ...

        def only(ctx: JobContext, /, **extra: Any) -> None: ...

        for fn, kwargs in ((take, {"a": 1, "ctx": SECRET}), (loose, {"ctx": SECRET})):
            with pytest.raises(ArgsError, match="unexpected keyword argument 'ctx'"):
                ready(fn, context=True).arguments.pack((), kwargs)
        assert ready(only, context=True).arguments.pack((), {"ctx": 1}) == '{"extra":{"ctx":1}}'

    @pytest.mark.parametrize(
        ("kind", "value", "text"),
        [
            (int, SECRET, "it: expected `int`, got `str`"),
            (int, True, "it: expected `int`, got `bool`"),
            (int, 1.5, "it: expected `int`"),
            (str, 1, "it: expected `str`, got `int`"),
            (str, None, "it: expected `str`, got `null`"),
            (UUID, SECRET, "it: invalid UUID"),
            (datetime, SECRET, "it: invalid RFC3339"),
            (Color, SECRET, "it: not one of the values allowed"),
            (Literal["a"], SECRET, "it: not one of the values allowed"),
            (Size, 777, "it: not one of the values allowed"),
            (dict[Color, int], {SECRET: 1}, "key in it: not one of the values allowed"),
            (Cat | Dog, {"type": SECRET}, "it.type: not one of the values allowed"),
            (list[Line], [{"sku": "a", "count": SECRET}], "it[0].count: expected `int`, got `str`"),
            (dict[str, Line], {SECRET: {"sku": 1}}, "it[...].sku: expected `str`, got `int`"),
            (tuple[int, str], (1, 2), "it[1]: expected `str`, got `int`"),
            (Annotated[int, msgspec.Meta(gt=0)], 0, "it: expected `int` >= 1"),
            (Annotated[str, msgspec.Meta(pattern="^a$")], SECRET, "it: expected `str` matching regex"),
            (Model, {"name": "a", "price": SECRET}, "Model does not accept it (price float_parsing)"),
            (Model | None, {"price": 1}, "Model does not accept it (name missing)"),
            (list[Model], [{}], "it[0]: Model does not accept it"),
        ],
    )
    def test_values_of_another_type(self, kind: Any, value: Any, text: str) -> None:
        def take(it: Any) -> None: ...

        take.__annotations__["it"] = kind
        assert text in refusal(take, value)

    def test_values_refused_by_checks_of_their_own(self) -> None:
        @dataclasses.dataclass
        class Even:
            n: int

            def __post_init__(self) -> None:
                if self.n % 2:
                    raise ValueError(f"{SECRET} is odd - at `$.elsewhere`")

        class Shy(pydantic.BaseModel):
            n: int

            @pydantic.field_validator("n")
            @classmethod
            def even(cls, n: int) -> int:
                if n % 2:
                    raise ValueError(f"{SECRET} is odd")
                return n

        class Broken(pydantic.BaseModel):
            n: int

            @pydantic.field_validator("n")
            @classmethod
            def even(cls, n: int) -> int:
                raise LookupError(SECRET)

        def even(it: Even) -> None: ...

        def shy(it: Shy) -> None: ...

        def broken(it: Broken) -> None: ...

        assert refusal(even, {"n": 1}).endswith("do not fit: it: its own check raised ValueError")
        assert refusal(shy, {"n": 1}).endswith("do not fit: it: Shy does not accept it (n value_error)")
        assert refusal(broken, {"n": 1}).endswith("do not fit: reading them raised LookupError")

    @pytest.mark.parametrize("kind", [float, float | None, Any, object, list[float | None], dict[str, Any]])
    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_not_finite(self, kind: Any, number: float) -> None:
        def take(first: Any, it: Any) -> None: ...

        take.__annotations__["it"] = kind
        value: Any = number
        if kind == list[float | None]:
            value = [1.0, number]
        elif kind == dict[str, Any]:
            value = {"a": [number]}
        assert refusal(take, None, value) == "argument 'it' of take must hold finite numbers, not NaN or infinity"

    def test_numbers_that_are_not_finite_inside_classes(self) -> None:
        def struct(it: Box) -> None: ...

        def model(it: list[Model]) -> None: ...

        assert "finite" in refusal(struct, Box(1, {"a": math.nan}))
        assert "Model must hold finite numbers" in refusal(model, [Model(name="a", price=math.nan)])

    def test_keys_that_json_would_change(self) -> None:
        def loose(it: Any) -> None: ...

        def table(it: dict[int, dict[str, Any]]) -> None: ...

        def box(it: Box) -> None: ...

        @dataclasses.dataclass
        class Inner:
            data: Any

        def inner(it: list[Inner]) -> None: ...

        for fn, value in (
            (loose, {1: 2}),
            (loose, [{"a": ({None: 1},)}]),
            (loose, {Color.red: 1}),
            (table, {1: {"a": {2: 3}}}),
            (box, Box(1, {"a": {2: 3}})),
            (inner, [Inner({1: 1})]),
        ):
            with pytest.raises(ArgsError):
                ready(fn).arguments.pack((value,), {})
        assert "argument 'it' of loose must have string keys" in refusal(loose, {1: 2})
        assert trip(table, {1: {"a": {"2": (3, 4)}}}) is None
        assert trip(inner, [Inner({"1": (1,), Level.high: date(2026, 1, 1)})]) is None

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("a\0" + SECRET, "must not hold NUL characters"),
            ({"a\0": SECRET}, "NUL"),
            (2**63, "integers of 64 bits"),
            ([10**30], "integers of 64 bits"),
            ("\ud800" + SECRET, "not valid Unicode"),
            (SECRET * 100_000, "at most 1,048,576 bytes of JSON"),
            (object(), "object has no JSON form"),
            ({"a": lambda_free}, "function has no JSON form"),
            ({(1, 2): 3}, "tuple has no JSON form"),
        ],
    )
    def test_what_not_every_reader_can_load(self, value: Any, text: str) -> None:
        def take(first: Any, it: Any) -> None: ...

        message = refusal(take, 1, value)
        assert message.startswith("argument 'it' of take")
        assert text in message

    def test_what_is_too_large_together(self) -> None:
        def take(a: str, b: str) -> None: ...

        message = refusal(take, SECRET * 50_000, SECRET * 50_000)
        assert message.startswith("arguments of take must be at most 1,048,576 bytes of JSON")

    def test_what_is_too_deep(self) -> None:
        def take(it: Any) -> None: ...

        def nested(levels: int) -> Any:
            value: Any = SECRET
            for level in range(levels):
                value = [value] if level % 2 else {"a": value}
            return value

        circle: list[Any] = []
        circle.append(circle)
        ready(take).arguments.pack((nested(63),), {})
        for value in (nested(64), nested(200), nested(100_000), circle):
            assert "64 levels deep" in refusal(take, value)

    def test_models_that_would_lose_something(self) -> None:
        class Login(pydantic.BaseModel):
            password: pydantic.SecretStr

        class Cyclic(pydantic.BaseModel):
            inner: Any = None

        def login(it: Login) -> None: ...

        def cyclic(it: Cyclic) -> None: ...

        circle = Cyclic()
        circle.inner = circle
        assert "Login holds a secret, which would be stored masked" in refusal(
            login, Login(password=pydantic.SecretStr(SECRET))
        )
        assert "cannot be stored as JSON" in refusal(cyclic, circle)


class NeedsMethods(Protocol):
    def method(self) -> None: ...


class Plain:
    """A class that is nothing but Python."""


@pydantic.dataclasses.dataclass
class Checked:
    n: int = pydantic.Field(gt=0)


@dataclasses.dataclass
class HoldsPlain:
    inner: list[Plain]


class HoldsRule(TypedDict):
    n: Annotated[int, annotated_types.Gt(0)]


@dataclasses.dataclass
class Recursive:
    children: "list[Recursive]"
    data: Any = None


class TestRefusedWhenAttached:
    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (str | datetime, "more than one str-like type"),
            (str | UUID, "more than one str-like type"),
            (Model | Strict, "custom type"),
            (Line | Order, "more than one"),
            (Model | int, "custom type"),
            (Plain, "Plain has no JSON form"),
            (list[Plain | None], "Plain has no JSON form"),
            (HoldsPlain, "Plain has no JSON form"),
            (Callable[[int], int], "Callable has no JSON form"),
            (NeedsMethods, "NeedsMethods has no JSON form"),
            (Awaitable[int], "Awaitable has no JSON form"),
            (type[int], "type has no JSON form"),
            (complex, "complex has no JSON form"),
            (NoReturn, "not supported"),
            ("1 +", "Forward reference"),
            ("math.nothing()", "nothing"),
            (Annotated[int, pydantic.Field(gt=0)], "msgspec.Meta or a BaseModel"),
            (pydantic.PositiveInt, "rule Gt would not be checked"),
            (list[Annotated[int, annotated_types.Gt(0)]], "rule Gt would not be checked"),
            (Checked, "pydantic dataclass Checked"),
            (list[Checked], "use a BaseModel"),
            (HoldsRule, "rule Gt would not be checked"),
            (pydantic.SecretStr, "SecretStr has no JSON form"),
        ],
        ids=str,
    )
    def test_types(self, kind: Any, text: str) -> None:
        def take(first: int, it: Any) -> None: ...

        take.__annotations__["it"] = kind
        message = unprepared(take)
        assert message.startswith("take: ")
        assert "'it'" in message
        assert text in message

    def test_names_that_cannot_be_found(self) -> None:
        def take(a: int, it: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        def checkers(it: "OnlyForCheckers") -> None: ...

        @dataclasses.dataclass
        class Holds:
            it: "Missing"  # type: ignore[name-defined]  # noqa: F821

        def nested(it: Holds) -> None: ...

        for fn in (take, checkers, nested):
            message = unprepared(fn)
            assert f"{fn.__name__}: the annotation of 'it' cannot be resolved" in message
            assert "import what it names at run time, not only under TYPE_CHECKING" in message

    def test_a_context_where_none_is_passed(self) -> None:
        def first(ctx: JobContext, a: int) -> None: ...

        def optional(a: int, ctx: JobContext | None = None) -> None: ...

        def unseen(ctx: "types_elsewhere.JobContext") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        for fn in (first, optional, unseen):
            assert "'ctx' is no argument; a JobContext is passed as first parameter under @worker(context=True)" in (
                unprepared(fn)
            )

    def test_no_place_for_the_context(self) -> None:
        def none() -> None: ...

        def keyword(*, ctx: JobContext) -> None: ...

        def variable(*args: Any) -> None: ...

        for fn in (none, keyword, variable):
            assert "context=True needs a first, positional parameter" in unprepared(fn, context=True)

    def test_names_no_struct_can_hold(self) -> None:
        assert "'__a'" in unprepared(mangled)

    def test_a_signature_that_cannot_be_read(self) -> None:
        assert "signature cannot be read" in unprepared(max)

    def test_recursive_types_are_fine(self) -> None:
        def take(it: Recursive) -> Recursive:
            return it

        assert trip(take, Recursive([Recursive([], [1])])) == Recursive([Recursive([], [1])])

    def test_preparing_is_tried_again(self) -> None:
        made = worker(late)
        with pytest.raises(WorkerError):
            made.prepare()
        globals()["Late"] = int
        try:
            made.prepare()
            assert made.arguments.pack((1,), {}) == '{"it":1}'
        finally:
            del globals()["Late"]


def mangled(__a: int) -> None: ...


def late(it: "Late") -> None: ...  # type: ignore[name-defined]  # noqa: F821


class TestRefusedAtTheRun:
    def refused(self, made: WorkerDef, text: str) -> str:
        for act in (made.check, lambda stored: made.invoke(stored, CONTEXT)):
            with pytest.raises(UnreadableArgs) as caught:
                act(text)
            assert SECRET not in str(caught.value)
        return str(caught.value)

    def test_what_no_longer_fits(self) -> None:
        made = ready(names_only)
        assert "unknown field `d`" in self.refused(made, f'{{"a": 1, "d": "{SECRET}"}}')
        assert "missing required field `a`" in self.refused(made, "{}")
        assert "a: expected `int`, got `str`" in self.refused(made, f'{{"a": "{SECRET}"}}')
        assert "expected `object`, got `array`" in self.refused(made, f'["{SECRET}"]')
        assert "do not fit" in self.refused(made, SECRET)
        assert "RecursionError" in self.refused(ready(TestRefusedAtTheRun.take_any), '{"it":' + "[" * 100_000)

    @staticmethod
    def take_any(it: Any) -> None: ...

    def test_keys_of_nested_objects_are_values(self) -> None:
        class Closed(msgspec.Struct, forbid_unknown_fields=True):
            a: int = 0

        def take(it: Closed) -> None: ...

        assert self.refused(ready(take), f'{{"it": {{"{SECRET}": 1}}}}').endswith("it: an unknown field")

    def test_the_positional_part_of_odd_signatures(self) -> None:
        def take(a: int, /, *rest: int, **extra: int) -> Any:
            return a, rest, extra

        made = ready(take)
        assert "missing" in self.refused(made, "{}")
        assert "rest[0]: expected `int`" in self.refused(made, f'{{"a": 1, "rest": ["{SECRET}"]}}')
        assert made.invoke('{"a": 1, "extra": {"a": 2}}', CONTEXT) == (1, (), {"a": 2})


class TestResults:
    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (int, 3),
            (Order, ORDER),
            (dict[int, str], {1: "a"}),
            (list[Model], [Model(name="a")]),
            (Model, Model(name="a", price=1.5)),
            (tuple[int, ...], (1, 2)),
            (set[str], {"a"}),
            (Movie, {"title": "M"}),
            (Awaitable[Point], Point(1, 2.0)),
            (datetime | None, None),
            (datetime | None, datetime(2026, 1, 2, tzinfo=UTC)),
            (float, 1.0),
            (Any, {"a": [1]}),
            (dict[str, Any], {"a": [1]}),
        ],
        ids=str,
    )
    def test_round_trip(self, kind: Any, value: Any) -> None:
        def give() -> Any: ...

        give.__annotations__["return"] = kind
        made = ready(give)
        got = made.decode_result(json.loads(made.encode_result(value)))
        assert got == value
        assert type(got) is type(value)

    @pytest.mark.parametrize("kind", [str | datetime, NoReturn, Plain, "Missing", "1 +"])
    def test_an_annotation_that_cannot_be_built_leaves_the_result_as_it_is(self, kind: Any) -> None:
        def give() -> Any: ...

        give.__annotations__["return"] = kind
        made = ready(give)
        assert made.encode_result({"a": 1}) == '{"a":1}'
        assert made.decode_result({"a": 1}) == {"a": 1}

    def test_a_result_of_another_type_stays_as_it_is(self) -> None:
        def give() -> int: ...  # type: ignore[empty-body]

        assert ready(give).decode_result("x") == "x"
        assert ready(give).decode_result(None) is None

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (Any, math.nan),
            (float | None, math.inf),
            (Any, object()),
            (Any, {1: 2}),
            (dict[str, Any], {"a": {1: 2}}),
            (str, "a\0"),
            (Any, "x" * 1_048_576),
            (inspect.Parameter.empty, 2**64),
        ],
        ids=lambda it: str(it)[:20],
    )
    def test_what_cannot_be_stored(self, kind: Any, value: Any) -> None:
        def give() -> Any: ...

        if kind is inspect.Parameter.empty:
            del give.__annotations__["return"]
        else:
            give.__annotations__["return"] = kind
        with pytest.raises(ArgsError, match=r"^result "):
            ready(give).encode_result(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(timezones=st.none() | ZONES)
LINES = st.builds(Line, st.text(), st.integers(-(2**63), 2**63 - 1))
ORDERS = st.builds(Order, st.uuids(), MOMENTS, st.lists(LINES, max_size=3), st.none() | st.text())


class TestWhateverIsAccepted:
    """The property: `pack` refuses with an ArgsError, or `unpack` gives back what was given."""

    def holds(self, made: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(made).bind(*args, **kwargs)
        try:
            text = made.arguments.pack(args, kwargs)
        except ArgsError:
            return
        json.loads(text, parse_constant=pytest.fail)
        got_args, got_kwargs = made.arguments.unpack(text)
        got = inspect.signature(made).bind(*got_args, **got_kwargs)
        for name, value in bound.arguments.items():
            assert got.arguments[name] == value
        made.check(text)

    @given(JSON, st.dictionaries(st.text() | st.integers(), JSON, max_size=3))
    def test_of_anything(self, first: Any, second: Any) -> None:
        self.holds(anything, first, b=second)

    @given(st.floats() | st.none(), st.lists(st.floats(), max_size=3), st.text(), st.integers())
    def test_of_plain_types(self, a: float | None, b: list[float], c: str, d: int) -> None:
        self.holds(plain, a, b, c=c, d=d)

    @given(
        st.none() | ORDERS,
        st.dictionaries(st.uuids(), st.dates(), max_size=2),
        st.sets(st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000)), max_size=2),
        st.decimals(allow_nan=False),
        st.tuples(st.times(), st.binary(), st.sampled_from(Color)),
    )
    def test_of_rich_types(self, a: Any, b: Any, c: Any, d: Any, e: Any) -> None:
        self.holds(rich, a, b, c, d=d, e=e)

    @given(
        st.integers(), st.lists(st.text(), max_size=3), st.dictionaries(st.text(min_size=1), st.integers(), max_size=3)
    )
    def test_of_variable_parameters(self, a: int, rest: list[str], extra: dict[str, int]) -> None:
        self.holds(variable, a, *rest, **extra)

    @given(
        st.lists(st.builds(Model, name=st.text(), price=st.none() | st.floats(), at=st.none() | MOMENTS), max_size=2)
    )
    def test_of_models(self, models: list[Model]) -> None:
        self.holds(modelled, models)


@worker
def anything(a: Any, b: Any = None) -> None: ...


@worker
def plain(a: float | None, b: list[float], *, c: str, d: int = 0) -> None: ...


@worker
def rich(
    a: Order | None, b: dict[UUID, date], c: set[timedelta], *, d: Decimal, e: tuple[time, bytes, Color]
) -> None: ...


@worker
def variable(a: int, /, *rest: str, **extra: int) -> None: ...


@worker
def modelled(a: list[Model]) -> None: ...


def test_pydantic_is_never_imported_by_us() -> None:
    code = (
        "import sys; from jobs_async.core.workers import worker\n"
        "class Plain: pass\n"
        "def f(it: Plain): pass\n"
        "def g(it: int): pass\n"
        "try: worker(f).prepare()\n"
        "except TypeError: pass\n"
        "else: raise SystemExit('accepted')\n"
        "worker(g).arguments.pack((1,), {})\n"
        "assert not {'pydantic', 'annotated_types'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
