"""The simulation sees what it is there to see: break the runtime or the store in one place, and some seed tells."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest

from jobs_async import MemoryStore
from jobs_async.core import lifecycle
from jobs_async.runtime.janitor import Janitor
from jobs_async.runtime.queue_runner import QueueRunner
from jobs_async.runtime.settler import Settler
from tests.simulation.run import broken, simulate

SEEDS = 150

BREAKS: dict[str, tuple[Any, str, str, str, str]] = {
    "a store without a fence": (
        MemoryStore,
        "apply",
        "row is None or not lifecycle.fits(row, step.job)",
        "row is None",
        "i5_the_highest_claim_has_the_last_word",
    ),
    "a fence blind to claims": (
        lifecycle,
        "fits",
        "and row.claim == base.claim",
        "",
        "what_is_stored_is_what_the_handler_did",
    ),
    "a fence blind to cancellations": (
        lifecycle,
        "fits",
        "and row.cancel_requested == base.cancel_requested",
        "",
        "a_cancellation_that_was_accepted_is_kept",
    ),
    "dead nodes that claim": (
        MemoryStore,
        "fetch",
        " or (node is not None and not self._is_alive(node))",
        "",
        "i3_each_run_has_a_claim_of_its_own",
    ),
    "nobody who rescues": (
        Janitor,
        "sweep",
        "await self._rescue()",
        "pass",
        "i8_no_job_stays_with_a_dead_node",
    ),
    "claims whose answer got lost": (
        Janitor,
        "sweep",
        "await self._hand_back_strays()",
        "pass",
        "i1_every_job_ends",
    ),
    "claims called back while their answer is on its way": (
        Janitor,
        "_hand_back_strays",
        "now - self._strays[key] >= patience",
        "True",
        "i4_runs_overlap_only_where_the_first_was_lost",
    ),
    "settlements that are tried once": (
        Settler,
        "write",
        "tries += 1",
        "return [None] * len(steps)",
        "what_is_stored_is_what_the_handler_did",
    ),
    "a wake-up that is forgotten while its runner looks": (
        QueueRunner,
        "_claim_on",
        "await self.begin(fetched.jobs)",
        "self._bell.silence(); await self.begin(fetched.jobs)",
        "what_is_enqueued_beside_an_idle_runner_starts_at_once",
    ),
    "slots that are not given back": (
        QueueRunner,
        "_release",
        "self.slots.give_back(len(ended))",
        "pass",
        "i1_every_job_ends",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_f11_it_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, function, old, new, invariant = BREAKS[name]
    monkeypatch.setattr(place, function, rewritten(getattr(place, function), old, new))
    assert any(text.startswith(invariant) for seed in range(SEEDS) for text in broken(simulate(seed)))


def rewritten(function: Any, old: str, new: str) -> Any:
    """The function as it were if its source said something else."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} no longer says {old!r} once"
    code = compile("from __future__ import annotations\n" + source.replace(old, new), "<broken>", "exec")
    scope: dict[str, Any] = {}
    exec(code, function.__globals__, scope)
    return scope[function.__name__]
