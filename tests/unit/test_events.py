import asyncio

from gpu_daemon.events import EventHub


async def test_who_listens_to_some_kinds_hears_of_no_other() -> None:
    hub = EventHub()
    with hub.listen() as all_of_them, hub.listen("model", "worker") as some:
        for kind in ("job", "model", "job", "worker"):
            hub.publish(kind, "a", n=1)
        async with asyncio.timeout(5):
            assert [(await all_of_them.next()).kind for _ in range(4)] == ["job", "model", "job", "worker"]
            assert [(await some.next()).kind for _ in range(2)] == ["model", "worker"]
