"""pyannote's SpeakerDiarization, with the same outcome in a third of the time.

A chunk of 10 s begins every second, and pyannote sends each through the embedding network once for each of its three
local speakers, although they differ only in which frames are pooled at the end. Here the network sees a chunk once, and
not at all when nobody speaks in it. What is built from the chunks is built without a copy for each speaker of the file.
`apply` itself, with all that it decides, is pyannote's.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyannote.audio import Inference
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.pipelines import clustering as clusterings
from pyannote.core import Annotation, Segment, SlidingWindow, SlidingWindowFeature
from pyannote.core.utils.generators import string_generator
from threadpoolctl import threadpool_limits

from gpu_daemon.engine.base import Pcm
from gpu_daemon.engine.centroid_linkage import centroid_linkage
from gpu_daemon.engine.known_voices import Embedding
from gpu_daemon.engine.level import FULL_SCALE
from gpu_daemon.engine.linkage import Dendrogram, linkage_elsewhere
from gpu_daemon.engine.speaker_clusters import Vbx, thinned
from gpu_daemon.engine.speaker_models import SpeakerModels
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]

SEGMENTED, EMBEDDED = 0.2, 0.95
"""How much of the whole is done when all chunks have been segmented, and embedded."""
CPU_CHUNKS = 4
"""Embedded at once without a GPU: more is no faster, and a batch is the time between two signs of life."""
CHUNK_MB = 96
"""What embedding a chunk of 10 s takes of a GPU's memory, roughly."""
MOST_CHUNKS = 128
FREE_SHARE = 0.25
"""Of the memory that is free: there are others in this process."""
OPEN_CHUNKS = 10
"""The frames of so many are put together at once."""
NO_CLUSTER = -2
"""pyannote's, of a local speaker who is silent in that chunk."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A batch on its way back from the device."""

    rows: range
    host: torch.Tensor
    arrived: torch.cuda.Event | None

    def numpy(self) -> Floats:
        if self.arrived is not None:
            self.arrived.synchronize()
        values: Floats = self.host.numpy()
        return values


