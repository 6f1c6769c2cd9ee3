"""Who takes which job, when devices do several at once."""

from dataclasses import dataclass, field

from gpu_daemon.jobs.model import JobId
from gpu_daemon.scheduling.dispatch import Dispatch
from gpu_daemon.scheduling.queue import JobQueue, Waiting


@dataclass
class Gpu:
    index: int
    load: int = 0
    most: int = 8
    on_duty: bool = True
    loaded: set[str] = field(default_factory=set)

    @property
    def has_room(self) -> bool:
        return self.on_duty and self.load < self.most


class Hall:
    """Workers and a queue of jobs, named by their numbers."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = gpus
        self.queue = JobQueue(affinity_wait_s=30)
        self._dispatch = Dispatch(self.queue)
        self._seq = 0

    def push(self, name: str, *, attempt: int = 0, model: str = "demo", priority: int = 0) -> None:
        self._seq += 1
        self.queue.push(
            Waiting(
                id=JobId(name),
                seq=self._seq,
                priority=priority,
                client=None,
                model=model,
                duration_s=1.0,
                trim_silence=True,
                split_channels=False,
                source_url=None,
                attempt=attempt,
            )
        )

    def take(self, gpu: Gpu) -> str | None:
        others = [other for other in self.gpus if other is not gpu]
        job = self._dispatch.take(gpu, others, can_run=lambda _: True, alone=lambda job: job.attempt > 0, now_s=0.0)
        if job is None:
            return None
        gpu.load += 1
        gpu.loaded.add(job.model)
        return job.id


def test_jobs_are_spread_over_devices() -> None:
    hall = Hall(Gpu(0, loaded={"demo"}), Gpu(1))
    one, two = hall.gpus
    for number in range(6):
        hall.push(str(number))
    taken = [(gpu.index, hall.take(gpu)) for gpu in (one, one, two, one, two, two, one, two)]
    assert taken == [(0, "0"), (0, None), (1, "1"), (0, "2"), (1, "3"), (1, "4"), (0, "5"), (1, None)]


def test_of_two_with_as_many_jobs_the_one_that_holds_the_model_gets_it() -> None:
    hall = Hall(Gpu(0), Gpu(1, loaded={"demo"}))
    hall.push("1")
    assert hall.take(hall.gpus[0]) is None
    assert hall.take(hall.gpus[1]) == "1"


def test_nobody_waits_for_a_device_that_is_full_or_off_duty() -> None:
    hall = Hall(Gpu(0, load=3), Gpu(1, load=1, most=1), Gpu(2, on_duty=False))
    hall.push("1")
    assert hall.take(hall.gpus[0]) == "1"


def test_a_job_that_was_tried_before_waits_for_an_empty_device_and_nobody_overtakes_it_there() -> None:
    (gpu,) = (hall := Hall(Gpu(0, load=2))).gpus
    hall.push("again", attempt=1)
    hall.push("new")
    assert hall.take(gpu) is None
    gpu.load = 1
    assert hall.take(gpu) is None
    gpu.load = 0
    assert hall.take(gpu) == "again"


def test_one_device_is_cleared_for_it_and_the_others_go_on() -> None:
    hall = Hall(Gpu(0, load=2), Gpu(1, load=2))
    one, two = hall.gpus
    hall.push("again", attempt=1)
    for number in range(4):
        hall.push(str(number))
    assert hall.take(one) is None
    assert [hall.take(two) for _ in range(4)] == ["0", "1", "2", "3"]
    one.load = 0
    assert hall.take(one) == "again"


def test_a_device_that_is_empty_first_takes_it_and_the_other_goes_on() -> None:
    hall = Hall(Gpu(0, load=1), Gpu(1, load=1))
    one, two = hall.gpus
    hall.push("again", attempt=1)
    hall.push("new")
    assert hall.take(one) is None
    two.load = 0
    assert hall.take(two) == "again"
    two.most = 1  # it takes nobody beside it
    assert hall.take(one) == "new"


def test_a_device_that_goes_off_duty_is_cleared_for_nobody() -> None:
    hall = Hall(Gpu(0, load=1), Gpu(1, load=1))
    one, two = hall.gpus
    hall.push("again", attempt=1)
    assert hall.take(one) is None
    one.on_duty = False
    assert hall.take(two) is None
    two.load = 0
    assert hall.take(two) == "again"


def test_more_urgent_jobs_go_first() -> None:
    (gpu,) = (hall := Hall(Gpu(0, load=1))).gpus
    hall.push("again", attempt=1)
    assert hall.take(gpu) is None
    hall.push("urgent", priority=5)
    assert hall.take(gpu) == "urgent"
    assert hall.take(gpu) is None
    gpu.load = 0
    assert hall.take(gpu) == "again"
