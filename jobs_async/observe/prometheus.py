"""The only module that sees prometheus_client: our families in a registry, and a registry as text.

Counting goes on in our own dictionaries; the registry asks for them when it is scraped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry as CollectorRegistry
from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from jobs_async.core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobs_async.observe.families import Family


class Families(Collector):
    """Our metrics as a registry wants them, those too of which there is no number yet."""

    def __init__(self, families: Iterable[Family[Any]]) -> None:
        self._families = tuple(families)

    def describe(self) -> Iterator[Metric]:
        """Their names, so that a registry which has one of them already says so."""
        return map(_metric, self._families)

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = _metric(family)
            for suffix, labels, value in family.samples():
                metric.add_sample(family.name + suffix, labels, value)
            yield metric


def _metric(family: Family[Any]) -> Metric:
    return Metric(family.name.removesuffix("_total"), family.help, family.type)


def register(families: Iterable[Family[Any]], registry: CollectorRegistry) -> None:
    """Let a registry collect these.

    Raises:
        OptionError: it has metrics of these names.
    """
    try:
        registry.register(Families(families))
    except ValueError as error:
        advice = "give each Observability one of its own, or a prefix"
        raise OptionError(f"the registry has metrics of these names already ({error}); {advice}") from None


def text(registry: CollectorRegistry) -> str:
    """All that is in a registry, in the text format of Prometheus."""
    return generate_latest(registry).decode()
