"""Choosing the next token: repetition penalty, temperature, nucleus, all vectorised."""

from collections.abc import Iterable

import torch

from streamingvlm.config import SamplingConfig


class Sampler:
    """Chooses tokens for one stream and remembers which ids it has in sight.

    The penalty sees every id that the cache holds, vision and markup included, and the reply so far, as the released
    code's does (Keskar et al., CTRL, arXiv 1909.05858, Sec. 4.1).
    """

    def __init__(self, config: SamplingConfig, device: torch.device):
        self.config = config
        self.seen_ids = torch.empty(0, dtype=torch.long, device=device)
        self.generator = torch.Generator(device=device)
        self.reset_()

    def reset_(self):
        """Start the random stream of the seed again and forget what was seen."""
        self.generator.manual_seed(self.config.seed)
        self.see_only_(())

    def fork(self) -> "Sampler":
        """A sampler that goes on as this one would, and leaves this one as it is."""
        other = Sampler(self.config, self.seen_ids.device)
        other.generator.set_state(self.generator.get_state())
        other.seen_ids = self.seen_ids
        return other

    def see_only_(self, ids: Iterable[int]):
        """Let the penalty see ``ids`` and nothing else."""
        self.seen_ids = torch.tensor(list(set(ids)), dtype=torch.long, device=self.seen_ids.device)

    def choose_(self, logits: torch.Tensor) -> int:
        """Choose the next token from ``logits`` [V], which are penalised in place, and remember it."""
        token = self._draw(self._penalise_(logits.float()))
        self.seen_ids = torch.cat([self.seen_ids, self.seen_ids.new_tensor([token])])
        return token

    def _penalise_(self, logits: torch.Tensor) -> torch.Tensor:
        penalty = self.config.repetition_penalty
        if penalty == 1.0:
            return logits
        seen = logits[self.seen_ids]
        # An id that is listed twice is written twice with the same value.
        return logits.index_put_((self.seen_ids,), torch.where(seen > 0, seen / penalty, seen * penalty))

    def _draw(self, logits: torch.Tensor) -> int:
        if self.config.temperature == 0:
            # torch's own argmax on the CPU is not vectorised: over 150,000 tokens it takes 20 times as long.
            return int(logits.argmax() if logits.is_cuda else logits.numpy().argmax())
        probabilities = torch.softmax(logits / self.config.temperature, dim=-1)
        if self.config.top_p < 1:
            probabilities = _nucleus(probabilities, self.config.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero what lies outside the smallest set of tokens that holds ``top_p`` (Holtzman et al., arXiv 1904.09751)."""
    ordered, places = probabilities.sort(descending=True)
    # A token stays while what stands before it has not yet filled the nucleus; the likeliest always stays.
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.index_fill(-1, places[outside], 0.0)
