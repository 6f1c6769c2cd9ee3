"""Whisper's network, written for many rows at once: keys and values of the past lie in static memory.

The same numbers as whisper.model (openai-whisper 20250625, Radford et al. 2022): parameters in the compute type, layer
norms and positions in float32. In shapes, d is the width of the network, h the number of heads, 1500 the positions of a
window after the convolutions.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import ModelDimensions, sinusoids

FUSED = {"attn.qkv": ("attn.query", "attn.key", "attn.value"), "cross_attn.kv": ("cross_attn.key", "cross_attn.value")}
"""One product of matrices where whisper makes several."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys and values; a window has one row of `past` for each of its hypotheses, in order."""

    cross: Tensor
    """[n_layer, 2, n_windows, h, 1500, d / h]: of the audio"""
    past: Tensor
    """[n_layer, 2, n_rows, h, n_text_ctx, d / h]: of the tokens so far"""
    group: int
    """Hypotheses of a window."""

    @classmethod
    def empty(cls, dims: ModelDimensions, n_windows: int, group: int, dtype: torch.dtype, device: torch.device) -> Self:
        head = dims.n_text_state // dims.n_text_head
        shape = (dims.n_text_layer, 2, n_windows, dims.n_text_head)
        # Not empty: a masked position must not be a NaN, which no mask takes away, nor make one in a row of nobody's.
        return cls(
            cross=torch.zeros(*shape, dims.n_audio_ctx, head, dtype=dtype, device=device),
            past=torch.zeros(
                *shape[:2], n_windows * group, shape[3], dims.n_text_ctx, head, dtype=dtype, device=device
            ),
            group=group,
        )

    def resized(self, n_windows: int) -> "Memory":
        """With room for more windows; what is known of the first ones stays."""
        cross = self.cross.new_zeros(*self.cross.shape[:2], n_windows, *self.cross.shape[3:])
        past = self.past.new_zeros(*self.past.shape[:2], n_windows * self.group, *self.past.shape[3:])
        cross[:, :, : self.cross.shape[2]] = self.cross
        past[:, :, : self.past.shape[2]] = self.past
        return Memory(cross, past, self.group)

    def keep(self, layer: int, windows: Tensor, *, past: tuple[Tensor, Tensor], cross: tuple[Tensor, Tensor]) -> None:
        """`windows`: int64[n]; `past`: two of [n, h, t, d / h]; `cross`: two of [n, h, 1500, d / h].

        Nothing is left of who was there before: it may have been a NaN.
        """
        for which in (0, 1):
            self.cross[layer, which, windows] = cross[which]
            for hypothesis in range(self.group):
                rows = windows * self.group + hypothesis
                self.past[layer, which, rows] = F.pad(past[which], (0, 0, 0, self.past.shape[4] - past[which].shape[2]))

    def move(self, source: int, target: int) -> None:
        """What is known of one window to the place of another."""
        self.cross[:, :, target] = self.cross[:, :, source]
        to, of = (slice(window * self.group, (window + 1) * self.group) for window in (target, source))
        self.past[:, :, to] = self.past[:, :, of]


class Norm(nn.LayerNorm):
    """In float32, whatever the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype:
            return super().forward(x)
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)

    def take_in(self, dtype: torch.dtype) -> None:
        """Input of this type, without two more kernels that change types, if that type holds the parameters exactly: a
        GPU's kernel itself computes in float32, in the same order, and rounds what comes out."""
        if all(torch.equal(parameter.to(dtype).float(), parameter) for parameter in self.parameters()):
            self.to(dtype)


class SelfAttention(nn.Module):
    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, t, d] to queries, keys and values, each [n, h, t, d / h]"""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.n_head, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1500, d]; every position sees every other."""
        heard: Tensor = self.out(joined(F.scaled_dot_product_attention(*self.heads(x))))
        return heard


