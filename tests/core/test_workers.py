"""Turning functions into workers, their options, and finding the Supervisor to enqueue into."""

import asyncio
import dataclasses
import functools
import gc
import inspect
import sys
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import msgspec
import pytest

from jobs_async.core import binding
from jobs_async.core.context import JobContext, current
from jobs_async.core.errors import ArgsError, NotBound, OptionError, UnreadableArgs, WorkerError
from jobs_async.core.options import Draft, JobOpts, NewJob, UniqueStrategy
from jobs_async.core.retry import DEFAULT_STRATEGY, ConstantBackoff, LinearBackoff
from jobs_async.core.workers import ContextWorker, Enqueuer, Worker, WorkerDef, collect, make_worker, worker

CONTEXT: Any = object()


class Host:
    """A Supervisor as workers see it; remembers what was enqueued."""

    def __init__(self, *workers: WorkerDef, running: bool = False) -> None:
        self.is_running = running
        self.is_stopped = False
        self.drafts: list[Draft[Any]] = []
        self.connections: list[object] = []
        for one in workers:
            binding.attach(one, self)

    async def enqueue(self, draft: Draft[Any], /, *, connection: object = None) -> Any:
        self.drafts.append(draft)
        self.connections.append(connection)
        return draft

    def start(self) -> None:
        self.is_running, self.is_stopped = True, False
        binding.changed()

    def stop(self) -> None:
        self.is_running, self.is_stopped = False, True
        binding.detach(self)


@dataclasses.dataclass
class Running:
    """The context of a handler, as far as binding looks at it."""

    host: Host


async def add(a: int, b: int = 1) -> int:
    return a + b


def double(a: int) -> int:
    return 2 * a


class TestNames:
    def test_come_from_the_function(self) -> None:
        class Mailer:
            def send(self, to: str) -> None: ...

        assert worker(add).name == "add"
        assert worker(functools.partial(add, b=2)).name == "add"
        assert worker(Mailer().send).name == "send"
        assert worker(name="a name, 100 %")(add).name == "a name, 100 %"
        assert worker(name="anonymous")(lambda: None).name == "anonymous"

    def test_are_asked_for_where_there_is_none(self) -> None:
        class Mailer:
            def __call__(self, to: str) -> None: ...

        with pytest.raises(WorkerError, match=r"a lambda has no name of its own; give one with @worker\(name=...\)"):
            worker(lambda: None)
        with pytest.raises(WorkerError, match="a Mailer has no name"):
            worker(Mailer())
        with pytest.raises(WorkerError, match="a Mailer has no name"):
            worker(functools.partial(Mailer(), "x"))

    @pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\0", 7])
    def test_are_checked(self, name: Any) -> None:
        with pytest.raises(OptionError, match="name"):
            worker(name=name)
        with pytest.raises(OptionError, match="name"):
            WorkerDef(name, lambda args, ctx: None)


