"""Telling handlers what happened (zzz_jobs: telemetry). `delivery` calls them, `handlers` and `background` are some."""

from jobs_async.telemetry.background import QueueHandler
from jobs_async.telemetry.delivery import Handler, Telemetry
from jobs_async.telemetry.handlers import ActivityLog, LoggingHandler, StatsHandler, describe

__all__ = ["ActivityLog", "Handler", "LoggingHandler", "QueueHandler", "StatsHandler", "Telemetry", "describe"]
