"""An openai-whisper checkpoint as CTranslate2 and faster-whisper want it, without transformers or its hub.

`python -m bench.peers.convert EXPORT OUT`; EXPORT is what bench/engine.py has written.
"""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from ctranslate2.specs import WhisperSpec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def main() -> None:
    export, out = Path(sys.argv[1]), Path(sys.argv[2])
    about = json.loads((export / "about.json").read_text())
    with np.load(export / "weights.npz") as weights:
        spec = converted(about["dims"], dict(weights))
    spec.register_vocabulary([*map(visible, map(bytes.fromhex, about["tokens"])), *about["special_tokens"]])
    for name, value in about["config"].items():
        setattr(spec.config, name, value)
    spec.validate()
    spec.optimize(quantization=None)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    spec.save(str(out))
    tokenizer(about).save(str(out / "tokenizer.json"))
    (out / "preprocessor_config.json").write_text(json.dumps({"feature_size": about["dims"]["n_mels"]}))


def converted(dims: dict[str, int], weights: dict[str, np.ndarray]) -> WhisperSpec:
    spec = WhisperSpec(dims["n_audio_layer"], dims["n_audio_head"], dims["n_text_layer"], dims["n_text_head"])

    def linear(target, *names: str) -> None:
        """Several are fused into one; keys have no bias."""
        target.weight = np.concatenate([weights[f"{name}.weight"] for name in names])
        biases = [weights.get(f"{name}.bias", np.zeros(len(weights[f"{name}.weight"]), np.float32)) for name in names]
        target.bias = np.concatenate(biases)

    def norm(target, name: str) -> None:
        target.gamma, target.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def block(target, name: str) -> None:
        norm(target.self_attention.layer_norm, f"{name}.attn_ln")
        linear(target.self_attention.linear[0], *(f"{name}.attn.{part}" for part in ("query", "key", "value")))
        linear(target.self_attention.linear[1], f"{name}.attn.out")
        norm(target.ffn.layer_norm, f"{name}.mlp_ln")
        linear(target.ffn.linear_0, f"{name}.mlp.0")
        linear(target.ffn.linear_1, f"{name}.mlp.2")

    for conv in ("conv1", "conv2"):
        target = getattr(spec.encoder, conv)
        target.weight, target.bias = weights[f"encoder.{conv}.weight"], weights[f"encoder.{conv}.bias"]
    spec.encoder.position_encodings.encodings = weights["encoder.positional_embedding"]
    norm(spec.encoder.layer_norm, "encoder.ln_post")
    for number, target in enumerate(spec.encoder.layer):
        block(target, f"encoder.blocks.{number}")

    spec.decoder.embeddings.weight = weights["decoder.token_embedding.weight"]
    spec.decoder.position_encodings.encodings = weights["decoder.positional_embedding"]
    spec.decoder.projection.weight = weights["decoder.token_embedding.weight"]
    norm(spec.decoder.layer_norm, "decoder.ln")
    for number, target in enumerate(spec.decoder.layer):
        name = f"decoder.blocks.{number}"
        block(target, name)
        norm(target.attention.layer_norm, f"{name}.cross_attn_ln")
        linear(target.attention.linear[0], f"{name}.cross_attn.query")
        linear(target.attention.linear[1], *(f"{name}.cross_attn.{part}" for part in ("key", "value")))
        linear(target.attention.linear[2], f"{name}.cross_attn.out")
    return spec


def tokenizer(about: dict) -> Tokenizer:
    tokens = [bytes.fromhex(token) for token in about["tokens"]]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [tuple(map(visible, halves)) for token in tokens if len(token) > 1 if (halves := _halves(token, ranks))]
    made = Tokenizer(models.BPE(vocab={visible(token): rank for token, rank in ranks.items()}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in about["special_tokens"]])
    return made


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that the last merge puts together: byte pairs are merged in the order of the tokens they make."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        known = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks and a + b != token]
        if not known:
            return []
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_LETTERS = {byte: chr(byte) for byte in _SHOWN}
_LETTERS |= {byte: chr(256 + at) for at, byte in enumerate(byte for byte in range(256) if byte not in _LETTERS)}


def visible(token: bytes) -> str:
    """As GPT-2 writes bytes: a letter each, none of them a space."""
    return "".join(_LETTERS[byte] for byte in token)


if __name__ == "__main__":
    main()
