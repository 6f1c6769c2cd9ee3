"""The engine at work on many files at once."""

from collections.abc import Sequence

from gpu_daemon.engine.base import Audio, Engine, ModelSpec, Transcription
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript

Request = tuple[ModelSpec, Audio, JobOptions]


def hear(engine: Engine, requests: Sequence[Request], at_once: int) -> list[Transcript]:
    """In the order of the requests, the next one being begun when one of `at_once` has ended."""
    for spec in {request[0].name: request[0] for request in requests}.values():
        engine.load(spec, lambda _: None)
    transcripts: dict[int, Transcript] = {}
    in_flight: dict[int, Transcription] = {}
    waiting = list(enumerate(requests))
    while waiting or in_flight:
        while waiting and len(in_flight) < at_once:
            number, request = waiting.pop(0)
            in_flight[number] = engine.begin(*request)
        engine.step()
        for number in [number for number, transcription in in_flight.items() if transcription.ended]:
            transcripts[number] = in_flight.pop(number).result()
    return [transcripts[number] for number in range(len(requests))]
