"""To speak or to stay silent: how probable silence was, and a threshold on it in place of the model's own choice.

A threshold on the silent token is how VideoLLM-online (arXiv 2406.11816) corrects a model that is too quiet.
"""

import torch

from streamingvlm.config import SamplingConfig
from streamingvlm.turns import TurnFormat


def silence_probability(logits: torch.Tensor, turn_format: TurnFormat) -> float:
    """The probability that the model itself, before any penalty or temperature, gives to a reply that says nothing.

    logits: [V], at the start of the reply.
    """
    return float(logits.float().softmax(-1)[list(turn_format.silent_ids)].sum())


def decide_silence_(
    logits: torch.Tensor, silence: float, config: SamplingConfig, turn_format: TurnFormat
) -> tuple[int, ...]:
    """Apply the threshold: return the silent reply to give, or none and forbid silence in ``logits``, in place.

    Without a threshold there is nothing to decide.
    """
    if config.silence_threshold is None:
        return ()
    if silence >= config.silence_threshold:
        return turn_format.silent_reply
    logits[list(turn_format.silent_ids)] = -torch.inf
    return ()