class CrossAttention(nn.Module):
    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_and_values(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 1500, d] to two of [n, h, 1500, d / h]"""
        n, t, _ = features.shape
        k, v = self.kv(features).view(n, t, 2, self.n_head, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def queries(self, x: Tensor) -> Tensor:
        """[n, t, d] to [n, h, t, d / h]"""
        q: Tensor = self.query(x)
        return q.view(*x.shape[:2], self.n_head, -1).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, n_head)
        self.attn_ln = Norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = Norm(width)


class DecoderBlock(Block):
    def __init__(self, width: int, n_head: int) -> None:
        super().__init__(width, n_head)
        self.cross_attn = CrossAttention(width, n_head)
        self.cross_attn_ln = Norm(width)


class Encoder(nn.Module):
    positional_embedding: Tensor

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        width = dims.n_audio_state
        self.conv1 = nn.Conv1d(dims.n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(dims.n_audio_ctx, width))
        self.blocks = nn.ModuleList(Block(width, dims.n_audio_head) for _ in range(dims.n_audio_layer))
        self.ln_post = Norm(width)

    def layers(self, mel: Tensor) -> Generator[None, None, Tensor]:
        """[n, n_mels, 3000] to [n, 1500, d], with a pause before each layer."""
        x: Tensor = F.gelu(self.conv1(mel))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = (x + self.positional_embedding).to(x.dtype)
        for block in cast(Iterable[Block], self.blocks):
            yield
            x = x + block.attn(block.attn_ln(x))
            x = x + block.mlp(block.mlp_ln(x))
        x = self.ln_post(x)
        return x


class Decoder(nn.Module):
    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        width = dims.n_text_state
        self.token_embedding = nn.Embedding(dims.n_vocab, width)
        self.positional_embedding = nn.Parameter(torch.empty(dims.n_text_ctx, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, dims.n_text_head) for _ in range(dims.n_text_layer))
        self.ln = Norm(width)

    def read(
        self,
        tokens: Tensor,
        features: Tensor,
        *,
        keep: tuple[Memory, Tensor] | None = None,
        watch: Sequence[tuple[int, int]] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens that are all known, of windows of their own.

        `tokens`: int64[n, t], padded on the right as you like; `features`: [n, 1500, d].
        Result: [n, t, d], and for each head of `watch` (layer, head) what it looks at: float32[n, t, 1500], before the
        softmax. `keep`: keys and values stay in that memory, as those of these windows (int64[n]).
        """
        x = self._embedded(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        watched = {}
        for layer, block in enumerate(cast(Iterable[DecoderBlock], self.blocks)):
            q, k, v = block.attn.heads(block.attn_ln(x))
            x = x + block.attn.out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
            cross_q = block.cross_attn.queries(block.cross_attn_ln(x))
            cross_k, cross_v = block.cross_attn.keys_and_values(features)
            x = x + block.cross_attn.out(joined(F.scaled_dot_product_attention(cross_q, cross_k, cross_v)))
            x = x + block.mlp(block.mlp_ln(x))
            if keep is not None:
                keep[0].keep(layer, keep[1], past=(k, v), cross=(cross_k, cross_v))
            scale = cross_q.shape[-1] ** -0.25
            for head in (head for of, head in watch if of == layer):
                looks = (cross_q[:, head] * scale) @ (cross_k[:, head] * scale).transpose(-1, -2)
                watched[layer, head] = looks.float()
        return self.ln(x), [watched[head] for head in watch]

    def step(self, tokens: Tensor, positions: Tensor, memory: Memory, *, n_windows: int, longest: int) -> Tensor:
        """One more token for each hypothesis of the first `n_windows` windows.

        `tokens`, `positions`: int64[n_rows]; `longest`: more than any of the positions. Result: [n_rows, d].
        """
        n_rows = tokens.shape[0]
        rows = torch.arange(n_rows, device=tokens.device)
        x = self._embedded(tokens, positions)[:, None]
        ahead = torch.arange(longest, device=tokens.device) > positions[:, None]
        # As numbers: of a mask of booleans each layer would make them anew.
        mask = torch.zeros_like(ahead, dtype=x.dtype).masked_fill_(ahead, -torch.inf)[:, None, None]
        for layer, block in enumerate(cast(Iterable[DecoderBlock], self.blocks)):
            cross, past = memory.cross[layer, :, :n_windows], memory.past[layer, :, :n_rows]
            q, k, v = block.attn.heads(block.attn_ln(x))
            past[0][rows, :, positions], past[1][rows, :, positions] = k[:, :, 0], v[:, :, 0]
            kept = past[:, :, :, :longest]
            heard = F.scaled_dot_product_attention(q, kept[0], kept[1], attn_mask=mask)
            x = x + block.attn.out(joined(heard))
            # The hypotheses of a window are queries beside each other: its keys and values are read once.
            q = block.cross_attn.queries(block.cross_attn_ln(x).view(n_windows, n_rows // n_windows, -1))
            heard = F.scaled_dot_product_attention(q, cross[0], cross[1])
            x = x + block.cross_attn.out(joined(heard).view(n_rows, 1, -1))
            x = x + block.mlp(block.mlp_ln(x))
        said: Tensor = self.ln(x[:, 0])
        return said

    def logits(self, x: Tensor) -> Tensor:
        """[..., d] to float32[..., n_vocab]"""
        return F.linear(x, self.token_embedding.weight).float()

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """int64[..., t] to [..., t, d]"""
        embedded: Tensor = self.token_embedding(tokens)
        return (embedded.float() + self.positional_embedding[positions]).to(embedded.dtype)


class SpeechModel(nn.Module):
    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Parameters but those of norms and positions, which stay in float32."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
                module.to(dtype)

    def norm_in(self, dtype: torch.dtype) -> None:
        """Once the parameters are there."""
        for module in self.modules():
            if isinstance(module, Norm):
                module.take_in(dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device


def joined(heads: Tensor) -> Tensor:
    """[n, h, t, d / h] to [n, t, d]"""
    return heads.transpose(1, 2).flatten(2)


def sources(name: str) -> tuple[str, ...]:
    """The names in a checkpoint of what our parameter `name` is made of, in order."""
    for fused, parts in FUSED.items():
        if fused in name:
            return tuple(name.replace(fused, part) for part in parts)
    return (name,)
