"""The forward passes: what is waiting of many streams in one, then one token of each that speaks, again and again.

The host says what is to be fed (decoder.py) and when (engine.py); here it is done, and tokens are chosen.
"""

from collections.abc import Sequence

import torch

from streamingvlm.cache.kv_cache import KVPool
from streamingvlm.device import on_device
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.packing import PackedTokens, Run
from streamingvlm.model.vision import deepstack_inputs

Meal = tuple[StreamingDecoder, list[Run]]


def feed_(model: StreamingModel, pool: KVPool, meals: Sequence[Meal]) -> torch.Tensor:
    """Feed what is waiting of several streams in one pass; return the logits [streams, V] after the last token of each.

    meals: streams, each with what ``waiting`` gave of it; all of one pool.
    """
    runs = [run for _, part in meals for run in part]
    rotations = [
        (decoder.kv.cos[run.first : run.stop], decoder.kv.sin[run.first : run.stop])
        for decoder, part in meals
        for run in part
    ]
    cos, sin = (torch.cat(parts) for parts in zip(*rotations, strict=True))
    packed = PackedTokens(pool, runs, cos, sin)
    hidden = _text_states(model, packed, *_inputs(model, meals))
    for decoder, part in meals:
        decoder.fed_(part)
    return model.logits(hidden[0, _last_places(meals)])


def feed_all_(model: StreamingModel, decoder: StreamingDecoder):
    """Feed all that is waiting of one stream, outside of any batch."""
    decoder.prepare_()
    if runs := decoder.waiting():
        feed_(model, decoder.kv.pool, [(decoder, runs)])


def _text_states(model: StreamingModel, packed: PackedTokens, embeds: torch.Tensor, deepstack: dict) -> torch.Tensor:
    """Last states [1, T, hidden size] of embeddings [1, T, hidden size]."""
    # At position 0 the stock rotation is the identity: the packed tokens rotate instead.
    return model.text_model(
        inputs_embeds=embeds,
        position_ids=torch.zeros(3, 1, embeds.shape[1], dtype=torch.long, device=embeds.device),
        past_key_values=packed,
        use_cache=True,
        packed=packed,
        **deepstack,
    ).last_hidden_state


def _inputs(model: StreamingModel, meals: Sequence[Meal]) -> tuple[torch.Tensor, dict]:
    """Embeddings [1, T, hidden size] of all tokens, vision in its place, and the arguments that deepstack needs."""
    ids = [token for decoder, part in meals for run in part for token in decoder.ids[run.first : run.stop]]
    embeds = model.text_model.embed_tokens(on_device(ids, torch.long, model.device))
    places, seen, offset = [], [], 0
    for decoder, part in meals:
        for place, levels in decoder.pending_vision(part):
            places.append(torch.arange(offset + place, offset + place + len(levels[0])))
            seen.append(levels)
        offset += sum(map(len, part))
    if not seen:
        return embeds[None], {}
    where = on_device(torch.cat(places), torch.long, model.device)
    embeddings, *deepstack = (torch.cat(level) for level in zip(*seen, strict=True))
    embeds = embeds.index_copy(0, where, embeddings.to(embeds.dtype))
    is_vision = torch.zeros(1, len(ids), dtype=torch.bool, device=model.device).index_fill_(1, where, True)
    return embeds[None], deepstack_inputs(is_vision, deepstack)


def _last_places(meals: Sequence[Meal]) -> torch.Tensor:
    """Where the last token of each stream stands among all tokens."""
    lengths = torch.tensor([sum(map(len, part)) for _, part in meals])
    return on_device(lengths.cumsum(0) - 1, torch.long, meals[0][0].model.device)
