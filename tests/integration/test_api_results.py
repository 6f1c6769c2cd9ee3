"""GET /jobs/{id}/result: options of subtitles, conditional requests; and a wait on GET /jobs/{id}."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.serving import ServedDaemon, served_daemon, tone


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


async def test_subtitles_are_cut_as_asked(served: ServedDaemon) -> None:
    job_id = await served.submit(audio=tone(7.0), timestamp_granularity="word")
    result = (await served.finished(job_id))["result"]
    words = [word["word"].strip() for segment in result["segments"] for word in segment["words"]]

    async def vtt(**options: str) -> list[str]:
        response = await served.client.get(f"/jobs/{job_id}/result", params={"format": "vtt"} | options)
        assert response.status_code == 200, response.text
        return [cue.split("\n", 1)[1] for cue in response.text.strip().split("\n\n")[1:]]

    assert await vtt() == [" ".join(words[:4]), " ".join(words[4:])]
    assert await vtt(max_words_per_line="1") == words
    pairs = zip(words[::2], words[1::2], strict=True)
    assert await vtt(max_line_width="1", max_line_count="2") == ["\n".join(pair) for pair in pairs]
    assert (await vtt(highlight_words="true"))[0] == f"<u>{words[0]}</u> " + " ".join(words[1:4])
    for wrong in ({"max_line_width": "0"}, {"highlight_words": "perhaps"}):
        response = await served.client.get(f"/jobs/{job_id}/result", params={"format": "vtt"} | wrong)
        assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(wrong)))


async def test_without_the_times_of_words_there_is_nothing_to_cut_by(served: ServedDaemon) -> None:
    job_id = await served.submit()
    await served.finished(job_id)
    response = await served.client.get(f"/jobs/{job_id}/result", params={"format": "srt", "highlight_words": "true"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "no_words")
    assert "timestamp_granularity=word" in response.json()["error"]["message"]
    response = await served.client.get(f"/jobs/{job_id}/result", params={"format": "text", "highlight_words": "true"})
    assert response.status_code == 200


async def test_a_result_is_fetched_once(served: ServedDaemon) -> None:
    job_id = await served.submit()
    path = f"/jobs/{job_id}/result"
    early = await served.client.get(path, headers={"If-None-Match": "*"})
    assert early.status_code == 409
    await served.finished(job_id)
    first = await served.client.get(path, params={"format": "vtt"})
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    for named in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await served.client.get(path, params={"format": "vtt"}, headers={"If-None-Match": named})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    for params, named in (({"format": "srt"}, etag), ({"format": "vtt", "max_line_count": "1"}, etag), ({}, '"x"')):
        other = await served.client.get(path, params=params, headers={"If-None-Match": named})
        assert other.headers.get("etag") != etag
        assert other.status_code != 304
    paths = (await served.json("/openapi.json"))["paths"]
    for result, template in ((path, "/jobs/{job_id}/result"), (f"/result/{job_id}", "/result/{job_id}")):
        assert (await served.client.get(result, headers={"If-None-Match": "*"})).status_code == 304
        assert "304" in paths[template]["get"]["responses"], template
    response = await served.client.get("/jobs/nonesuch/result", headers={"If-None-Match": "*"})
    assert response.status_code == 404


async def test_a_job_is_asked_for_until_it_has_ended(served: ServedDaemon, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job_id = await served.submit(prompt=f"fake:until={go}")
    response = await served.client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=0"})
    assert (response.json()["result"], response.headers["preference-applied"]) == (None, "wait=0")
    waiting = asyncio.create_task(served.client.get(f"/jobs/{job_id}", headers={"Prefer": 'foo; x, Wait="20"'}))
    await served.until(job_id, lambda job: job["stage"] == "transcribing")
    go.touch()
    answer = await waiting
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("completed", "wait=20")
    assert answer.json()["result"]["text"]
    plain = await served.client.get(f"/jobs/{job_id}", headers={"Prefer": "nowait=3, x=wait=4"})
    assert "preference-applied" not in plain.headers