def sync_decorator(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        return fn(*args, **kwargs)

    return wrapper


def async_decorator(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


class AsyncCall:
    async def __call__(self, a: int) -> int:
        return a


def generate(a: int) -> Iterator[int]:
    yield a


async def generate_later(a: int) -> AsyncIterator[int]:
    yield a


class TestHandlers:
    @pytest.mark.parametrize(
        ("fn", "is_async"),
        [
            (add, True),
            (double, False),
            (functools.partial(add, b=2), True),
            (functools.partial(functools.partial(double), 1), False),
            (sync_decorator(add), True),
            (async_decorator(double), True),
            (sync_decorator(functools.partial(add, b=1)), True),
            (AsyncCall(), True),
            (AsyncCall().__call__, True),
            (lambda: None, False),
        ],
    )
    def test_are_recognised_as_async_or_not(self, fn: Any, is_async: bool) -> None:
        made = worker(name="it")(fn)
        assert made.is_async is is_async
        assert WorkerDef("it", fn).is_async is is_async
        if sys.version_info >= (3, 12):
            assert inspect.iscoroutinefunction(made) is is_async

    @pytest.mark.parametrize("fn", [generate, generate_later, functools.partial(generate_later, 1)])
    def test_that_are_generators_are_refused(self, fn: Any) -> None:
        with pytest.raises(WorkerError, match="a generator cannot be a worker"):
            worker(fn)
        with pytest.raises(WorkerError, match="a generator cannot be a worker"):
            WorkerDef("it", fn)

    def test_that_hide_an_async_generator_are_refused_unless_they_drain_it(self) -> None:
        with pytest.raises(WorkerError, match="a generator cannot be a worker"):
            worker(sync_decorator(generate_later))  # type: ignore[arg-type]
        assert worker(async_decorator(generate_later)).is_async

    @pytest.mark.parametrize("fn", [int, AsyncCall, "add", 7, None])
    def test_that_are_no_functions_are_refused(self, fn: Any) -> None:
        with pytest.raises(WorkerError, match="only a function can"):
            WorkerDef("it", fn)
        with pytest.raises(WorkerError):
            worker()(fn)

    def test_that_are_workers_already_are_refused(self) -> None:
        with pytest.raises(WorkerError, match="again: 'add' is a worker already"):
            worker(name="again")(worker(add))

    def test_stay_callable(self) -> None:
        async def run() -> tuple[int, int]:
            return await worker(add)(1, b=2), await worker(AsyncCall().__call__)(3)

        assert asyncio.run(run()) == (3, 3)
        assert worker(double)(2) == 4

        @worker(context=True)
        def with_context(ctx: JobContext, a: int) -> Any:
            return ctx, a

        assert with_context(CONTEXT, a=1) == (CONTEXT, 1)
        assert isinstance(with_context, ContextWorker)
        assert not isinstance(with_context, Worker)

    def test_lend_the_worker_their_looks(self) -> None:
        @worker
        def documented(a: int) -> None:
            """What it does."""

        assert documented.__doc__ == "What it does."
        assert vars(documented)["__module__"] == __name__
        assert vars(documented)["__qualname__"].endswith("documented")
        assert list(inspect.signature(documented).parameters) == ["a"]
        assert repr(documented) == "Worker('documented')"
        assert repr(WorkerDef("raw", lambda args, ctx: None)) == "WorkerDef('raw')"

    def test_attributes_do_not_become_those_of_the_worker(self) -> None:
        def tagged(a: int) -> None: ...

        tagged.name = "other"  # type: ignore[attr-defined]
        tagged.opts = None  # type: ignore[attr-defined]
        assert worker(tagged).name == "tagged"
        assert worker(tagged).opts == JobOpts()

    def test_a_wrapper_around_a_worker_is_none(self) -> None:
        made = worker(double)

        @functools.wraps(made)
        def wrapper(a: int) -> int:
            return made(a)

        module = ModuleType("tasks")
        vars(module).update(made=made, wrapper=wrapper)
        assert collect([module]) == [made]

    def test_local_names_are_not_kept(self) -> None:
        class Big:
            """Something to hold on to."""

        def make() -> tuple[Any, weakref.ref[Big]]:
            big = Big()

            @worker
            def take(it: "int") -> None: ...

            return take, weakref.ref(big)

        take, ref = make()
        gc.collect()
        assert ref() is None
        assert take.arguments.pack((1,), {}) == '{"it":1}'


class TestMethods:
    def test_are_refused_in_a_class_body(self) -> None:
        with pytest.raises((WorkerError, RuntimeError)) as caught:

            class Tasks:
                @worker
                def method(self, a: int) -> None: ...

        error = caught.value if isinstance(caught.value, WorkerError) else caught.value.__cause__
        assert isinstance(error, WorkerError)
        assert "Tasks.method is a method, and a job has no self" in str(error)
        assert "@staticmethod above @worker, or use worker(instance.method)" in str(error)

    def test_static_ones_and_aliases_are_fine(self) -> None:
        made = worker(double)

        class Tasks:
            alias = made
            built_in = worker(len)

            @staticmethod
            @worker
            def static(a: int) -> int:
                return a

        assert Tasks.alias is made
        assert Tasks.static(3) == Tasks().static(3) == 3

    def test_of_an_instance_are_fine(self) -> None:
        class Adder:
            def __init__(self, n: int) -> None:
                self.n = n

            def add(self, a: int) -> int:
                return self.n + a

        made = worker(Adder(3).add)
        assert made.invoke(made.draft(4).args_json, CONTEXT) == 7


class TestOptions:
    def test_of_the_decorator(self) -> None:
        made = worker(queue="mail", priority=3, max_attempts=5, timeout_seconds=timedelta(minutes=1))(add)
        assert made.opts == JobOpts(queue="mail", priority=3, max_attempts=5, timeout_seconds=60)
        assert made.retry_strategy is DEFAULT_STRATEGY
        assert worker(retry_strategy=ConstantBackoff(1))(add).retry_strategy == ConstantBackoff(1)

        def custom(index: int) -> float:
            return index

        assert worker(retry_strategy=custom)(add).retry_strategy is custom

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"queu": "mail"}, "'queu' is not an option of a worker; known are max_attempts, meta, name, priority"),
            ({"process": "yes"}, "process must be True or False"),
            ({"delay": 3}, "'delay' is not an option of a worker"),
            ({"queue": ""}, "queue"),
            ({"priority": "high"}, "priority"),
            ({"max_attempts": 0}, "max_attempts"),
            ({"timeout_seconds": 0}, "timeout_seconds"),
            ({"retry_strategy": 3}, "retry_strategy must be a back-off or a function, not int"),
            ({"retry_strategy": LinearBackoff}, "retry_strategy must be a back-off or a function, not type"),
        ],
    )
    def test_are_checked_before_there_is_a_function(self, options: Any, text: str) -> None:
        with pytest.raises(OptionError, match=text):
            worker(**options)

    @pytest.mark.parametrize("key", ["delay", "scheduled_at", "idempotency_key"])
    def test_of_a_single_job_are_refused(self, key: str) -> None:
        values: Any = {"delay": 1, "scheduled_at": datetime.now(UTC), "idempotency_key": "k"}
        with pytest.raises(OptionError, match=f"{key} belongs to a single job, not to a worker"):
            WorkerDef("it", lambda args, ctx: None, opts=JobOpts(**{key: values[key]}))

    def test_that_many_jobs_can_share_are_fine(self) -> None:
        opts = JobOpts(unique_key="k", unique_strategy=UniqueStrategy.REJECT, tags=["a"], meta={"a": 1})
        assert WorkerDef("it", lambda args, ctx: None, opts=opts).opts is opts
        with pytest.raises(OptionError, match="opts must be JobOpts, not dict"):
            WorkerDef("it", lambda args, ctx: None, opts={})  # type: ignore[arg-type]

    def test_of_a_call_go_over_earlier_ones_and_those_over_the_workers(self) -> None:
        made = worker(queue="mail", priority=1, max_attempts=3)(add)
        draft = made.options(priority=2, delay=5).options(priority=3, tags=["a"]).draft(1)
        assert draft.opts == JobOpts(queue="mail", max_attempts=3, priority=3, delay=5, tags=["a"])
        assert made.options(delay=5).options(scheduled_at=datetime(2030, 1, 1, tzinfo=UTC)).draft(1).opts.delay is None
        assert made.draft(1).opts == made.opts
        new = NewJob.of(made.options(queue="other").draft(1).worker, "{}", made.options(queue="other").draft(1).opts)
        assert (new.queue, new.priority) == ("other", 1)

    def test_of_a_call_are_checked(self) -> None:
        made: Any = worker(add)
        with pytest.raises(OptionError, match="'prioritty' is not an option of a job"):
            made.options(prioritty=1)
        with pytest.raises(OptionError, match="not both"):
            made.options(delay=1, scheduled_at=datetime.now(UTC))
        with pytest.raises(OptionError, match="naive"):
            made.options(scheduled_at=datetime(2030, 1, 1))
        with pytest.raises(OptionError, match="'retry_strategy'"):
            made.options(retry_strategy=ConstantBackoff())

    def test_leave_what_they_were_given_to_alone(self) -> None:
        made = worker(add)
        chosen = made.options(queue="a")
        assert type(chosen) is Enqueuer
        assert not callable(chosen)
        chosen.options(queue="b").on(Host())
        assert chosen.draft(1).opts == JobOpts(queue="a")
        assert made.draft(1).opts == JobOpts()


