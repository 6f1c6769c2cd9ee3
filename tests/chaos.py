"""Thousands of short jobs through random kills of daemon, runners, database and receiver; then everything is counted.

`python -m tests.chaos --jobs 2000 --kills 40 --seed 7`; ends with 1 when anything was lost, ended twice, was not called
back, or was left behind. The seed decides what is killed and after how many jobs; the machine decides the rest.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import httpx2

from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.pool import ConnectionParameters
from tests.invariants import unsettled, violations, watch
from tests.receiver import Receiver, Reply
from tests.running import FAKE_ENGINE, RunningDaemon, descendants, only_demo, unused
from tests.serving import tone

MAX_ATTEMPTS = 20
"""Enough that no job is given up: a kill of its runner costs one."""
SETTINGS = FAKE_ENGINE | {"DEVICES": "cpu,cpu", "MAX_ATTEMPTS": str(MAX_ATTEMPTS), "LOG_LEVEL": "INFO"}
CLIENTS = 6
MOST_WAITING = 60
"""Jobs under way before clients hold back, so that kills meet jobs in every state."""
TRY_AGAIN_S = 0.2
HURRIED = 0.25
"""The share of kills that follow the last one at once, into whatever it left."""
RECEIVER_AWAY_S = 2.0
MOST_REPLY_S = 0.4
HANGS_UP = 0.01
START_TRIES = 5
SETTLE_S = 420.0
"""Longer than the third delay of the callbacks' schedule."""
SHOWN = 20


