"""Between host and device, without waiting: from and to memory that the device reaches by itself (pinned)."""

import torch
from torch import Tensor


def is_late(device: torch.device) -> bool:
    """What it is asked it does by and by, while the host goes on."""
    return device.type != "cpu"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device, from the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if is_late(device) else tensor


class Copy:
    """A tensor on its way to the host, where it is as it was when it was sent; on a CPU it is there."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._made = tensor, None
        if is_late(tensor.device):
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._made = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch is half typed
            self._made.record()

    def read(self) -> Tensor:
        """Waits for what the device was asked before, and for nothing that came after."""
        if self._made is not None:
            self._made.synchronize()
        return self._host