class TestEnqueue:
    async def test_hands_a_checked_draft_to_the_host(self) -> None:
        made = worker(queue="mail")(add)
        host = Host(made)
        await made.enqueue(1)
        await made.options(connection=CONTEXT).enqueue(1, b=2)
        await made.options(connection=CONTEXT).options(connection=None, queue="x").enqueue(a=3)
        assert [(draft.worker, draft.args_json, draft.opts.queue) for draft in host.drafts] == [
            ("add", '{"a":1}', "mail"),
            ("add", '{"a":1,"b":2}', "mail"),
            ("add", '{"a":3}', "x"),
        ]
        assert host.connections == [None, CONTEXT, None]

    async def test_tells_of_bad_arguments_before_it_looks_for_a_host(self) -> None:
        made: Any = worker(add)
        with pytest.raises(ArgsError, match="missing required argument 'a'"):
            await made.enqueue()
        with pytest.raises(NotBound):
            await made.enqueue(1)

    def test_a_draft_cannot_hold_on_to_a_connection(self) -> None:
        with pytest.raises(OptionError, match=r"enqueue_many\(..., connection=...\)"):
            worker(add).options(connection=CONTEXT).draft(1)

    async def test_of_a_context_worker_leaves_the_context_out(self) -> None:
        @worker(context=True)
        async def take(ctx: JobContext, a: int) -> Any:
            return ctx, a

        assert take.draft(1).args_json == '{"a":1}'
        assert await take.invoke('{"a":1}', CONTEXT) == (CONTEXT, 1)


