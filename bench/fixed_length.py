"""Checkpoints that nobody trained and that say so many tokens in every window, in whatever engine runs them.

What an engine has to do then does not depend on what it hears, and no engine needs an option for it. Two dimensions of
the last norm before the scores are set by hand: in one, the position in the text says whether the end of text has come;
the other makes timestamps unlikely, so that after the first, which Whisper's rules ask for, there is none and each
window is a full one. It holds without a prompt before the text: conditioning is off.
"""

from pathlib import Path

import torch
import whisper
from whisper.model import ModelDimensions

from tests.parity.random_weights import DIMENSIONS, parameters

END, TIMES = 0, 1
"""The two dimensions of the decoder's state."""
POSITION_STRENGTH = 30.0
SCORE_STRENGTH = 4.0
"""Positions come out of the norm at about 15: what is forbidden has a score of -60."""
NORM_BIAS = 15.0
N_PREFIX = 3
"""Start of transcript, language, task: the tokens before the first that is said."""


def fixed_length(model: str, n_tokens: int, path: Path) -> None:
    """`model`: one of DIMENSIONS; `n_tokens`: with the first timestamp, without the end of text."""
    dimensions = DIMENSIONS[model]
    weights = parameters(dimensions)
    give_length(weights, dimensions, n_tokens)
    torch.save({"dims": vars(dimensions), "model_state_dict": weights}, path)


def give_length(weights: dict[str, torch.Tensor], dimensions: ModelDimensions, n_tokens: int) -> None:
    """Changes the weights, as `parameters` makes them."""
    tokenizer = _tokenizer(dimensions)
    position = weights["decoder.positional_embedding"]  # half[n_text_ctx, n_text_state]
    token = weights["decoder.token_embedding.weight"]  # half[n_vocab, n_text_state]
    gain, bias = weights["decoder.ln.weight"], weights["decoder.ln.bias"]  # half[n_text_state]
    token[:, [END, TIMES]] = 0
    position[:, END] = -POSITION_STRENGTH
    position[N_PREFIX - 1 + n_tokens :, END] = POSITION_STRENGTH
    gain[END], bias[END] = 1, 0
    token[tokenizer.eot, END] = SCORE_STRENGTH
    gain[TIMES], bias[TIMES] = 0, NORM_BIAS
    token[tokenizer.timestamp_begin :, TIMES] = -SCORE_STRENGTH


def _tokenizer(dimensions: ModelDimensions) -> whisper.tokenizer.Tokenizer:
    return whisper.tokenizer.get_tokenizer(True, num_languages=dimensions.n_vocab - 51765 - 1)
