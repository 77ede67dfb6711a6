"""A web app whose traces go from the request to the jobs it causes, and to the jobs of those.

    pip install "jobs-async[otel,web]" opentelemetry-sdk
    uvicorn tracing_app:app

    curl -X POST localhost:8000/orders

Every span is printed when it ends. Jobs have traces of their own, linked to the one that sent them:

    4a5e61f0 send default     ship
    4a5e61f0 POST /orders
    9c27d1b3 send mail        send_receipt
    9c27d1b3 process default  ship completed, sent by 4a5e61f0
    07f8be42 render receipt
    07f8be42 process mail     send_receipt completed, sent by 9c27d1b3
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, format_trace_id
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs_async import Supervisor
from jobs_async.observe.tracing import Tracing


class Printer(SpanExporter):
    """Prints a line for each span, where others send it to a collector."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            print(line(span))
        return SpanExportResult.SUCCESS


def line(span: ReadableSpan) -> str:
    found = span.attributes or {}
    what = " ".join(str(found[key]) for key in ("jobs.worker", "jobs.outcome") if key in found)
    senders = [f"sent by {short(link.context.trace_id)}" for link in span.links]
    return f"{short(span.context.trace_id)} {span.name:<16} {', '.join([what, *senders])}".rstrip()


def short(trace_id: int) -> str:
    return format_trace_id(trace_id)[-8:]


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Printer()))
tracer = provider.get_tracer("shop")

jobs = Supervisor("memory://", queues={"default": 10, "mail": 5}, instruments=[Tracing(provider)])


@jobs.worker(queue="mail")
def send_receipt(order: int) -> str:
    """In a thread, which sees the same current span."""
    with tracer.start_as_current_span("render receipt"):
        return f"receipt of order {order}"


@jobs.worker
async def ship(order: int) -> int:
    """Enqueues a job of its own, which goes on with the trace."""
    return (await send_receipt.enqueue(order)).id


class RequestSpans:
    """What opentelemetry-instrumentation-starlette does, and much less of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with tracer.start_as_current_span(f"{scope['method']} {scope['path']}", kind=SpanKind.SERVER):
            await self.app(scope, receive, send)


async def post_order(_request: Request) -> JSONResponse:
    job = await ship.enqueue(7)
    return JSONResponse({"job": job.id}, status_code=202)


app = Starlette(
    routes=[Route("/orders", post_order, methods=["POST"])],
    middleware=[Middleware(RequestSpans)],
    lifespan=jobs.lifespan,
)
