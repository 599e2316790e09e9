"""Sampling the next token of many streams at once: repetition penalty, temperature and nucleus, each stream by its own.

All of it is vectorised over streams, of fixed shapes, and without a branch on what the tensors hold, so that it can be
part of a CUDA graph. A stream draws from its own generator: its tokens do not depend on the other streams of a batch.

Shapes: N streams, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from streamingvlm.config import SamplingConfig
from streamingvlm.device import on_device

# The signature of `sample_tokens`: the seam through which tests and other samplers choose tokens.
SampleTokens = Callable[..., torch.Tensor]


class PenaltyMask:
    """Which token ids the repetition penalty covers: ``mask`` [slots + 1, V], allocated when a stream first needs it.

    A stream's row covers every id in its cache, vision and markup included, and the reply so far, as in the released
    code (the penalty is that of CTRL, arXiv 1909.05858, Sec. 4.1). The last row is for the padding of a batch.
    """

    def __init__(self, num_slots: int, num_ids: int, device: torch.device):
        self.num_slots, self.num_ids, self.device = num_slots, num_ids, device
        self._mask: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """Bool [slots + 1, V], True where the penalty applies."""
        if self._mask is None:
            self._mask = torch.zeros(self.num_slots + 1, self.num_ids, dtype=torch.bool, device=self.device)
        return self._mask


class Sampler:
    """The sampling state of one stream: settings, random generator, and its row ``slot`` of the penalty mask."""

    def __init__(self, config: SamplingConfig, penalty_mask: PenaltyMask, slot: int):
        self.config = config
        self.penalty_mask = penalty_mask
        self.slot = slot
        self.generator = torch.Generator(device=penalty_mask.device)
        self.reset()

    def reset(self):
        """Seed the generator again and clear the penalty."""
        self.generator.manual_seed(self.config.seed)
        self.reset_penalty(())

    def fork(self) -> "Sampler":
        """Return a sampler that draws what this one would draw, and does not advance its generator."""
        other = Sampler(self.config, self.penalty_mask, self.slot)
        other.generator.set_state(self.generator.get_state())
        return other

    @property
    def is_random(self) -> bool:
        """Whether tokens are drawn; at temperature 0 the likeliest is taken."""
        return self.config.temperature > 0

    @property
    def has_penalty(self) -> bool:
        """Whether there is a repetition penalty."""
        return self.config.repetition_penalty != 1.0

    def reset_penalty(self, ids: Iterable[int]):
        """Apply the penalty to ``ids`` and to no others."""
        if self.has_penalty:
            row = self.penalty_mask.mask[self.slot].zero_()
            row.index_fill_(0, on_device(list(set(ids)), torch.long, row.device), True)


class SamplingFeatures(NamedTuple):
    """Which parts of sampling any stream of a batch uses: they decide the operators, and the host knows them."""

    has_penalty: bool = False
    is_random: bool = False
    has_nucleus: bool = False

    @classmethod
    def of(cls, samplers: Sequence[Sampler]) -> "SamplingFeatures":
        """Return the features that these streams use together."""
        return cls(
            any(sampler.has_penalty for sampler in samplers),
            any(sampler.is_random for sampler in samplers),
            any(sampler.is_random and sampler.config.top_p < 1 for sampler in samplers),
        )

    def union(self, other: "SamplingFeatures") -> "SamplingFeatures":
        """Return the union of the two feature sets."""
        return SamplingFeatures(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


# The order of the columns of ``settings``.
_COLUMNS = ("repetition_penalty", "temperature", "top_p")


def settings_of(samplers: Sequence[Sampler]) -> list[list[float]]:
    """Return penalty, temperature and top_p of each stream, [N][3]."""
    return [[getattr(sampler.config, name) for name in _COLUMNS] for sampler in samplers]


def draw_noise_(noise: torch.Tensor, samplers: Sequence[Sampler]):
    """Fill the row of ``noise`` [N, V] of each stream that draws, from its own generator."""
    for row, sampler in zip(noise, samplers, strict=False):
        if sampler.is_random:
            row.exponential_(generator=sampler.generator)


def sample_tokens(
    logits: torch.Tensor,
    features: SamplingFeatures,
    *,
    settings: torch.Tensor,
    slots: torch.Tensor,
    penalty_mask: PenaltyMask,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Choose the next token [N] of each stream from ``logits`` [N, V], and add it to the penalty mask.

    settings: [N, 3], as `settings_of` orders them; slots: [N], rows of the mask; noise: exponential [N, V], read if
    ``features.is_random``.
    """
    logits = logits.float()
    penalty, temperature, top_p = settings.unsqueeze(-1).unbind(1)
    if features.has_penalty:
        factor = torch.where(penalty_mask.mask[slots], penalty, 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
    tokens = _argmax(logits)
    if features.is_random:
        drawn = _draw(logits, features, temperature, top_p, noise)
        tokens = torch.where(temperature[:, 0] == 0, tokens, drawn)
    if features.has_penalty:
        # One flat index: assignment by two would copy the value from the host, which a graph cannot capture.
        penalty_mask.mask.view(-1).index_fill_(0, slots * logits.shape[-1] + tokens, True)
    return tokens


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    # torch's argmax is not vectorised on the CPU: over 150,000 tokens it takes 20 times as long as NumPy's.
    return logits.argmax(-1) if logits.is_cuda else torch.from_numpy(logits.numpy().argmax(-1))


def _draw(logits, features: SamplingFeatures, temperature, top_p, noise) -> torch.Tensor:
    probabilities = torch.softmax(logits / temperature.clamp(min=1e-6), dim=-1)
    if features.has_nucleus:
        probabilities = _keep_nucleus(probabilities, top_p)
    # Exponential race: the argmax of p / noise is a draw from p, and unlike multinomial it reads no sums on the host.
    return _argmax(probabilities / noise)


def _keep_nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero all but the smallest set of tokens that holds ``top_p`` (Holtzman et al., arXiv 1904.09751)."""
    ordered, order = probabilities.sort(descending=True)
    # A token stays if those before it hold less than top_p, so the likeliest always stays.
    outside = (ordered.cumsum(-1) - ordered >= top_p) & (top_p < 1)
    return probabilities.masked_fill(torch.zeros_like(outside).scatter_(-1, order, outside), 0.0)
