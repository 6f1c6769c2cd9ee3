"""What the page is told, where no daemon is needed to see it."""

from datetime import UTC, datetime, timedelta

from gpu_daemon.api.journal import SAME_FOR, Journal
from gpu_daemon.api.live import MOST_FRAMES, Group, Viewer
from gpu_daemon.api.state import MAX_IDS, pace, queued
from gpu_daemon.events import Event, EventHub
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.scheduling.queue import Waiting
from gpu_daemon.scheduling.status import Live

SPANS = {Stage.LOADING: (5.0, 10.0), Stage.TRANSCRIBING: (10.0, 90.0)}
NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def live(stage: Stage, progress: float, moved_s: float) -> Live:
    return Live(
        stage=stage,
        span=SPANS[stage],
        progress=progress,
        worker_index=0,
        attempt=1,
        stage_since_s=100.0,
        moved_s=moved_s,
    )


def test_how_fast_a_job_is_and_how_long_it_will_take() -> None:
    # A quarter of 80 s of audio in 5 s; 1 s after the last that was heard of it.
    assert pace(live(Stage.TRANSCRIBING, 30.0, 105.0), 80.0, 106.0) == (4.0, 14.0)
    assert pace(live(Stage.TRANSCRIBING, 30.0, 105.0), None, 106.0) == (None, 14.0)
    assert pace(live(Stage.TRANSCRIBING, 30.0, 105.0), 80.0, 300.0) == (4.0, 0.0)
    assert pace(live(Stage.LOADING, 7.5, 103.0), 80.0, 103.0) == (None, 3.0)
    assert pace(live(Stage.TRANSCRIBING, 10.0, 105.0), 80.0, 106.0) == (None, None)  # nothing is done yet
    assert pace(live(Stage.TRANSCRIBING, 30.0, 100.0), 80.0, 106.0) == (None, None)  # nothing was measured yet


def waiting(seq: int, client: str | None) -> Waiting:
    return Waiting(
        id=JobId(f"{client}-{seq}"),
        seq=seq,
        priority=0,
        client=client,
        model="demo",
        duration_s=1.0,
        trim_silence=True,
        split_channels=False,
        source_url=None,
        attempt=0,
        created_at=NOW + timedelta(seconds=seq),
    )


def test_each_client_sees_the_first_of_its_own_jobs() -> None:
    seen = queued([waiting(9, "a"), *(waiting(seq, "b") for seq in range(10, 10 + MAX_IDS)), waiting(3, "a")])
    assert seen.first["a"] == ["a-9", "a-3"]
    assert seen.first[None][:2] == ["a-9", "b-10"]
    assert (len(seen.first["b"]), len(seen.first[None])) == (MAX_IDS, MAX_IDS)
    assert seen.oldest_at == NOW + timedelta(seconds=3)
    assert queued([waiting(1, None), waiting(2, None)]).first == {None: ["None-1", "None-2"]}
    assert queued([]).oldest_at is None


def test_an_incident_is_told_once_in_a_while() -> None:
    journal = Journal(EventHub())
    incidents = [
        (0, "disk", {"what": "disk_low"}),
        (30, "disk", {"what": "disk_low"}),
        (40, "job-1", {"what": "job_failed", "code": "not_media", "client": "anna"}),
        (41, "job-2", {"what": "job_failed", "code": "not_media", "client": "boris"}),
        (42, "0", {"what": "worker_drained"}),
        (43, "0", {"what": "worker_resumed"}),
        (44, "0", {"what": "worker_drained"}),
        (1 + SAME_FOR.total_seconds(), "disk", {"what": "disk_low"}),
    ]
    for after_s, about, data in incidents:
        journal.add(Event("incident", about, data), NOW + timedelta(seconds=after_s))
    seen = [entry.seen_by("anna") for entry in journal]
    assert [event.seq for event in seen] == [7, 6, 5, 4, 3, 2, 1]
    assert [event.kind for event in seen][:4] == ["disk_low", "worker_drained", "worker_resumed", "worker_drained"]
    assert [event.text for event in seen][4:6] == ["a job failed: not_media", "job job-1 failed: not_media"]
    assert [entry.seen_by(None).text for entry in journal][4] == "job job-2 failed: not_media"


async def test_a_viewer_never_has_more_than_a_few_frames_and_none_twice() -> None:
    group = Group(None)
    viewer = Viewer(group)
    frames = viewer.frames()

    def change(number: int) -> str:
        return group.update({"version": f'"{number}"'}, 0.0) or ""

    first = change(1)
    viewer.offer(group.seq, first)
    assert await anext(frames) == '{"type":"snapshot","seq":1,"state":{"version":"1"}}'
    viewer.offer(group.seq, first)  # it was in the snapshot
    second = change(2)
    viewer.offer(group.seq, second)
    assert await anext(frames) == second == '{"type":"delta","seq":2,"state":{"version":"2"}}'
    for number in range(3, 3 + MOST_FRAMES + 5):
        viewer.offer(group.seq + 1, change(number))
    assert await anext(frames) == f'{{"type":"snapshot","seq":{group.seq},"state":{{"version":"{group.seq}"}}}}'
    last = change(100)
    viewer.offer(group.seq, last)
    assert await anext(frames) == last
    await frames.aclose()


def test_what_ages_while_all_is_well_is_no_change() -> None:
    group = Group(None)
    said = {"uptime_s": "1.0", "workers": '[{"answered_s_ago":0.4,"pid":1}]', "database": '{"latency_ms":1.5}'}
    assert group.update(said, 0.0) is not None
    aged = {"uptime_s": "2.0", "workers": '[{"answered_s_ago":9.4,"pid":1}]', "database": '{"latency_ms":2.5}'}
    assert group.update(aged, 1.0) is None
    assert '"answered_s_ago":9.4' in group.snapshot
    silent = aged | {"workers": '[{"answered_s_ago":10.4,"pid":1}]'}
    assert group.update(silent, 2.0) == (
        '{"type":"delta","seq":2,"state":{"uptime_s":2.0,"workers":[{"answered_s_ago":10.4,"pid":1}]}}'
    )
