"""Choosing the next token of many streams at once: repetition penalty, temperature, nucleus, each stream by its own.

All of it is vectorised over streams, of fixed shapes, and without a branch on what the tensors hold, so that it can be
part of a CUDA graph. The random numbers of a stream come from its own generator: what it says does not depend on who
else is there.

Shapes: N streams, V tokens of the vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from streamingvlm.config import SamplingConfig
from streamingvlm.device import on_device


class SeenTokens:
    """Which ids each stream has in sight: ``mask`` [slots + 1, V], made when the first stream needs it.

    The last row belongs to no stream: what pads a batch is remembered there.

    The penalty sees every id that the cache holds, vision and markup included, and the reply so far, as the released
    code's does (Keskar et al., CTRL, arXiv 1909.05858, Sec. 4.1).
    """

    def __init__(self, num_slots: int, num_ids: int, device: torch.device):
        self.num_slots, self.num_ids, self.device = num_slots, num_ids, device
        self._mask: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """Bool [slots + 1, V], True where the stream of a slot has the id in sight."""
        if self._mask is None:
            self._mask = torch.zeros(self.num_slots + 1, self.num_ids, dtype=torch.bool, device=self.device)
        return self._mask


class Sampler:
    """How one stream's tokens are chosen, its random numbers, and which ids it has in sight.

    slot: the stream's row of ``seen``.
    """

    def __init__(self, config: SamplingConfig, seen: SeenTokens, slot: int):
        self.config = config
        self.seen = seen
        self.slot = slot
        self.generator = torch.Generator(device=seen.device)
        self.reset_()

    def reset_(self):
        """Start the random stream of the seed again and forget what was seen."""
        self.generator.manual_seed(self.config.seed)
        self.see_only_(())

    def fork(self) -> "Sampler":
        """A sampler that draws what this one would draw, and leaves its random numbers as they are."""
        other = Sampler(self.config, self.seen, self.slot)
        other.generator.set_state(self.generator.get_state())
        return other

    @property
    def is_random(self) -> bool:
        """Whether a token is drawn, not only the likeliest taken."""
        return self.config.temperature > 0

    @property
    def has_penalty(self) -> bool:
        """Whether what is in sight is penalised."""
        return self.config.repetition_penalty != 1.0

    @property
    def seen_ids(self) -> torch.Tensor:
        """The ids that the penalty sees; none without a penalty."""
        return self.seen.mask[self.slot].nonzero()[:, 0] if self.has_penalty else torch.empty(0, dtype=torch.long)

    def see_only_(self, ids: Iterable[int]):
        """Let the penalty see ``ids`` and nothing else."""
        if self.has_penalty:
            row = self.seen.mask[self.slot].zero_()
            row.index_fill_(0, on_device(list(set(ids)), torch.long, row.device), True)


class Choice(NamedTuple):
    """What of the settings is in effect for any stream of a batch: the shape of the work, known to the host."""

    has_penalty: bool = False
    is_random: bool = False
    has_nucleus: bool = False

    @classmethod
    def of(cls, samplers: Sequence[Sampler]) -> "Choice":
        """What these streams need together."""
        return cls(
            any(sampler.has_penalty for sampler in samplers),
            any(sampler.is_random for sampler in samplers),
            any(sampler.is_random and sampler.config.top_p < 1 for sampler in samplers),
        )

    def or_(self, other: "Choice") -> "Choice":
        """What is needed where either is."""
        return Choice(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


# The order of the columns of ``settings``.
_COLUMNS = ("repetition_penalty", "temperature", "top_p")


def settings_of(samplers: Sequence[Sampler]) -> list[list[float]]:
    """Penalty, temperature and nucleus of each stream, [N][3]."""
    return [[getattr(sampler.config, name) for name in _COLUMNS] for sampler in samplers]


def draw_noise_(noise: torch.Tensor, samplers: Sequence[Sampler]):
    """Fill the row of ``noise`` [N, V] of each stream that draws, from its own generator."""
    for row, sampler in zip(noise, samplers, strict=False):
        if sampler.is_random:
            row.exponential_(generator=sampler.generator)


def choose(
    logits: torch.Tensor,
    choice: Choice,
    *,
    settings: torch.Tensor,
    slots: torch.Tensor,
    seen: SeenTokens,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Choose the next token [N] of each stream from ``logits`` [N, V], and remember it as seen.

    settings: [N, 3]; slots: [N], rows of ``seen``; noise: exponential [N, V], read where ``choice.is_random``.
    """
    logits = logits.float()
    penalty, temperature, top_p = settings.unsqueeze(-1).unbind(1)
    if choice.has_penalty:
        factor = torch.where(seen.mask[slots], penalty, 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
    tokens = _likeliest(logits)
    if choice.is_random:
        tokens = torch.where(temperature[:, 0] == 0, tokens, _drawn(logits, choice, temperature, top_p, noise))
    if choice.has_penalty:
        # By one flat index: assigning by two would bring the value over from the host, which a graph cannot.
        seen.mask.view(-1).index_fill_(0, slots * logits.shape[-1] + tokens, True)
    return tokens


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    # torch's own argmax on the CPU is not vectorised: over 150,000 tokens it takes 20 times as long.
    return logits.argmax(-1) if logits.is_cuda else torch.from_numpy(logits.numpy().argmax(-1))


def _drawn(logits, choice: Choice, temperature, top_p, noise) -> torch.Tensor:
    probabilities = torch.softmax(logits / temperature.clamp(min=1e-6), dim=-1)
    if choice.has_nucleus:
        probabilities = _nucleus(probabilities, top_p)
    # The first of exponential clocks to ring, each at its probability as rate, is a draw from them: a multinomial that
    # needs no look at its sums.
    return _likeliest(probabilities / noise)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero what lies outside the smallest set of tokens that holds ``top_p`` (Holtzman et al., arXiv 1904.09751)."""
    ordered, places = probabilities.sort(descending=True)
    # A token stays while what stands before it has not yet filled the nucleus; the likeliest always stays.
    outside = (ordered.cumsum(-1) - ordered >= top_p) & (top_p < 1)
    return probabilities.masked_fill(torch.zeros_like(outside).scatter_(-1, places, outside), 0.0)
