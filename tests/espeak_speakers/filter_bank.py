"""What WeSpeakerResNet34 starts from: not chance, but 32 filters whose responses are carried to the pooling whole.

Who speaks is in the shape of the spectrum, and not in its level, which features that are centred over silence too have
lost: so each filter of the first layer sums to zero. The blocks that halve time and mel bins put the two bins of a pair
in channels of their own, so that 32 filters × 40 bins become 256 channels × 5; every other block adds nothing yet. The
pooling then has the mean and the deviation of each response in each bin, and `seg_1` can be computed from these.
"""

import torch
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock
from torch import Tensor, nn

N_FILTERS = 32
THRESHOLDS = (0.5, 1.5)


def filters() -> tuple[Tensor, Tensor]:
    """float32[N_FILTERS, 3, 3] over mel bins and time, and the float32[N_FILTERS] that is taken off before the ReLU."""

    def along_bins(*taps: float, over: tuple[float, float, float] = (0, 1, 0)) -> Tensor:
        return torch.tensor(taps)[:, None] * torch.tensor(over)[None, :]

    smooth = (0.25, 0.5, 0.25)
    slope, wide_slope, peak = along_bins(0, -1, 1), along_bins(-1, 0, 1), along_bins(-0.5, 1, -0.5)
    kernels = [
        slope,
        wide_slope,
        peak,
        along_bins(0, -1, 1, over=smooth),
        along_bins(-0.5, 1, -0.5, over=smooth),
        along_bins(0, 1, 0, over=(-1, 0, 1)),
        along_bins(0, 1, 0, over=(-0.5, 1, -0.5)),
        along_bins(1, 1, 1, over=(-0.3, 0, 0.3)),
        along_bins(-1, 0, 1, over=(-0.5, 0, 0.5)),
        along_bins(-1, 0, 1, over=(-0.3, 0.6, -0.3)),
        along_bins(0, -1, 1, over=(-0.5, 0, 0.5)),
        along_bins(-0.5, 1, -0.5, over=(-0.5, 0, 0.5)),
    ]
    signed = [(sign * kernel, 0.0) for kernel in kernels for sign in (1, -1)]
    signed += [(sign * kernel, off) for kernel in (slope, peak) for sign in (1, -1) for off in THRESHOLDS]
    assert len(signed) == N_FILTERS
    return torch.stack([kernel for kernel, _ in signed]), torch.tensor([off for _, off in signed])


@torch.no_grad()
def start_from_filters(model: WeSpeakerResNet34) -> None:
    resnet = model.resnet
    kernels, thresholds = filters()
    resnet.conv1.weight.copy_(kernels[:, None])
    resnet.bn1.bias.copy_(-thresholds)
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for block in layer:
            if block.stride == 1:
                block.bn2.weight.zero_()
            else:
                _pair_bins(block)


def _pair_bins(block: BasicBlock) -> None:
    """[n, c, bins, time] to [n, 2 c, bins / 2, time / 2], time smoothed."""
    wide, narrow = block.conv1.weight.shape[:2]
    assert wide == 2 * narrow
    block.conv1.weight.zero_()
    block.conv2.weight.zero_()
    for channel in range(narrow):
        for second in (0, 1):
            block.conv1.weight[2 * channel + second, channel, 1 + second] = torch.tensor([0.25, 0.5, 0.25])
    for channel in range(wide):
        block.conv2.weight[channel, channel, 1, 1] = 1
    nn.init.zeros_(block.shortcut[1].weight)
