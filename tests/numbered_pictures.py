"""Pictures that carry their own number, readable after lossy compression."""

import numpy as np
import torch

BLOCKS = 4  # a number is drawn as 4 x 4 blocks, white for 1, the lowest bit at the top left


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Draw a number below 65536 as an image, uint8 [height, width, 3]."""
    bits = (number >> np.arange(BLOCKS * BLOCKS)) & 1
    rows, columns = np.arange(height) * BLOCKS // height, np.arange(width) * BLOCKS // width
    gray = bits.reshape(BLOCKS, BLOCKS)[rows][:, columns] * 200 + 30
    return np.repeat(gray[:, :, None], 3, axis=2).astype(np.uint8)


def noisy_picture(number: int, width: int, height: int) -> np.ndarray:
    """The same in noise, which takes many bytes to code: the index of the file is small beside its pictures."""
    noise = np.random.default_rng(number).integers(-30, 31, (height, width, 3))
    return (picture(number, width, height) + noise).clip(0, 255).astype(np.uint8)


def read_number(frame: torch.Tensor) -> int:
    """Read the number back from a decoded frame, uint8 [3, H, W]."""
    _, height, width = frame.shape
    rows = [(2 * i + 1) * height // (2 * BLOCKS) for i in range(BLOCKS)]
    columns = [(2 * i + 1) * width // (2 * BLOCKS) for i in range(BLOCKS)]
    bits = frame.float().mean(0)[rows][:, columns].flatten() > 128
    return sum(1 << i for i, bit in enumerate(bits.tolist()) if bit)
