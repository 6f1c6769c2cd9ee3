"""Does a worker take jobs?"""

import asyncio


class Duty:
    """Off while somebody has the worker drained, and while its device is quarantined."""

    def __init__(self) -> None:
        self.drained = False
        self.quarantined = False
        self._on = asyncio.Event()
        self._off = asyncio.Event()
        self.resume()

    @property
    def is_on(self) -> bool:
        return self._on.is_set()

    def drain(self) -> None:
        self.drained = True
        self._end()

    def quarantine(self) -> None:
        self.quarantined = True
        self._end()

    def resume(self) -> None:
        self.drained = self.quarantined = False
        self._off.clear()
        self._on.set()

    async def begins(self) -> None:
        await self._on.wait()

    async def ends(self) -> None:
        await self._off.wait()

    def _end(self) -> None:
        self._on.clear()
        self._off.set()
