"""What the routes work with: built by the composition root, carried by the app."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from starlette.requests import HTTPConnection

from gpu_daemon.callbacks.outbox import Outbox
from gpu_daemon.catalogue.catalogue import Catalogue
from gpu_daemon.catalogue.pipelines import Pipelines
from gpu_daemon.events import EventHub
from gpu_daemon.gpu.telemetry import Telemetry
from gpu_daemon.metrics import Metrics
from gpu_daemon.outgoing.target import AddressPolicy
from gpu_daemon.scheduling.scheduler import Scheduler
from gpu_daemon.settings import Settings
from gpu_daemon.store.callbacks import CallbackStore
from gpu_daemon.store.history import History
from gpu_daemon.store.jobs import JobStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    settings: Settings
    jobs: JobStore
    history: History
    callbacks: CallbackStore
    outbox: Outbox
    catalogue: Catalogue
    pipelines: Pipelines
    scheduler: Scheduler
    hub: EventHub
    telemetry: Telemetry
    metrics: Metrics
    callback_policy: AddressPolicy
    fetch_policy: AddressPolicy
    database_answers: Callable[[], Awaitable[bool]]
    database_trouble: Callable[[], str | None]
    """Known without asking."""
    started_at: datetime


def context_of(connection: HTTPConnection) -> Context:
    return cast(Context, connection.app.state.context)