class Chaos:
    def __init__(self, directory: Path, *, jobs: int, kills: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._jobs, self._kills = jobs, kills
        self._server = EmbeddedPostgres(directory / "database")
        self._database: ConnectionParameters
        self._data_dir = directory / "data"
        self._daemon: RunningDaemon
        self._receiver = Receiver()
        self._receiver.plan(*(self._reply() for _ in range(2 * jobs)))
        self._numbers = iter(range(jobs))
        self._told: dict[int, str] = {}
        self._called: set[str] = set()
        self._seen = 0
        self.began_s = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self) -> None:
        self._database = await self._server.start()
        await self._receiver.start()
        self._daemon = RunningDaemon(self._data_dir, self._database, SETTINGS)
        try:
            await self._daemon.start()
            await only_demo(self._database)
            await watch(self._database)
            clients = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
            await self._kill_all()
            await asyncio.gather(*clients)
            await self._settled()
            await self._judge()
        finally:
            await self._daemon.close()
            await self._receiver.stop()
            await self._server.stop()

    def _reply(self) -> Reply:
        """Slow enough that kills meet deliveries under way; now and then the receiver hangs up on one."""
        return Reply(delay_s=MOST_REPLY_S * self._rng.random(), disconnect=self._rng.random() < HANGS_UP)

    # What clients do.

    async def _client(self) -> None:
        async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
            for number in self._numbers:
                while len(self._told) - self._ended() > MOST_WAITING:
                    await asyncio.sleep(TRY_AGAIN_S)
                key = str(uuid.uuid4())
                while not await self._submitted(client, number, key):
                    await asyncio.sleep(TRY_AGAIN_S)

    async def _submitted(self, client: httpx2.AsyncClient, number: int, key: str) -> bool:
        """Whoever gets no answer, or is told to come again, sends the same once more under the same key."""
        fields = {
            "initial_prompt": "fake:sleep=0.2" if number % 4 == 0 else "",
            "callback_url": self._receiver.url,
            "metadata": f'{{"number": {number}}}',
        }
        try:
            response = await client.post(
                f"{self._daemon.url}/transcribe",
                files={"file": ("a.wav", tone(0.1, 8_000 if number % 8 == 1 else 16_000))},  # the former needs ffmpeg
                data=fields,
                headers={"Idempotency-Key": key},
            )
        except httpx2.TransportError:
            self.counts["submissions without an answer"] += 1
            return False
        if response.status_code >= 500:
            self.counts[f"submissions answered {response.status_code}"] += 1
            return False
        if response.status_code != 202:
            self.wrong.append(f"submission {number} was answered {response.status_code}: {response.text[:200]}")
            return True
        self.counts["submissions replayed"] += "idempotent-replayed" in response.headers
        self._told[number] = response.json()["job_id"]
        return True

    def _ended(self) -> int:
        """Jobs that have called back."""
        for request in self._receiver.requests[self._seen :]:
            self._called.add(request.json()["job_id"])
        self._seen = len(self._receiver.requests)
        return len(self._called)

    # What breaks.

    async def _kill_all(self) -> None:
        victims: dict[str, Callable[[], Awaitable[None]]] = {
            "daemon": self._kill_daemon,
            "runner": self._kill_runner,
            "database": self._kill_database,
            "receiver": self._kill_receiver,
        }
        order = [list(victims)[kill % len(victims)] for kill in range(self._kills)]
        self._rng.shuffle(order)
        for kill, victim in enumerate(order):
            if self._rng.random() > HURRIED:
                at = self._jobs * (kill + self._rng.random()) / (self._kills + 1)
                while self._ended() < at and not self.wrong:
                    await asyncio.sleep(TRY_AGAIN_S / 4)
            await asyncio.sleep(self._rng.random())
            await victims[victim]()
            self.counts[f"kills of the {victim}"] += 1
            print(
                f"{time.monotonic() - self.began_s:6.1f} s  {self._ended():5} jobs  kill {kill + 1}: {victim}",
                flush=True,
            )

    async def _kill_daemon(self) -> None:
        """And start it again, as its supervisor would, until it is up."""
        await self._daemon.kill()
        for _ in range(START_TRIES - 1):
            try:
                return await self._daemon.start()
            except AssertionError:
                self.counts["starts that failed"] += 1
                await self._daemon.kill()
        return await self._daemon.start()

    async def _kill_runner(self) -> None:
        while not (runners := [pid for pid in descendants(self._daemon.pid) if _is_runner(pid)]):
            await asyncio.sleep(TRY_AGAIN_S)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._rng.choice(sorted(runners)), signal.SIGKILL)

    async def _kill_database(self) -> None:
        """Its keeper starts it again."""
        while (pid := self._server.pid) is None:
            await asyncio.sleep(TRY_AGAIN_S)
        os.kill(pid, signal.SIGKILL)

    async def _kill_receiver(self) -> None:
        await self._receiver.away()
        await asyncio.sleep(RECEIVER_AWAY_S)
        await self._receiver.start()

    # What is counted.

    async def _settled(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_S):
                while await self._unsettled() != (0, 0):
                    await asyncio.sleep(TRY_AGAIN_S)
        except TimeoutError:
            self.wrong.append(f"{await self._unsettled()} jobs and callbacks were still open after {SETTLE_S:.0f} s")

    async def _unsettled(self) -> tuple[int, int]:
        while True:
            try:
                return await unsettled(self._database)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(TRY_AGAIN_S)

    async def _judge(self) -> None:
        if (status := await self._daemon.stop()) != 0:
            self.wrong.append(f"the daemon's exit status is {status}")
        try:
            await unused(self._data_dir)
        except AssertionError as error:
            self.wrong.append(str(error))
        told = set(self._told.values())
        if len(told) != self._jobs:
            self.wrong.append(f"{self._jobs} submissions were answered with {len(told)} jobs")
        self.wrong += await violations(
            *(self._database, self._data_dir / "jobs", self._receiver.requests), told=told, max_attempts=MAX_ATTEMPTS
        )
        connection = await asyncpg.connect(**self._database.arguments())
        rows = await connection.fetch("SELECT id, state, attempt FROM jobs")
        await connection.close()
        self.wrong += [f"{row['id']} has no submission" for row in rows if str(row["id"]) not in told]
        self.wrong += [f"{row['id']} is {row['state']}" for row in rows if row["state"] != "completed"]
        self.counts["jobs"] = len(rows)
        self.counts["jobs that took several attempts"] = sum(row["attempt"] > 1 for row in rows)
        self.counts["callbacks received"] = len(self._receiver.requests)
        self.counts["callbacks received again"] = len(self._receiver.requests) - self._ended()


def _is_runner(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"gpu_daemon.runner.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=None, help="of the last run, to have its kills again")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    print(f"{given.jobs} jobs, {given.kills} kills, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-chaos-") as directory:
        Path(directory).chmod(0o755)  # a PostgreSQL started by root is another user
        chaos = Chaos(Path(directory), jobs=given.jobs, kills=given.kills, seed=seed)
        asyncio.run(chaos.run())
    for name, count in sorted(chaos.counts.items()):
        print(f"{count:6} {name}")
    for wrong in chaos.wrong[:SHOWN]:
        print(f"WRONG: {wrong}")
    verdict = f"{len(chaos.wrong)} violations" if chaos.wrong else "nothing lost, nothing twice, everybody called back"
    print(f"{verdict} in {time.monotonic() - chaos.began_s:.0f} s (seed {seed})")
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