class TestRawForm:
    def test_gets_the_parsed_value_as_it_is(self) -> None:
        made = WorkerDef("raw", lambda args, ctx: (args, ctx), retry_strategy=LinearBackoff())
        made.prepare()
        assert made.invoke('[1,{"a":null}]', CONTEXT) == ([1, {"a": None}], CONTEXT)
        assert made.decode_result({"a": 1}) == {"a": 1}
        assert made.encode_result((1, "a")) == '[1,"a"]'
        assert made.retry_strategy == LinearBackoff()

    async def test_may_be_async(self) -> None:
        async def handler(args: Any, ctx: Any) -> Any:
            return args

        assert await WorkerDef("raw", handler).invoke("7", CONTEXT) == 7

    def test_text_that_is_not_json(self) -> None:
        made = WorkerDef("raw", lambda args, ctx: None)
        for text in ("s3cret", "", "[" * 100_000):
            with pytest.raises(UnreadableArgs, match=r"^arguments of raw are not JSON$"):
                made.invoke(text, CONTEXT)
            with pytest.raises(UnreadableArgs):
                made.check(text)
        made.check("[]")

    def test_must_take_two(self) -> None:
        wrong: list[Any] = [double, lambda: None, lambda a, b, c: None]
        for fn in wrong:
            made = WorkerDef("raw", fn)
            with pytest.raises(WorkerError, match=r"raw: a handler registered by name must take \(args, ctx\)"):
                binding.attach(made, Host())
        binding.attach(WorkerDef("raw", max), Host())