class Speakers(SpeakerDiarization):  # type: ignore[misc]
    """`find(int16[n_samples], tick)` is what others call; the rest is called by pyannote."""

    def __init__(self, models: SpeakerModels, device: str) -> None:
        super().__init__(
            segmentation=models.segmentation,
            embedding=models.embedding,
            plda=models.plda,
            clustering=models.clustering,
            segmentation_batch_size=models.segmentation_batch_size,
            **models.params,
        )
        if models.clustering == "VBxClustering":
            self.clustering = Vbx(models.plda, metric=self._embedding.metric)
        self.clustering.filter_embeddings = thinned(self.clustering.filter_embeddings)
        if models.frozen:
            self.freeze(models.frozen)
        self.instantiate(models.tuned)
        self._device = torch.device("cpu")
        self._stream: Any = None
        with self._quietly():
            # pyannote finds it out by trying what raises nothing: a GPU has more to raise, and so has a warning.
            self._fewest_samples: int = self._embedding.min_num_samples if self.embedding_exclude_overlap else 0
            self._nobody = self._embedding_of_nobody()
        self._device = torch.device(device)
        self.to(self._device)
        self._stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        self._tick: Callable[[float], None] = _ignore
        self._fits: dict[str, int] = {}
        """How many chunks go at once, by stage, where it was too many before."""

    def find(self, pcm: Pcm, tick: Callable[[float], None], **bounds: int | None) -> Any:
        """pyannote's DiarizeOutput. `tick` is called after each batch with the fraction that is done, and may raise.

        Raises JobError (`gpu_oom`), RuntimeError of the device, and what `tick` raises.
        """
        self._tick = tick
        with self._quietly(), self._clustered_elsewhere():
            return self.apply({"uri": "audio", "pcm": pcm}, **bounds)

    def embed(self, pcm: Pcm) -> Embedding:
        """Of one voice alone, heard for as long as a chunk at most."""
        duration_s = self._segmentation.duration
        n_samples = round(duration_s * SAMPLE_RATE_HZ)
        chunk = _cut(pcm, 0, n_samples)[None]
        with self._quietly(), torch.inference_mode():
            spoken = self._segment(chunk).amax(dim=2)[:, None]  # float32[1, 1, n_frames]
            if not spoken.any():
                spoken[..., : math.ceil(spoken.shape[-1] * min(1.0, len(pcm) / n_samples))] = 1.0
            embedding: Embedding = self._embed(chunk, spoken)[0, 0].cpu().numpy()
        return embedding

    def get_segmentations(self, file: Any, **_: object) -> Any:
        """uint8[n_chunks, n_frames, n_local_speakers], or float32 where the network says how sure it is, with its
        times; the last chunk, which is filled up with zeros, goes alone, as it does in `Inference.slide`."""
        pcm: Pcm = file["pcm"]
        inference = self._segmentation
        n_samples = self._segmentation.model.audio.get_num_samples(inference.duration)
        step = round(inference.step * SAMPLE_RATE_HZ)
        n_whole = max(0, (len(pcm) - n_samples) // step + 1)
        n_chunks = n_whole + (len(pcm) < n_samples or (len(pcm) - n_samples) % step > 0)
        kind = np.uint8 if inference.model.specifications.powerset else np.float32
        parts: list[npt.NDArray[Any]] = []

        def compute(rows: range) -> torch.Tensor:
            return self._segment(np.stack([_cut(pcm, row * step, row * step + n_samples) for row in rows]))

        def keep(rows: range, values: Floats) -> None:
            if not parts:
                parts.append(np.empty((n_chunks, *values.shape[1:]), kind))
            parts[0][rows.start : rows.stop] = values
            self._tick(SEGMENTED * rows.stop / n_chunks)

        for rows in (range(n_whole), range(n_whole, n_chunks)):
            self._in_batches("segmentation", rows, compute, keep)
        return SlidingWindowFeature(
            parts[0], SlidingWindow(start=0.0, duration=inference.duration, step=inference.step)
        )

    def get_embeddings(
        self, file: Any, binary_segmentations: Any, exclude_overlap: bool = False, **_: object
    ) -> Floats:
        """float32[n_chunks, n_local_speakers, n_dimensions]. Who is silent in a chunk has the embedding of nobody,
        which is what pyannote's own way gives them."""
        pcm: Pcm = file["pcm"]
        active: Floats = binary_segmentations.data
        window = binary_segmentations.sliding_window
        n_chunks, n_frames, n_speakers = active.shape
        fewest_frames = -1
        if exclude_overlap:
            fewest_frames = math.ceil(n_frames * self._fewest_samples / (window.duration * SAMPLE_RATE_HZ))
        embeddings = np.tile(self._nobody, (n_chunks, n_speakers, 1))
        spoken = np.flatnonzero(np.nan_to_num(active).any(axis=(1, 2)))

        def compute(rows: range) -> torch.Tensor:
            chunks = spoken[rows.start : rows.stop]
            times = [window[int(chunk)] for chunk in chunks]
            samples = np.stack(
                [_cut(pcm, round(time.start * SAMPLE_RATE_HZ), round(time.end * SAMPLE_RATE_HZ)) for time in times]
            )
            masks = _masks(active[chunks], exclude_overlap, fewest_frames)
            return self._embed(samples, self._sent(masks))

        def keep(rows: range, values: Floats) -> None:
            embeddings[spoken[rows.start : rows.stop]] = values
            self._tick(SEGMENTED + (EMBEDDED - SEGMENTED) * rows.stop / len(spoken))

        self._in_batches("embedding", range(len(spoken)), compute, keep)
        return embeddings

    @staticmethod
    def speaker_count(binarized_segmentations: Any, frames: Any, **_: object) -> Any:
        """uint8[n_frames, 1]: how many speak at once, as most chunks have it."""
        count = Inference.aggregate(_Counted(binarized_segmentations), frames, missing=0.0)
        count.data = np.rint(count.data).astype(np.uint8)
        return count

    def reconstruct(self, segmentations: Any, hard_clusters: npt.NDArray[np.int8], count: Any) -> Any:
        """bool[n_frames, n_clusters]: who of the file's speakers is active. Some chunks at a time: all of a long file
        with many speakers at once take gigabytes."""
        self._tick(EMBEDDED)
        counts = count.data[:, 0]
        n_clusters = max(int(hard_clusters.max()) + 1, int(counts.max()))
        active = np.zeros((len(counts), n_clusters), bool)
        n_frames = segmentations.data.shape[1]
        votes = np.zeros((OPEN_CHUNKS * n_frames, n_clusters), np.float32)
        done = 0  # frames; the votes are of those that follow
        for clusters, (time, scores) in zip(hard_clusters, segmentations, strict=True):
            first = count.sliding_window.closest_frame(time.start + 0.5 * count.sliding_window.duration)
            if first + n_frames > done + len(votes):
                n_ready = first - done
                _elect(votes[:n_ready], counts[done:first], active[done:first])
                votes[:-n_ready] = votes[n_ready:]
                votes[-n_ready:] = 0.0
                done = first
            for cluster in np.unique(clusters[clusters != NO_CLUSTER]):
                votes[first - done : first - done + n_frames, cluster] += np.nan_to_num(
                    scores[:, clusters == cluster].max(axis=1)
                )
        _elect(votes[: len(counts) - done], counts[done:], active[done:])
        return SlidingWindowFeature(active, count.sliding_window)

    @staticmethod
    def to_annotation(discrete_diarization: Any, *, min_duration_off: float = 0.0, **_: float) -> Any:
        """As pyannote's `Binarize` does, but only where something changes, not in every frame."""
        frames = discrete_diarization.sliding_window
        annotation, tracks = Annotation(), string_generator()
        for speaker, scores in enumerate(discrete_diarization.data.T):
            track = next(tracks)
            active = np.concatenate([[False], scores, [False]])
            firsts, ends = np.flatnonzero(np.diff(active.astype(np.int8))).reshape(-1, 2).T
            for first, end in zip(firsts, np.minimum(ends, len(scores) - 1), strict=True):
                annotation[Segment(frames[int(first)].middle, frames[int(end)].middle), track] = speaker
        return annotation.support(collar=min_duration_off) if min_duration_off > 0.0 else annotation

    def _segment(self, chunks: Pcm) -> torch.Tensor:
        """float32[n, n_frames, n_local_speakers] of int16[n, n_samples]"""
        inference = self._segmentation
        scores: torch.Tensor = inference.conversion(inference.model(self._heard(chunks)))
        return scores

    def _embed(self, chunks: Pcm, masks: torch.Tensor) -> torch.Tensor:
        """float32[n, n_masks, n_dimensions] of int16[n, n_samples] and float32[n, n_masks, n_frames]"""
        model, heard = self._embedding.model_, self._heard(chunks)
        if hasattr(model, "forward_frames"):
            stacked: torch.Tensor = model.forward_embedding(model.forward_frames(heard), weights=masks)
            return stacked
        n, n_masks, _ = masks.shape
        each: torch.Tensor = model(heard.repeat_interleave(n_masks, dim=0), weights=masks.flatten(0, 1))
        return each.reshape(n, n_masks, -1)

    def _embedding_of_nobody(self) -> Embedding:
        """Of a mask that is zero everywhere: nothing of what was heard is in it."""
        chunk = np.zeros((1, round(self._segmentation.duration * SAMPLE_RATE_HZ)), np.int16)
        with torch.inference_mode():
            embedding: Embedding = self._embed(chunk, torch.zeros(1, 1, 100))[0, 0].numpy()
        return embedding

    def _heard(self, chunks: Pcm) -> torch.Tensor:
        """float32[n, 1, n_samples] on the device, -1..1"""
        return self._sent(chunks).float()[:, None] / FULL_SCALE

    def _sent(self, values: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _in_batches(
        self,
        stage: str,
        rows: range,
        compute: Callable[[range], torch.Tensor],
        keep: Callable[[range, Floats], None],
    ) -> None:
        """While the device is at one batch, the next is made ready. Too little memory: half as many at once.

        Raises JobError (`gpu_oom`) when there is too little for one.
        """
        first, under_way = rows.start, None
        while first < rows.stop:
            at_once = self._at_once(stage)
            batch = range(first, min(first + at_once, rows.stop))
            computed = self._tried(compute, batch)
            if under_way is not None:
                keep(under_way.rows, under_way.numpy())
            under_way = computed
            if computed is not None:
                first = batch.stop
            elif len(batch) == 1:
                raise too_little_memory()
            else:
                self._fits[stage] = len(batch) // 2
        if under_way is not None:
            keep(under_way.rows, under_way.numpy())

    def _tried(self, compute: Callable[[range], torch.Tensor], batch: range) -> Computed | None:
        """None: there is too little memory, and what could be given back was."""
        try:
            with torch.inference_mode(), self._exactly():
                there = compute(batch)
                if self._stream is None:
                    return Computed(batch, there, None)
                host = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
                host.copy_(there, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record(self._stream)
                return Computed(batch, host, arrived)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not above: there, the traceback keeps the tensors alive.
        self.release()
        return None

    def release(self) -> None:
        """Memory that is kept for the next batch goes back to the device."""
        if self._device.type == "cuda":
            with suppress(RuntimeError):  # of a device that has failed, and whoever used it knows
                torch.cuda.empty_cache()

    def _at_once(self, stage: str) -> int:
        if stage not in self._fits:
            self._fits[stage] = self._first_guess(stage)
        return self._fits[stage]

    def _first_guess(self, stage: str) -> int:
        if self._device.type == "cpu":
            return CPU_CHUNKS if stage == "embedding" else int(self.segmentation_batch_size)
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        return max(1, min(MOST_CHUNKS, int(FREE_SHARE * free_bytes / (CHUNK_MB << 20))))

    def _linkage(self, embeddings: npt.NDArray[Any], method: str, metric: str) -> Dendrogram:
        def beat() -> None:
            self._tick(EMBEDDED)

        if (method, metric) == ("centroid", "euclidean"):
            # Its products are small: threads that wait for each other take processors from others, and save nothing.
            with threadpool_limits(1, user_api="blas"):
                return centroid_linkage(embeddings, beat)
        return linkage_elsewhere(embeddings, method, metric, beat)

    @contextmanager
    def _clustered_elsewhere(self) -> Iterator[None]:
        """pyannote takes scipy's `linkage` from its own module's names, and gives no other way to say which."""
        usual, clusterings.linkage = clusterings.linkage, self._linkage
        try:
            yield
        finally:
            clusterings.linkage = usual

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """What numpy and sklearn say of too little speech is no news; and a stream of its own, so that this thread
        waits for its own work only."""
        with (
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            nullcontext() if self._stream is None else torch.cuda.stream(self._stream),
        ):
            warnings.simplefilter("ignore")
            yield

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """In float32 as it is, not in TF32: pyannote turns that off for the whole process, and for good."""
        if self._device.type == "cpu":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def too_little_memory() -> JobError:
    return JobError("there is too little memory to find out who speaks", code="gpu_oom", retryable=True)


def _ignore(fraction: float) -> None:
    pass


def is_out_of_memory(error: Exception) -> bool:
    """Where libraries allocate for themselves, or the CPU is the device, it has no class of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        said in str(error) for said in ("can't allocate memory", "ALLOC_FAILED", "AllocFailed")
    )


class _Counted:
    """Of each chunk float32[n_frames, 1], made when it is asked for; what `Inference.aggregate` needs."""

    def __init__(self, segmentations: Any) -> None:
        self._segmentations = segmentations
        self.sliding_window = segmentations.sliding_window
        self.data = np.broadcast_to(np.float32(0), (*segmentations.data.shape[:2], 1))

    def __iter__(self) -> Iterator[tuple[Any, Floats]]:
        for time, active in self._segmentations:
            yield time, active.sum(axis=1, keepdims=True, dtype=np.float32)


def _elect(votes: Floats, counts: npt.NDArray[np.int8], active: npt.NDArray[np.bool_]) -> None:
    """In each frame so many as speak in it, those with most votes."""
    spoken = np.flatnonzero(counts)
    order = np.argsort(-votes[spoken], axis=1)
    for rank in range(int(counts.max(initial=0))):
        more = counts[spoken] > rank
        active[spoken[more], order[more, rank]] = True


def _cut(pcm: Pcm, first: int, end: int) -> Pcm:
    """int16[end - first], with zeros where the file has ended."""
    samples = np.zeros(end - first, np.int16)
    there = pcm[first:end]
    samples[: len(there)] = there
    return samples


def _masks(active: Floats, exclude_overlap: bool, fewest_frames: int) -> Floats:
    """float32[n, n_local_speakers, n_frames]: where each is heard, and heard alone if that is long enough to tell."""
    masks = np.nan_to_num(active).astype(np.float32)
    if exclude_overlap:
        alone = masks * (masks.sum(axis=2, keepdims=True) < 2)
        masks = np.where(alone.sum(axis=1, keepdims=True) > fewest_frames, alone, masks)
    return np.ascontiguousarray(masks.transpose(0, 2, 1))
