"""The model as training sees it: tokens and vision in, the loss of the words that it should have said out."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from streamingvlm.model.vision import deepstack_inputs
from streamingvlm.training.examples import IGNORED_LABEL


class Commentator(nn.Module):
    """The language model of a Hugging Face model under the loss of its replies.

    Only supervised positions go through the head: nine tokens in ten are never asked for.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.text = model.model.language_model
        self.head = model.lm_head
        self.vision_pad_id = model.config.video_token_id

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        vision: torch.Tensor,
        deepstack: Sequence[torch.Tensor] = (),
    ) -> dict[str, torch.Tensor]:
        """Shapes as `Collate` makes them. Returns the mean loss over the labels."""
        embeds = self.text.embed_tokens(input_ids)
        is_vision = input_ids == self.vision_pad_id
        embeds = embeds.masked_scatter(is_vision[..., None], vision.to(embeds.dtype))
        hidden = self.text(
            inputs_embeds=embeds,
            position_ids=position_ids,
            use_cache=False,
            **deepstack_inputs(is_vision, deepstack),
        ).last_hidden_state
        targets = labels[:, 1:]
        is_asked = targets != IGNORED_LABEL
        logits = self.head(hidden[:, :-1][is_asked])
        return {"loss": nn.functional.cross_entropy(logits.float(), targets[is_asked])}