class TestMakeWorker:
    def test_resolves_local_names_one_frame_deeper(self) -> None:
        made: list[WorkerDef] = []

        class Jobs:
            def worker(self, fn: Any = None, **options: Any) -> Any:
                return make_worker(fn, context=False, options=options, then=made.append)

        class Local(dict[str, int]):
            """Not to be found in the module."""

        @Jobs().worker
        def bare(it: "dict[str, Local]") -> None: ...

        @Jobs().worker(queue="mail")
        def called(it: "Local") -> None: ...

        assert made == [bare, called]
        for one in made:
            with pytest.raises(WorkerError, match="'it' cannot be stored as JSON: Local has no JSON form"):
                one.prepare()

    def test_depth(self) -> None:
        def indirect(fn: Any) -> Any:
            return make_worker(fn, context=False, options={}, depth=2)

        def deeper(fn: Any) -> Any:
            return indirect_deep(fn)

        def indirect_deep(fn: Any) -> Any:
            return make_worker(fn, context=False, options={}, depth=3)

        class Local(msgspec.Struct):
            n: int

        def take(it: "Local") -> None: ...

        assert indirect(take).arguments.pack((Local(1),), {}) == '{"it":{"n":1}}'
        assert deeper(take).arguments.pack((Local(1),), {}) == '{"it":{"n":1}}'
        with pytest.raises(WorkerError, match="'Local' is not defined"):
            make_worker(take, context=False, options={}, depth=20).prepare()


class TestCollect:
    def test_from_workers_and_modules(self) -> None:
        one, two, raw = worker(add), worker(double), WorkerDef("raw", lambda args, ctx: None)
        module = ModuleType("tasks")
        vars(module).update(one=one, again=one, raw=raw, other=add, number=3)
        assert collect([two, module, one]) == [two, one, raw]
        assert collect(()) == []
        assert collect(iter([one])) == [one]

    def test_two_of_one_name_are_refused(self) -> None:
        with pytest.raises(WorkerError, match="two workers are named 'add'"):
            collect([worker(add), worker(add)])

    @pytest.mark.parametrize("given", [add, "tasks", worker(add).options(), None])
    def test_other_things_are_refused(self, given: Any) -> None:
        with pytest.raises(WorkerError, match="workers must be workers and modules"):
            collect([given])

    @pytest.mark.parametrize("given", [worker(add), types, "tasks", None])
    def test_what_is_no_list_is_refused(self, given: Any) -> None:
        with pytest.raises(WorkerError, match="workers must be a list"):
            collect(given)


