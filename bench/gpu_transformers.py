"""transformers on the same weights: windows of 30 s in batches, SDPA, its cache as it comes or static and compiled.

`python -m bench.gpu_transformers --device cuda --out DIR` (bench/gpu.sh). From features to tokens: spectrogram,
text and timestamps are not in it, which is in its favour. Each variant has a process of its own, and a limit.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions

from bench.gpu_record import arguments, device_of, record
from bench.gpu_roofline import MEL_FRAMES, WINDOW_S, wait
from bench.gpu_weights import BY_NAME, Weights, weights_of

LIMIT_S = 240
PROMPT = (50258, 50259, 50360)
VARIANT = "BENCH_VARIANT"
VARIANTS = ("dynamic", "static")
RENAMED = (
    (".attn_ln.", ".self_attn_layer_norm."),
    (".cross_attn_ln.", ".encoder_attn_layer_norm."),
    (".mlp_ln.", ".final_layer_norm."),
    (".cross_attn.", ".encoder_attn."),
    (".attn.", ".self_attn."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    (".mlp.0.", ".fc1."),
    (".mlp.2.", ".fc2."),
    (".blocks.", ".layers."),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("decoder.token_embedding.", "decoder.embed_tokens."),
    ("encoder.positional_embedding", "encoder.embed_positions.weight"),
    ("decoder.positional_embedding", "decoder.embed_positions.weight"),
)


def main() -> int:
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed here: not measured")
        return 0
    if VARIANT in os.environ:
        measure(os.environ[VARIANT])
        return 0
    given = arguments(__doc__)
    for name in given.dimensions:
        for variant in VARIANTS[:1] if given.device == "cpu" else VARIANTS:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "bench.gpu_transformers",
                *sys.argv[1:],
                "--dimensions",
                name,
            ]
            try:
                subprocess.run(command, env=os.environ | {VARIANT: variant}, timeout=LIMIT_S, check=True)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                print(f"transformers, {name}, {variant}: {error}")
    return 0


def measure(variant: str) -> None:
    transformers: Any = importlib.import_module("transformers")
    generation: Any = importlib.import_module("transformers.generation")
    given = arguments(__doc__)
    device, (name,) = device_of(given), given.dimensions
    dims = BY_NAME[name]
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = network(transformers, dims, weights_of(dims, given.tokens, device), device, dtype)
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=given.tokens,
        min_new_tokens=given.tokens,
        eos_token_id=dims.n_vocab - 1,
        pad_token_id=0,
        cache_implementation="static" if variant == "static" else None,
    )

    def generated(features: Tensor) -> Tensor:
        prompt = torch.tensor([PROMPT] * len(features), device=device)
        # Past Whisper's own `generate`, which would ask for settings that only a checkpoint from the hub has.
        said: Tensor = generation.GenerationMixin.generate(
            model, input_features=features, decoder_input_ids=prompt, generation_config=settings
        )
        wait(device)
        return said

    for n in given.files:
        features = torch.randn(n, dims.n_mels, MEL_FRAMES, device=device, dtype=dtype)
        with torch.inference_mode():
            said = generated(features)  # compiles
            assert said.shape[1] == len(PROMPT) + given.tokens, said.shape
            began_s = time.perf_counter()
            generated(features)
            took_s = time.perf_counter() - began_s
        record(
            given.out,
            f"transformers {transformers.__version__}, {variant}",
            model=name,
            windows=n,
            took_s=took_s,
            real_time_factor=n * WINDOW_S / took_s,
        )


def network(
    transformers: Any, dims: ModelDimensions, weights: Weights, device: torch.device, dtype: torch.dtype
) -> Any:
    end = dims.n_vocab - 1
    config = transformers.WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        decoder_ffn_dim=4 * dims.n_text_state,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        attn_implementation="sdpa",
        **{f"{which}_token_id": end for which in ("pad", "bos", "eos")},
        decoder_start_token_id=PROMPT[0],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.device(device):
        model = transformers.WhisperForConditionalGeneration(config).to(dtype).eval()
    missing, unknown = model.model.load_state_dict(dict(map(renamed, weights.items())), strict=False)
    assert not unknown, unknown
    assert not missing, missing
    model.tie_weights()
    return model


def renamed(entry: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    name, values = entry
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name, values


if __name__ == "__main__":
    sys.exit(main())
