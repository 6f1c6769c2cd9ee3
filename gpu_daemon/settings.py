"""The daemon's settings: read once, frozen, checked with the culprit's name."""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_daemon.errors import SettingsError

JOB_TIMEOUT_BASE_S = 1800
SECRETS = frozenset({"DB_PASS", "API_KEYS", "CALLBACK_SECRET", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""In the environment for the daemon alone."""


def _comma_separated(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="forbid", frozen=True, case_sensitive=False
    )

    host: str = "0.0.0.0"  # noqa: S104 - a server for other machines; a warning is logged when no key protects it
    port: int = Field(8000, ge=0, le=65535)
    """0: any free port, which the start line then says."""
    data_dir: Path = Path("data")

    db_host: str | None = None
    """Unset: embedded PostgreSQL under DATA_DIR."""
    db_port: int = Field(5432, ge=1, le=65535)
    db_name: str = "gpu_daemon"
    db_user: str = "gpu_daemon"
    db_pass: SecretStr = SecretStr("")

    devices: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)] = ("auto",)

    jobs_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Jobs whose windows share a device's batch; 1: strictly one at a time."""

    default_model: str | None = None
    """Unset: `base`, else the only enabled one."""
    default_language: str = "auto"

    max_file_size_mb: int = Field(2048, gt=0)
    max_duration_s: int = Field(14400, gt=0)
    max_queue: int = Field(10000, gt=0)
    disk_reserve_mb: int = Field(1024, ge=0)
    """Uploads are refused while less is free."""

    affinity_max_wait_s: int = Field(30, ge=0)
    """So long a job may be passed over for others whose model a GPU holds already."""

    max_attempts: int = Field(3, ge=1)
    job_timeout_s: int | None = Field(None, gt=0)
    """Unset: 1800 plus the duration of the audio."""
    stall_timeout_s: int = Field(120, gt=0)
    drain_timeout_s: int = Field(30, ge=0)
    """How long a stop waits for running jobs; then they go back to the queue."""

    result_ttl_s: int = Field(86400, gt=0)
    audio_ttl_s: int = Field(0, ge=0)
    reuse_results: bool = True
    """The same audio with the same model and options gets the stored result."""

    diarization_model: str = "pyannote/speaker-diarization-community-1"
    """A pipeline of the hub, `demo` (the small one that comes with the checkout), or a local directory."""
    pyannote_device: Literal["auto", "cuda", "cpu"] = "auto"
    """`cuda` is an AMD GPU, too; `auto`: the worker's device, and the CPU where that fails."""
    hf_token: SecretStr | None = None
    """For the download of a gated pipeline, and nothing else."""
    hf_endpoint: str = "https://huggingface.co"
    """The hub, or a mirror of it."""

    model_idle_s: int = Field(300, gt=0)
    vram_reserve_mb: int = Field(1024, ge=0)

    callback_secret: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_comma_separated)] = ()
    """`whsec_…`; two while the receivers change from an old one to a new one."""
    callback_allowed_networks: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)] = (
        "public",
        "private",
    )
    fetch_allowed_networks: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)] = ("public",)
    """For the `url` of a job."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_comma_separated)] = ()

    rate_limit_per_minute: int = Field(0, ge=0)
    """Submissions of one client; 0: any number."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "json", "pretty"] = "auto"

    @field_validator("hf_token")
    @classmethod
    def _token_sendable(cls, token: SecretStr | None) -> SecretStr | None:
        said = "" if token is None else token.get_secret_value().strip()
        if not (said.isascii() and said.isprintable()) or " " in said:
            raise ValueError("it is not a token of Hugging Face (hf_…)")
        return SecretStr(said) if said else None

    @field_validator("hf_endpoint")
    @classmethod
    def _endpoint_named(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError("it must be an http:// or https:// address, without a user name or a query")
        return url

    @model_validator(mode="after")
    def _devices_named(self) -> "Settings":
        kinds = {name.split(":")[0] for name in self.devices}
        if not self.devices or (kinds - {"auto", "cpu", "cuda"}) or ("auto" in kinds and len(self.devices) > 1):
            raise ValueError("DEVICES must be auto, or a list of cpu and cuda:N, for example cuda:0,cuda:1")
        return self

    def jobs_per(self, kind: str) -> int:
        """A GPU decodes 32 windows in little more time than one; a CPU gains little past 4. `kind`: of the device."""
        return self.jobs_per_gpu if self.jobs_per_gpu != "auto" else 4 if kind == "cpu" else 32

    @property
    def jobs_dir(self) -> Path:
        """A directory for each job that still has files, named by its id."""
        return self.data_dir / "jobs"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "whisper_models"

    @property
    def pipelines_dir(self) -> Path:
        return self.data_dir / "diarization_models"

    @property
    def max_file_size_bytes(self) -> int:
        return self.max_file_size_mb * 1024 * 1024

    def job_timeout_for_s(self, duration_s: float) -> float:
        """Seconds one attempt may take on audio of `duration_s`."""
        return self.job_timeout_s if self.job_timeout_s is not None else JOB_TIMEOUT_BASE_S + duration_s


def load_settings() -> Settings:
    """From the environment, then `.env`, then the defaults. Raises SettingsError with a line for each culprit."""
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"][:1]).upper()
            if problem["type"] == "extra_forbidden":
                lines.append(f"{name}: no such setting; .env.example lists every one")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                given = "" if name in SECRETS | {"", "HF_ENDPOINT"} else f" (it is {problem['input']!r})"
                lines.append(f"{name}: {message}{given}" if name else message)
        raise SettingsError("\n".join(lines)) from error


def child_environment() -> dict[str, str]:
    """What a child process gets of ours: one opens files that others made, and one runs as another user."""
    return {name: value for name, value in os.environ.items() if name.upper() not in SECRETS}
