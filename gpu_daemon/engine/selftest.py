"""Does the device compute what it should? With some drivers some do not, and say nothing: the text is wrong.

A known sentence goes the way of every job, before there is one, and must come out as openai-whisper hears it on a CPU.
"""

import sys
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gpu_daemon.engine.base import Engine, ModelSpec
from gpu_daemon.engine.graphs import Recorder
from gpu_daemon.errors import JobError, NotANumber, StartupError
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript

DEMO = Path(__file__).parent.parent / "demo"
SENTENCE = DEMO / "sentence.s16"
"""int16[40000]: the first of `sample.ogg`, "The red window follows the green mountain." """
MODEL = ModelSpec(name="self-test", path=DEMO / "espeak-whisper.pt", sha256="self-test", official=None)
OPTIONS = JobOptions(model=MODEL.name, temperature=(0.0,))
"""Without words: their alignment is compiled when it is first used, which takes seconds."""

TOKENS = (440, 2182, 4910, 10002, 264, 3092, 6937, 13)
FIRST_TIME_TOKEN = 50364
END_S = 2.28
AVG_LOGPROB = -0.391
OFF_BY_S = 0.1
OFF_BY_LOGPROB = 0.05
"""Both some ten times as far as float16 is from float32."""


def check(engine: Engine) -> None:
    """Falls back on plain attention. Raises StartupError when the device is not to be trusted, or has no room."""
    if (wrong := _wrong(engine)) is None:
        return
    sys.stderr.write(f"the self-test failed, and is tried again with plain attention: {wrong}\n")
    plain_attention()
    if (wrong := _wrong(engine)) is not None:
        raise StartupError(f"{engine.device_name} computes wrongly and is not used: {wrong}")


class Recording(Engine, Protocol):
    recorder: Recorder | None


def check_graphs(engine: Recording) -> None:
    """Falls back on steps that are launched kernel by kernel. After `check`. Raises StartupError."""
    if engine.recorder is None:
        return
    after, engine.recorder.after = engine.recorder.after, 0
    wrong = _wrong(engine)
    engine.recorder.after = after
    if wrong is not None:
        sys.stderr.write(f"the self-test failed with recorded steps, which are not used: {wrong}\n")
        engine.recorder = None


def plain_attention() -> None:
    """From here on torch multiplies matrices where it would take a kernel made for the whole of it."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _wrong(engine: Engine) -> str | None:
    """What is; None: nothing. Raises StartupError."""
    try:
        return difference(_heard(engine))
    except NotANumber as error:
        return error.message
    except JobError as error:
        raise StartupError(f"the self-test cannot be made: {error.message}") from error
    except RuntimeError as error:
        return f"torch says {error}".splitlines()[0]
    finally:
        engine.unload(MODEL.name)


def _heard(engine: Engine) -> Transcript:
    engine.load(MODEL, lambda _: None)
    begun = engine.begin(MODEL, np.fromfile(SENTENCE, "<i2"), OPTIONS)
    while not begun.ended:
        engine.step()
    return begun.result()


def difference(heard: Transcript) -> str | None:
    """From what is to be heard (pure)."""
    if heard.language != "en":
        return f"English was taken for {heard.language}"
    tokens = tuple(token for segment in heard.segments for token in segment.tokens if token < FIRST_TIME_TOKEN)
    if tokens != TOKENS:
        return f"a known sentence was heard as {heard.text!r}"
    if not abs(heard.segments[-1].end - END_S) <= OFF_BY_S:
        return f"a known sentence ends at {heard.segments[-1].end:.2f} s, not at {END_S}"
    if not abs(heard.segments[0].avg_logprob - AVG_LOGPROB) <= OFF_BY_LOGPROB:
        return f"the average log-probability is {heard.segments[0].avg_logprob:.3f}, not {AVG_LOGPROB}"
    return None