class TestBinding:
    def test_on_wins_over_everything(self) -> None:
        made = worker(add)
        attached, other = Host(made, running=True), Host()
        asyncio.run(made.on(other).options(queue="x").enqueue(1))
        asyncio.run(made.on(attached).on(other).enqueue(1))
        assert (len(attached.drafts), len(other.drafts)) == (0, 2)

    def test_the_host_of_the_current_handler_comes_first(self) -> None:
        made = worker(add)
        one, two, stranger = Host(made, running=True), Host(made, running=True), Host(running=True)
        for host in (one, two):
            token = current.set(Running(host))  # type: ignore[arg-type]
            assert binding.resolve(made) is host
            current.reset(token)
        token = current.set(Running(stranger))  # type: ignore[arg-type]
        with pytest.raises(NotBound):
            binding.resolve(made)
        two.stop()
        assert binding.resolve(made) is one
        current.reset(token)
        token = current.set(CONTEXT)  # one that has no host
        assert binding.resolve(made) is one
        current.reset(token)

    def test_the_only_one_running_comes_before_the_only_one_attached(self) -> None:
        made = worker(add)
        app = Host(made)
        assert binding.resolve(made) is app
        test = Host(made, running=True)
        assert binding.resolve(made) is test
        test.stop()
        assert binding.resolve(made) is app
        app.start()
        assert binding.resolve(made) is app

    def test_one_that_has_stopped_is_not_meant(self) -> None:
        made = worker(add)
        first, second = Host(made), Host(made)
        first.is_stopped = True  # and its word is still to come
        binding.changed()
        assert binding.resolve(made) is second
        second.is_stopped = True
        binding.changed()
        with pytest.raises(NotBound, match="is attached to Supervisors that have stopped"):
            binding.resolve(made)

    def test_texts_say_how_many_and_what_to_do(self) -> None:
        def text() -> str:
            with pytest.raises(NotBound) as caught:
                binding.resolve(made)
            return str(caught.value)

        made = worker(add)
        to_do = r"with add.on(supervisor).enqueue(...)"
        assert text().startswith("add is attached to no Supervisor; pass it in workers=[...]")
        assert text().endswith(to_do)
        hosts = [Host(made) for _ in range(3)]
        assert text() == (
            f"add is attached to 3 Supervisors, of which none is running; start one, or say which {to_do}"
        )
        hosts[0].start()
        assert binding.resolve(made) is hosts[0]
        hosts[1].start()
        assert "2 running" in text()  # and again, for a refusal is not remembered
        assert text() == f"add is attached to 2 running Supervisors; say which {to_do}"

    def test_a_stop_detaches_and_a_new_start_attaches_again(self) -> None:
        made = worker(add)
        host = Host(made, running=True)
        assert binding.resolve(made) is host
        assert binding.is_attached(made, host)
        host.stop()
        host.stop()
        assert not binding.is_attached(made, host)
        with pytest.raises(NotBound):
            binding.resolve(made)
        binding.attach(made, host)
        binding.attach(made, host)
        host.start()
        assert binding.resolve(made) is host

    def test_references_are_weak(self) -> None:
        made = worker(add)
        host = Host(made, running=True)
        assert binding.resolve(made) is host
        ref = weakref.ref(host)
        del host
        gc.collect()
        assert ref() is None
        with pytest.raises(NotBound, match="no Supervisor"):
            binding.resolve(made)
        other = Host(made)
        assert binding.resolve(made) is other
        known = weakref.ref(made)
        del made
        gc.collect()
        assert known() is None

    def test_one_that_was_dropped_does_not_count_whenever_it_is_collected(self) -> None:
        made = worker(add)
        gc.disable()
        try:
            for running in (False, True):
                dropped = Host(made, running=running)
                dropped.connections.append(dropped)  # a cycle keeps it until the collector comes
                del dropped
                host = Host(made, running=running)
                assert binding.resolve(made) is host
                host.stop()
        finally:
            gc.enable()

    def test_another_worker_of_the_same_name_is_another(self) -> None:
        one, two = worker(add), worker(add)
        host = Host(one)
        assert binding.resolve(one) is host
        with pytest.raises(NotBound):
            binding.resolve(two)

    def test_attaching_refuses_what_has_no_json_form(self) -> None:
        def take(it: object, connection: Callable[[], None]) -> None: ...

        host = Host()
        made = worker(take)
        with pytest.raises(WorkerError, match="take: 'connection' cannot be stored as JSON: Callable"):
            binding.attach(made, host)
        assert not binding.is_attached(made, host)
        with pytest.raises(WorkerError):
            binding.attach(made, host, declared=True)

    def test_a_declaration_may_name_what_is_still_to_come(self) -> None:
        host = Host()
        made = worker(to_come)
        with pytest.raises(WorkerError, match="'ToCome' is not defined"):
            binding.attach(made, host)
        binding.attach(made, host, declared=True)
        assert binding.resolve(made) is host
        globals()["ToCome"] = int
        try:
            assert made.draft(1).args_json == '{"it":1}'
        finally:
            del globals()["ToCome"]


def to_come(it: "ToCome") -> None: ...  # type: ignore[name-defined]  # noqa: F821


class TestContextWorkers:
    @pytest.mark.parametrize("kind", [int, str, dict, bytes])
    def test_a_first_parameter_that_is_plainly_an_argument_is_refused(self, kind: type) -> None:
        async def work(order, when="now"):
            return order, when

        work.__annotations__["order"] = kind
        with pytest.raises(WorkerError, match=f"'order' is a {kind.__name__}; put the context before it"):
            worker(context=True)(work)

    def test_options_of_all_its_jobs_can_be_keys_and_tags_too(self) -> None:
        @worker(unique_key="sync", unique_strategy=UniqueStrategy.REJECT, tags=["stock"], meta={"team": "shop"})
        async def sync_stock() -> None: ...

        assert sync_stock.opts.given == {
            "unique_key": "sync",
            "unique_strategy": UniqueStrategy.REJECT,
            "tags": ("stock",),
            "meta": {"team": "shop"},
        }
