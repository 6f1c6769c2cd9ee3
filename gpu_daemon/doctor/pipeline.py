"""Can jobs find out who speaks: is the pipeline here, and would the hub give it to this token?"""

from gpu_daemon.catalogue.download import Downloader
from gpu_daemon.catalogue.hub import PUBLIC, Hub
from gpu_daemon.catalogue.hub_pipeline import HubPipeline
from gpu_daemon.catalogue.pipelines import NOT_FETCHED, source_of
from gpu_daemon.doctor.finding import Finding, good, note
from gpu_daemon.errors import JobError
from gpu_daemon.settings import Settings

SUBJECT = "speakers"


async def check_pipeline(settings: Settings) -> Finding:
    """Reads every byte of it. Never worse than a note: transcripts need none."""
    downloader = Downloader()
    try:
        return await _finding(settings, Hub(settings.hf_endpoint, downloader))
    except JobError as error:
        return note(SUBJECT, f"nobody can be told apart: {error.message}", "or set DIARIZATION_MODEL=demo")
    except OSError as error:
        fix = f"let the daemon's user read it: {error.filename}"
        return note(SUBJECT, f"{settings.diarization_model} cannot be read: {error.strerror}", fix)
    finally:
        await downloader.close()


async def _finding(settings: Settings, hub: Hub) -> Finding:
    name = settings.diarization_model
    source = source_of(name, settings.pipelines_dir, hub)
    checked = await source.on_disk()
    if checked is not None:
        return good(SUBJECT, f"{name} is on the disk, every byte of it ({checked.size_bytes / 1e6:.0f} MB)")
    if settings.hf_token is None or not isinstance(source, HubPipeline):
        return note(
            SUBJECT,
            f"{name} is not on the disk: {NOT_FETCHED}",
            f"look at {PUBLIC}/{name} for conditions, and set HF_TOKEN; or set DIARIZATION_MODEL=demo",
        )
    await source.ask(settings.hf_token)
    return good(SUBJECT, f"{name} is not on the disk yet; {hub.host} gives it to the account of HF_TOKEN")
