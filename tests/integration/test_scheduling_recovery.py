from pathlib import Path

from gpu_daemon.database.pool import Pool
from gpu_daemon.jobs.model import JobId, SourceFile
from gpu_daemon.jobs.state import JobState
from gpu_daemon.scheduling.preparation import DECODED_NAME, SOURCE_NAME
from gpu_daemon.scheduling.recovery import recover
from gpu_daemon.scheduling.retention import Retention
from gpu_daemon.scheduling.spool import RESULT_NAME, spool
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore
from tests.new_jobs import new_job, store_audio


def settings(tmp_path: Path, **changes: int) -> Settings:
    made = Settings(_env_file=None, data_dir=tmp_path, **changes)  # type: ignore[arg-type]
    made.jobs_dir.mkdir(exist_ok=True)
    return made


async def state(jobs: JobStore, job_id: JobId) -> JobState | None:
    job = await jobs.get(job_id)
    return None if job is None else job.state


async def test_rows_and_files_are_brought_back_together(tmp_path: Path, pool: Pool) -> None:
    jobs, now = JobStore(pool), settings(tmp_path)
    waiting, running, poison, without_file, ended = [new_job(callback_url="http://127.0.0.1:9/x") for _ in range(5)]
    for job in (waiting, running, poison, without_file, ended):
        await jobs.insert(job)
    for job in (waiting, running, poison, ended):
        store_audio(now.jobs_dir, job.id)
    await jobs.claim(running.id, 0)
    for attempt in range(1, 4):
        claimed = await jobs.claim(poison.id, 0)
        assert claimed is not None
        if attempt < 3:
            await jobs.requeue(claimed[0], charge=True)
    claimed = await jobs.claim(ended.id, 0)
    assert claimed is not None
    await jobs.complete(claimed[0], b"{}", {})
    orphan = now.jobs_dir / "5e857616-3f0a-4f2a-aa2f-9df1a2748f4e"
    orphan.mkdir()
    half_decoded = now.jobs_dir / waiting.id / DECODED_NAME
    half_decoded.write_bytes(b"00")

    queued = await recover(jobs, now)

    assert [job.id for job in queued] == [waiting.id, running.id]
    assert [job.attempt for job in queued] == [0, 1]
    assert await state(jobs, poison.id) is JobState.FAILED
    assert await state(jobs, without_file.id) is JobState.FAILED
    assert await state(jobs, ended.id) is JobState.COMPLETED
    assert {path.name for path in now.jobs_dir.iterdir()} == {waiting.id, running.id}
    assert not half_decoded.exists()
    owed = await pool.fetch("SELECT job_id::text FROM callbacks")
    assert {row["job_id"] for row in owed} == {poison.id, without_file.id, ended.id}


async def test_what_came_as_a_url_is_fetched_again_unless_its_row_knows_the_file(tmp_path: Path, pool: Pool) -> None:
    jobs, now = JobStore(pool), settings(tmp_path)
    url = {"source_url": "https://example.org/a.wav", "file_size_bytes": None, "file_sha256": None}
    new, half, unknown, known, lost = [new_job(**url) for _ in range(5)]
    for job in (new, half, unknown, known, lost):
        await jobs.insert(job)
    part = store_audio(now.jobs_dir, half.id) / f"{SOURCE_NAME}.part"
    (now.jobs_dir / half.id / SOURCE_NAME).rename(part)
    for job in (unknown, known):
        store_audio(now.jobs_dir, job.id)
    for job in (known, lost):
        assert await jobs.fetched(job.id, SourceFile(name=None, size_bytes=5, sha256="1" * 64, duration_s=1.0))
    queued = await recover(jobs, now)
    assert [job.id for job in queued] == [new.id, half.id, unknown.id, known.id, lost.id]
    assert [(now.jobs_dir / job.id / SOURCE_NAME).exists() for job in queued] == [False, False, False, True, False]


async def test_a_cancel_that_was_asked_for_is_not_forgotten(tmp_path: Path, pool: Pool) -> None:
    jobs, now = JobStore(pool), settings(tmp_path)
    job = new_job()
    await jobs.insert(job)
    store_audio(now.jobs_dir, job.id)
    await jobs.claim(job.id, 0)
    await jobs.request_cancel(job.id)
    assert await recover(jobs, now) == []
    assert await state(jobs, job.id) is JobState.CANCELLED


async def test_results_and_audio_are_forgotten_in_time(tmp_path: Path, pool: Pool) -> None:
    jobs, now = JobStore(pool), settings(tmp_path, result_ttl_s=100, audio_ttl_s=10)
    old, recent, owing, waiting = new_job(), new_job(), new_job(callback_url="http://127.0.0.1:9/x"), new_job()
    for job in (old, recent, owing, waiting):
        await jobs.insert(job)
        store_audio(now.jobs_dir, job.id)
    for job in (old, recent, owing):
        claimed = await jobs.claim(job.id, 0)
        assert claimed is not None
        await jobs.complete(claimed[0], b"{}", {})
    await pool.execute("UPDATE jobs SET finished_at = now() - interval '101 s' WHERE id = ANY ($1)", [old.id, owing.id])
    await pool.execute("UPDATE jobs SET finished_at = now() - interval '11 s' WHERE id = $1", recent.id)

    await Retention(now, jobs).sweep()

    assert await jobs.get(old.id) is None
    assert await state(jobs, owing.id) is JobState.COMPLETED  # its callback is still owed
    assert await state(jobs, recent.id) is JobState.COMPLETED
    assert {path.name for path in now.jobs_dir.iterdir()} == {owing.id, waiting.id}


async def test_a_result_on_disk_counts_for_the_attempt_that_made_it(tmp_path: Path, pool: Pool) -> None:
    jobs, now = JobStore(pool), settings(tmp_path)
    claims = []
    for _ in range(5):
        job = await jobs.insert(new_job())
        store_audio(now.jobs_dir, job.id)
        claimed = await jobs.claim(job.id, 0)
        assert claimed is not None
        claims.append(claimed[0])
        spool(now.jobs_dir / job.id, claimed[0], b'{"text": "hi"}', {"transcribing": 1.5}, "0" * 64)
    good, late, broken, cut, garbled = claims
    await jobs.requeue(late, charge=True)
    head = b'{"attempt": 1, "lease_token": "%s", "timings": {}, "model_sha256": null}\n'
    for name, content in (
        (broken.job_id, b"not what we wrote\n{}"),
        (cut.job_id, head % cut.lease_token.encode() + b'{"text": "\xd0'),
        (garbled.job_id, head % b"no token" + b"{}"),
        ("lost+found", head % garbled.lease_token.encode() + b"{}"),
    ):
        (now.jobs_dir / name).mkdir(exist_ok=True)
        (now.jobs_dir / name / RESULT_NAME).write_bytes(content)

    queued = await recover(jobs, now)

    assert [job.id for job in queued] == [claim.job_id for claim in (late, broken, cut, garbled)]
    assert {path.name for path in now.jobs_dir.iterdir()} == {job.id for job in queued}
    assert await jobs.result(good.job_id) == '{"text": "hi"}'
    done = await jobs.get(good.job_id)
    assert done is not None
    assert (done.state, done.attempt, done.timings) == (JobState.COMPLETED, 1, {"transcribing": 1.5})
    assert not list(now.jobs_dir.glob(f"{late.job_id}/{RESULT_NAME}"))
    assert not (now.jobs_dir / good.job_id).exists()
