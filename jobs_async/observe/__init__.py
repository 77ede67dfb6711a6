"""What happens, as numbers: metrics folded from events and sampled from the store, served to Prometheus."""

from jobs_async.observe.adapters import AdapterObserver
from jobs_async.observe.calls import ObservedStore, StoreCall
from jobs_async.observe.gauges import Gauges
from jobs_async.observe.observability import Observability
from jobs_async.observe.sampling import Watched

__all__ = ["AdapterObserver", "Gauges", "Observability", "ObservedStore", "StoreCall", "Watched"]
