"""From examples of unequal length to one batch."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from streamingvlm.training.examples import IGNORED_LABEL, Example


class Collate:
    """Pads examples on the right, where no earlier token can see it: no attention mask is needed."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return input_ids and labels [B, L], position_ids [3, B, L], vision and deepstack [all vision tokens, D]."""
        levels = zip(*(example.deepstack for example in examples), strict=True)
        return {
            "input_ids": _padded([example.input_ids for example in examples], self.pad_token_id),
            "labels": _padded([example.labels for example in examples], IGNORED_LABEL),
            "position_ids": _padded([example.position_ids.T for example in examples], 0).permute(2, 0, 1),
            "vision": torch.cat([example.vision for example in examples]),
            "deepstack": tuple(torch.cat(level) for level in levels),
        }


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
