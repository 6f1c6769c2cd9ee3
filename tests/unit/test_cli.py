from pathlib import Path

from gpu_daemon.cli import Written
from gpu_daemon.transcript.formats import Format


def test_files_of_one_name_are_written_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    sources: list[Path | str] = [Path("monday/talk.mp3"), "https://example.org/talk.ogg?key=1", Path("talk-2.wav")]
    written = Written(tmp_path, Format.SRT, sources)
    for source in reversed(sources):
        written.write(source, str(source))
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == dict(zip(("talk.srt", "talk-2.srt", "talk-2-2.srt"), map(str, sources), strict=True))
