"""The loop over a file, answered by hand: what it asks for next, and what it makes of the answers."""

from collections.abc import Sequence

import pytest
from whisper.tokenizer import Tokenizer, get_tokenizer

from gpu_daemon.engine.listen import Align, Decode, Listener, Question
from gpu_daemon.engine.sequence import Decoded
from gpu_daemon.engine.spoken import SpokenWord
from gpu_daemon.jobs.model import JobOptions

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
MINUTE = 6000
"""Frames."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return get_tokenizer(True, num_languages=99, language="en", task="transcribe")


class Asked:
    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        clips: Sequence[tuple[int, int]] = ((0, MINUTE),),
        prompt: str | None = None,
        prompt_for_all: bool = False,
        **options: object,
    ) -> None:
        self.tokenizer = tokenizer
        self.listener = Listener(
            tokenizer,
            JobOptions.model_validate({"model": "demo", **options}),
            n_frames=MINUTE,
            n_text_ctx=448,
            clips=clips,
            prompt=prompt,
            prompt_for_all=prompt_for_all,
        )
        self._talk = self.listener.run()
        self.question: Question | None = next(self._talk)

    @property
    def decode(self) -> Decode:
        assert isinstance(self.question, Decode)
        return self.question

    @property
    def prompt(self) -> str:
        """Words before the start of the transcript."""
        prompt = self.decode.prompt[: self.decode.sot_index]
        assert self.decode.prompt[self.decode.sot_index] == self.tokenizer.sot
        return str(self.tokenizer.decode(list(prompt[1:])))

    def say(self, *parts: str | float, logprob: float = -0.1, no_speech: float = 0.0) -> None:
        """Words and timestamps in seconds; `logprob` of each token."""
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, str):
                tokens += self.tokenizer.encode(part)
            else:
                tokens.append(self.tokenizer.timestamp_begin + round(part / 0.02))
        self._answer(
            Decoded(
                tokens=tuple(tokens),
                sum_logprob=logprob * (len(tokens) + 1),
                no_speech_prob=no_speech,
                logprobs=tuple(range(len(tokens) + 1)) if self.decode.logprobs else (),
            )
        )

    def time(self, *words: tuple[str, float, float], probability: float = 0.9) -> None:
        assert isinstance(self.question, Align)
        self._answer([SpokenWord(word, self.tokenizer.encode(word), a, b, probability) for word, a, b in words])

    def _answer(self, answer: object) -> None:
        try:
            self.question = self._talk.send(answer)
        except StopIteration:
            self.question = None

    @property
    def said(self) -> list[tuple[float, float, str]]:
        return [(segment.start, segment.end, segment.text) for segment in self.listener.segments]


def test_the_next_window_begins_where_the_last_segment_ended(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer)
    assert (asked.decode.start, asked.decode.end) == (0, 3000)
    asked.say(0.0, " one", 4.0, 4.0, " two", 9.5, 9.5, " unfinished")
    assert asked.said == [(0.0, 4.0, " one"), (4.0, 9.5, " two")]
    assert (asked.decode.start, asked.decode.end) == (950, 3950)


def test_a_single_timestamp_at_the_end_says_that_the_rest_is_silent(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer)
    asked.say(0.0, " one", 4.0, 4.0, " two", 9.5)
    assert asked.said == [(0.0, 4.0, " one"), (4.0, 9.5, " two")]
    assert (asked.decode.start, asked.decode.end) == (3000, 6000)
    asked.say(0.0, " three", 2.0)
    assert asked.said[2:] == [(30.0, 32.0, " three")]
    assert asked.question is None
    assert asked.listener.text == " one two three"


def test_each_token_keeps_its_logprob(tokenizer: Tokenizer) -> None:
    """They are numbered here: the first is that of a timestamp."""
    asked = Asked(tokenizer, logprobs=True)
    asked.say(0.0, " one", 4.0, 4.0, " ", 6.0, 6.0, " two", 9.5, 9.5, " unfinished")
    assert [segment.logprobs for segment in asked.listener.segments] == [[0, 1, 2], [], [6, 7, 8]]
    assert all(len(segment.logprobs) == len(segment.tokens) for segment in asked.listener.segments)
    unasked = Asked(tokenizer)
    unasked.say(0.0, " one", 4.0, 4.0, " two", 9.5)
    assert [segment.logprobs for segment in unasked.listener.segments] == [[], []]


def test_what_was_said_prompts_the_next_window(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, prompt="Glossary")
    assert asked.prompt == " Glossary"
    asked.say(0.0, " one", 4.0)
    assert asked.prompt == " Glossary one"
    assert tokenizer.timestamp_begin in asked.decode.prompt, "timestamps are part of it"


def test_without_conditioning_nothing_does(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, prompt="Glossary", condition_on_previous_text=False)
    assert asked.prompt == " Glossary"
    asked.say(0.0, " one", 4.0)
    assert asked.decode.sot_index == 0


def test_a_prompt_for_all_windows(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, prompt="Glossary", prompt_for_all=True, condition_on_previous_text=False)
    asked.say(0.0, " one", 4.0)
    assert asked.prompt == " Glossary"


def test_a_long_prompt_keeps_its_end(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, prompt="word " * 300 + "last")
    assert asked.decode.sot_index == 224
    assert asked.prompt.endswith(" last")


def test_hotter_until_it_makes_sense(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, beam_size=5, best_of=3)
    assert (asked.decode.temperature, asked.decode.group, asked.decode.beams) == (0.0, 5, True)
    seeds = {asked.decode.seed}
    asked.say(0.0, " unlikely", 2.0, logprob=-1.5)
    assert (asked.decode.start, asked.decode.temperature) == (0, 0.2)
    assert (asked.decode.group, asked.decode.beams) == (3, False)
    asked.say(0.0, " ha" * 60, 2.0)
    assert asked.decode.temperature == 0.4
    seeds.add(asked.decode.seed)
    asked.say(0.0, " better", 2.0)
    assert len(seeds) == 2
    assert asked.listener.segments[0].temperature == 0.4
    assert asked.prompt == " better"
    asked.say(0.0, " unlikely", 2.0, logprob=-1.5)
    for _ in range(3):
        asked.say(0.0, " unlikely", 2.0, logprob=-1.5)
    assert asked.decode.temperature == 0.8


def test_what_was_said_in_heat_is_no_prompt(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, temperature=(0.6,))
    asked.say(0.0, " one", 4.0)
    assert asked.decode.sot_index == 0


def test_thresholds_can_be_out_of_reach(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, compression_ratio_threshold=100, logprob_threshold=-100, no_speech_threshold=1)
    asked.say(0.0, " ha" * 60, 2.0, logprob=-5.0, no_speech=1.0)
    assert asked.decode.start == 3000
    assert len(asked.said) == 1


def test_a_silent_window_is_skipped_and_not_tried_again(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer)
    asked.say(0.0, " thanks for watching", 2.0, logprob=-1.5, no_speech=0.7)
    assert asked.decode.start == 3000
    assert asked.said == []
    asked.say(0.0, " sure", 2.0, logprob=-0.2, no_speech=0.7)
    assert [text for _, _, text in asked.said] == [" sure"]


def test_segments_that_say_nothing_are_emptied(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer)
    asked.say(0.0, " one", 4.0, 4.0, " ", 5.0, 5.0, " two", 5.0)
    assert [segment.text for segment in asked.listener.segments] == [" one", "", ""]
    assert asked.prompt == " one"


def test_each_clip_ends_the_windows_in_it(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, clips=((100, 900), (2000, 5600)))
    windows = []
    while asked.question is not None:
        windows.append((asked.decode.start, asked.decode.end))
        asked.say(0.0, " one", 4.0)
    assert windows == [(100, 900), (2000, 5000), (5000, 5600)]
    assert asked.listener.n_heard == asked.listener.n_to_hear == 4400


def test_the_last_word_says_where_the_next_window_begins(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, word_timestamps=True)
    asked.say(0.0, " one two", 4.0, 4.0, " three")
    assert asked.question == Align(text_tokens=tuple(tokenizer.encode(" one two")), n_frames=3000)
    asked.time((" one", 0.2, 0.6), (" two", 0.6, 1.1))
    (segment,) = asked.listener.segments
    assert [(word.word, word.start, word.end) for word in segment.words] == [(" one", 0.2, 0.6), (" two", 0.6, 1.1)]
    assert (segment.start, segment.end) == (0.2, 1.1)
    assert asked.decode.start == 110


def test_unlikely_words_beside_a_silence_are_heard_again(tokenizer: Tokenizer) -> None:
    asked = Asked(tokenizer, word_timestamps=True, hallucination_silence_threshold=2.0)
    asked.say(0.0, " thanks", 10.0)
    asked.time((" thanks", 5.0, 5.05), probability=0.01)
    assert asked.said == []
    assert asked.decode.start == 500, "after the silence before the word"
