from pathlib import Path

import pytest

from gpu_daemon.engine.base import LoadedModel, ModelSpec
from gpu_daemon.engine.cache import ModelCache
from gpu_daemon.errors import JobError, NoRoom


def spec(name: str, path: str = "/models/a.pt") -> ModelSpec:
    return ModelSpec(name=name, path=Path(path), sha256="0" * 64, official=None)


class Device:
    """Memory of 1000 bytes, some of it taken by others."""

    def __init__(self, *, others_bytes: int = 0, reserve_bytes: int = 100) -> None:
        self._others_bytes = others_bytes
        self.in_use: set[str] = set()
        self.cache: ModelCache[str] = ModelCache(
            free_bytes=self.free_bytes, reserve_bytes=reserve_bytes, in_use=lambda model: model.lower() in self.in_use
        )

    def free_bytes(self) -> int:
        return 1000 - self._others_bytes - sum(model.size_bytes for model in self.cache.loaded())

    def load(self, name: str, size_bytes: int) -> None:
        self.cache.make_room(spec(name), size_bytes)
        self.cache.put(spec(name), name.upper(), size_bytes)

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.cache.loaded()]


def test_models_stay_while_they_fit() -> None:
    device = Device()
    device.load("a", 400)
    device.load("b", 500)
    assert device.cache.loaded() == (LoadedModel("a", 400), LoadedModel("b", 500))
    assert device.cache.get(spec("a")) == "A"


def test_the_least_recently_used_goes_first() -> None:
    device = Device()
    for name in ("a", "b", "c"):
        device.load(name, 300)
    device.cache.get(spec("a"))
    device.load("d", 300)
    assert device.names == ["c", "a", "d"]


def test_no_more_go_than_must() -> None:
    device = Device()
    device.load("a", 200)
    device.load("b", 200)
    device.load("c", 600)
    assert device.names == ["b", "c"]


def test_the_reserve_is_kept_free() -> None:
    device = Device(reserve_bytes=300)
    device.load("a", 300)
    device.load("b", 500)
    assert device.names == ["b"]


def test_a_model_that_fits_without_the_reserve_is_tried() -> None:
    device = Device(reserve_bytes=300)
    device.load("a", 900)
    assert device.names == ["a"]


def test_a_model_that_does_not_fit_an_empty_device_waits_for_another_attempt() -> None:
    device = Device(others_bytes=600)
    device.load("a", 100)
    with pytest.raises(JobError, match="the GPU has 0 MiB free") as caught:
        device.load("b", 500)
    assert (caught.value.code, caught.value.retryable) == ("gpu_oom", True)
    assert device.names == []


def test_another_file_under_the_same_name_is_not_the_same_model() -> None:
    device = Device()
    device.load("a", 100)
    assert device.cache.get(spec("a", path="/models/other.pt")) is None


def test_where_memory_is_not_counted_nothing_is_evicted() -> None:
    cache: ModelCache[str] = ModelCache(free_bytes=lambda: None, reserve_bytes=100, in_use=lambda _: False)
    cache.put(spec("a"), "A", 10**12)
    cache.make_room(spec("b"), 10**12)
    assert cache.loaded() == (LoadedModel("a", 10**12),)


def test_dropping() -> None:
    device = Device()
    device.load("a", 100)
    device.load("b", 100)
    device.cache.drop("a")
    device.cache.drop("unknown")
    assert device.names == ["b"]
    device.cache.drop_idle()
    assert device.names == []


def test_what_is_in_use_stays_and_the_new_one_waits() -> None:
    device = Device()
    device.load("a", 400)
    device.load("b", 400)
    device.in_use = {"a"}
    device.load("c", 400)
    assert device.names == ["a", "c"]
    device.in_use = {"a", "c"}
    with pytest.raises(NoRoom):
        device.load("d", 400)
    assert device.names == ["a", "c"]
    device.cache.drop_idle()
    assert device.names == ["a", "c"]


def test_another_file_of_a_model_in_use_waits() -> None:
    device = Device()
    device.load("a", 100)
    device.in_use = {"a"}
    with pytest.raises(NoRoom, match="in use"):
        device.cache.make_room(spec("a", path="/models/other.pt"), 100)
    device.in_use = set()
    device.cache.make_room(spec("a", path="/models/other.pt"), 100)
    assert device.names == []
