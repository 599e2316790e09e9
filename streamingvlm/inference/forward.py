"""The forward passes: what is waiting of many streams in one, then one token of each that speaks, again and again.

The host says what is to be fed (decoder.py) and when (engine.py); here it is done, and tokens are chosen.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from streamingvlm.cache.kv_cache import KVPool
from streamingvlm.device import on_device
from streamingvlm.inference.decoder import StreamingDecoder
from streamingvlm.model.attention_metadata import AttentionMetadata, SequenceSlice
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.text_forward import Deepstack, LogitsIndices, forward_text

Meal = tuple[StreamingDecoder, list[SequenceSlice]]


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
    places = _last_places(meals)
    lasts = [replace(part[-1], first=part[-1].stop - 1) for _, part in meals]
    ends = LogitsIndices(places, AttentionMetadata(pool, lasts, cos[places], sin[places]))
    embeds, deepstack = _inputs(model, meals)
    hidden = forward_text(
        model.text_model, embeds, AttentionMetadata(pool, runs, cos, sin), ends=ends, deepstack=deepstack
    )
    for decoder, part in meals:
        decoder.fed_(part)
    return model.logits(hidden)


def feed_all_(model: StreamingModel, decoder: StreamingDecoder):
    """Feed all that is waiting of one stream, outside of any batch."""
    decoder.prepare_()
    if runs := decoder.waiting():
        feed_(model, decoder.kv.pool, [(decoder, runs)])


def _inputs(model: StreamingModel, meals: Sequence[Meal]) -> tuple[torch.Tensor, Deepstack | None]:
    """Embeddings [T, hidden size] of all tokens, vision in its place, and what deepstack adds, if anything."""
    ids = [token for decoder, part in meals for run in part for token in decoder.ids[run.first : run.stop]]
    embeds = model.text_model.embed_tokens(on_device(ids, torch.long, model.device))
    places, seen, offset = [], [], 0
    for decoder, part in meals:
        for place, levels in decoder.pending_vision(part):
            places.append(torch.arange(offset + place, offset + place + len(levels[0])))
            seen.append(levels)
        offset += sum(map(len, part))
    if not seen:
        return embeds, None
    where = on_device(torch.cat(places), torch.long, model.device)
    embeddings, *deepstack = (torch.cat(level) for level in zip(*seen, strict=True))
    return embeds.index_copy(0, where, embeddings.to(embeds.dtype)), Deepstack(
        where, [level.to(embeds.dtype) for level in deepstack]
    )


def _last_places(meals: Sequence[Meal]) -> torch.Tensor:
    """Where the last token of each stream stands among all tokens."""
    lengths = torch.tensor([sum(map(len, part)) for _, part in meals])
    return on_device(lengths.cumsum(0) - 1, torch.long, meals[0][0].model.device)
