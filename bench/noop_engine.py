"""An engine that does nothing, for what is around it: `GPU_DAEMON_ENGINE=bench.noop_engine:create`."""

from gpu_daemon.engine.base import Audio, LoadedModel, ModelSpec, Progress
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.transcript.model import Segment, Transcript


def create(device: str, vram_reserve_mb: int) -> "NoopEngine":
    return NoopEngine()


class NoopEngine:
    device_name = "none"
    torch_version = "none"

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedModel] = {}

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        self._loaded[spec.name] = LoadedModel(spec.name, 0)
        progress(1.0)

    def begin(self, spec: ModelSpec, audio: Audio, options: JobOptions) -> "Heard":
        return Heard(spec.name, len(audio) / SAMPLE_RATE_HZ)

    def step(self) -> None:
        """Everything has ended."""

    def drop(self, transcription: "Heard") -> None:
        """Everything has ended."""

    def unload(self, name: str) -> None:
        self._loaded.pop(name, None)

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(self._loaded.values())


class Heard:
    fraction = 1.0
    ended = True

    def __init__(self, model: str, duration_s: float) -> None:
        self._model = model
        self._duration_s = duration_s

    def heard(self) -> tuple[Segment, ...]:
        return ()

    def result(self) -> Transcript:
        return Transcript(
            text="hello",
            language="en",
            language_probability=None,
            duration=self._duration_s,
            model=self._model,
            token_count=1,
            segments=(),
        )
