"""The composition root: builds every part, starts them in order, stops them in reverse."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import uvicorn

from gpu_daemon import __version__, clock
from gpu_daemon.api.app import create_app
from gpu_daemon.api.context import Context
from gpu_daemon.api.door import Door
from gpu_daemon.api.websocket import MAX_FRAME_BYTES, DashboardProtocol
from gpu_daemon.callbacks.outbox import Outbox
from gpu_daemon.callbacks.signing import secret_bytes
from gpu_daemon.catalogue.catalogue import Catalogue
from gpu_daemon.catalogue.pipelines import Pipelines
from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.migrate import migrate
from gpu_daemon.database.pool import ConnectionParameters, SingleDaemonLock, answers, open_pool
from gpu_daemon.errors import SettingsError, StartupError
from gpu_daemon.events import EventHub
from gpu_daemon.gpu.detect import Device, detect
from gpu_daemon.gpu.telemetry import Telemetry
from gpu_daemon.logs import log
from gpu_daemon.metrics import Metrics
from gpu_daemon.outgoing.target import AddressPolicy
from gpu_daemon.scheduling.scheduler import Scheduler
from gpu_daemon.settings import Settings
from gpu_daemon.store.callbacks import CallbackStore
from gpu_daemon.store.history import History
from gpu_daemon.store.jobs import JobStore
from gpu_daemon.store.models import ModelStore

MIGRATIONS = Path(__file__).parent.parent / "migrations"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
KEEP_ALIVE_S = 5
HTTP_SHUTDOWN_S = 3


class _Server(uvicorn.Server):
    """The daemon handles signals itself: they drain the workers first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Daemon:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts = AsyncExitStack()
        self._scheduler: Scheduler | None = None
        self.url = ""

    async def start(self) -> None:
        """Raises StartupError; whatever had started is stopped then."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def drain(self) -> bool:
        """Refuse new jobs, wait up to DRAIN_TIMEOUT_S for those that run. False: some still run."""
        return self._scheduler is None or await self._scheduler.drain(self._settings.drain_timeout_s)

    async def stop(self) -> None:
        """Jobs that still run go back to the queue, uncharged. May be called twice, and before start."""
        parts, self._parts = self._parts, AsyncExitStack()
        await parts.aclose()

    async def _start(self) -> None:
        settings = self._settings
        listener = _listen(settings.host, settings.port)
        self._parts.callback(listener.close)
        for directory in (settings.jobs_dir, settings.models_dir, settings.pipelines_dir):
            _make_directory(directory)
        hub, metrics = EventHub(), Metrics()
        door = Door(metrics)
        stop_http = await self._serve_http(door, listener)
        devices = await detect(settings.devices)

        parameters = await self._database()
        pool = await open_pool(parameters)
        self._parts.push_async_callback(pool.close)
        lock = SingleDaemonLock(parameters, hub)
        await lock.acquire()
        self._parts.push_async_callback(lock.release)
        for name in await migrate(pool, MIGRATIONS):
            log.info("database.migrated", migration=name)

        jobs, callbacks = JobStore(pool), CallbackStore(pool)
        callback_policy, fetch_policy, secrets = _outgoing_settings(settings)
        outbox = Outbox(callbacks, hub, policy=callback_policy, secrets=secrets, metrics=metrics)
        await outbox.start()
        self._parts.push_async_callback(outbox.stop)
        catalogue = Catalogue(ModelStore(pool), settings.models_dir, hub)
        await catalogue.start()
        self._parts.push_async_callback(catalogue.stop)
        telemetry = Telemetry(dict(enumerate(devices)), settings.data_dir, runner_pids=self._runner_pids)
        await telemetry.start()
        self._parts.push_async_callback(telemetry.stop)
        pipelines = Pipelines(
            settings.diarization_model,
            settings.pipelines_dir,
            hub,
            endpoint=settings.hf_endpoint,
            token=settings.hf_token,
        )
        await pipelines.start()
        self._parts.push_async_callback(pipelines.stop)
        scheduler = Scheduler(
            settings,
            devices,
            jobs=jobs,
            catalogue=catalogue,
            outbox=outbox,
            hub=hub,
            fetch_policy=fetch_policy,
            telemetry=telemetry,
            pipelines=pipelines,
            metrics=metrics,
        )
        await scheduler.start()
        self._scheduler = scheduler
        self._parts.push_async_callback(scheduler.stop)

        app = create_app(
            Context(
                settings=settings,
                jobs=jobs,
                history=History(pool),
                callbacks=callbacks,
                outbox=outbox,
                catalogue=catalogue,
                pipelines=pipelines,
                scheduler=scheduler,
                hub=hub,
                telemetry=telemetry,
                metrics=metrics,
                callback_policy=callback_policy,
                fetch_policy=fetch_policy,
                database_answers=lambda: answers(pool),
                database_trouble=lambda: lock.trouble,
                started_at=clock.now(),
            )
        )
        self._parts.push_async_callback(app.state.attendance.stop)
        app.state.live.start()
        self._parts.push_async_callback(app.state.live.stop)
        door.open(app)
        self._parts.push_async_callback(stop_http)  # before what its answers are made of
        self._announce(devices, catalogue, parameters)

    def _runner_pids(self) -> frozenset[int]:
        return frozenset() if self._scheduler is None else self._scheduler.runner_pids()

    async def _database(self) -> ConnectionParameters:
        settings = self._settings
        if settings.db_host is not None:
            return ConnectionParameters(
                host=settings.db_host,
                port=settings.db_port,
                database=settings.db_name,
                user=settings.db_user,
                password=settings.db_pass.get_secret_value(),
            )
        embedded = EmbeddedPostgres(settings.data_dir / "postgres")
        self._parts.push_async_callback(embedded.stop)
        return await embedded.start()

    async def _serve_http(self, app: Door, listener: socket.socket) -> Callable[[], Awaitable[None]]:
        """From now on; what stops it."""
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=HTTP_SHUTDOWN_S,
                lifespan="off",
                ws=DashboardProtocol,
                ws_max_size=MAX_FRAME_BYTES,
                ws_per_message_deflate=False,  # it would be done on the event loop, for each viewer
            )
        )
        serving = asyncio.create_task(server.serve([listener]), name="http")

        async def stop() -> None:
            server.should_exit = True
            await asyncio.wait({serving})

        self._parts.push_async_callback(stop)
        host, port = listener.getsockname()[:2]
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        self.url = f"http://{shown}:{port}"
        while not server.started:
            if serving.done():
                raise StartupError("the HTTP server did not start; the log says why")
            await asyncio.sleep(0.01)
        log.debug("http.listening", url=self.url)
        return stop

    def _announce(self, devices: tuple[Device, ...], catalogue: Catalogue, parameters: ConnectionParameters) -> None:
        settings = self._settings
        if not settings.api_keys and settings.host not in LOOPBACK:
            log.warning("daemon.open", reason=f"no API_KEYS are set: whoever reaches {settings.host} may send jobs")
        models = {model.name: model.state.value for model in catalogue.statuses() if model.enabled}
        if settings.default_model is not None and settings.default_model not in models:
            reason = f"DEFAULT_MODEL: {settings.default_model} is not enabled; jobs that name no model are refused"
            log.warning("daemon.no_default_model", reason=reason)
        log.info(
            "daemon.started",
            url=self.url,
            version=__version__,
            devices=[f"{device.kind}:{device.index} {device.name}" for device in devices],
            database="embedded" if settings.db_host is None else f"{parameters.host}:{parameters.port}",
            models=models,
        )


async def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT: drain, then stop; a second signal does not wait for running jobs."""
    loop = asyncio.get_running_loop()
    stop_asked, hurry_asked = asyncio.Event(), asyncio.Event()

    def asked() -> None:
        (hurry_asked if stop_asked.is_set() else stop_asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    daemon = Daemon(settings)
    starting = asyncio.create_task(daemon.start())
    waiting = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return 0
    starting.result()
    # What was made so far lives as long as the daemon: to look through it takes the collector a tenth of a second.
    gc.collect()
    gc.freeze()
    await waiting
    log.info("daemon.draining", timeout_s=settings.drain_timeout_s)
    draining, hurrying = asyncio.create_task(daemon.drain()), asyncio.create_task(hurry_asked.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    hurrying.cancel()
    await daemon.stop()
    log.info("daemon.stopped")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Bound first of all: a busy port is the most frequent reason not to start."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise StartupError(f"PORT: cannot listen on {host}:{port}: {error.strerror}") from error


def _outgoing_settings(settings: Settings) -> tuple[AddressPolicy, AddressPolicy, list[bytes]]:
    """Where callbacks may go, where audio may come from, and what signs callbacks."""
    name = "CALLBACK_ALLOWED_NETWORKS"
    try:
        callback_policy = AddressPolicy.parse(settings.callback_allowed_networks)
        name = "FETCH_ALLOWED_NETWORKS"
        fetch_policy = AddressPolicy.parse(settings.fetch_allowed_networks)
        name = "CALLBACK_SECRET"
        return (
            callback_policy,
            fetch_policy,
            [secret_bytes(secret.get_secret_value()) for secret in settings.callback_secret],
        )
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"DATA_DIR: cannot make {directory}: {error.strerror}") from error
