"""The model as training sees it: tokens and vision in, the loss of the words that it should have said out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from streamingvlm.errors import ConfigError
from streamingvlm.model.loading import quiet_transformers
from streamingvlm.model.vision import deepstack_inputs
from streamingvlm.training.examples import IGNORED_LABEL

_ADAPTER_FILE = "adapter_model.safetensors"


class SFTModel(nn.Module):
    """The language model of a Hugging Face model under the loss of its replies.

    Only supervised positions go through the head: nine tokens in ten are never asked for. The vision tower is a part
    of it, and learns, with ``train_vision``; else it stands still outside, and the batch brings what it makes of the
    video. model: a Hugging Face model, or adapters of peft around one; it shares its weights with this module.
    """

    def __init__(self, model: PreTrainedModel, *, train_vision: bool = False):
        super().__init__()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.model.visual.requires_grad_(train_vision)
        self.text = base.model.language_model
        self.head = base.lm_head
        self.visual = base.model.visual if train_vision else None
        self.vision_pad_id = base.config.video_token_id
        self._whole = [model]  # in a list: a submodule would be wrapped, moved and saved twice
        self._saved_names = _names_in(model, self)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        vision: torch.Tensor | None = None,
        deepstack: Sequence[torch.Tensor] = (),
        pixels: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Shapes as `Collate` makes them. Returns ``losses`` [A], float32, one for each token that is asked for."""
        if pixels is not None:
            vision, deepstack = self._see(pixels, grids)
        embeds = self.text.embed_tokens(input_ids)
        is_vision = input_ids == self.vision_pad_id
        embeds = embeds.masked_scatter(is_vision[..., None], vision.to(embeds.dtype))
        hidden = self.text(
            inputs_embeds=embeds,
            position_ids=position_ids,
            use_cache=False,
            **deepstack_inputs(is_vision, deepstack),
            **_flash_boundaries(starts),
        ).last_hidden_state
        targets = labels[:, 1:]
        is_asked = targets != IGNORED_LABEL
        logits = self.head(hidden[:, :-1][is_asked])
        return {"losses": nn.functional.cross_entropy(logits.float(), targets[is_asked], reduction="none")}

    def _see(self, pixels: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        seen = self.visual(pixels.to(self.visual.dtype), grid_thw=grids)
        return seen.pooler_output, getattr(seen, "deepstack_features", None) or ()

    @property
    def whole(self) -> nn.Module:
        """The Hugging Face model, or the adapters around one, that this module is a part of."""
        return self._whole[0]

    def get_input_embeddings(self) -> nn.Module:
        """From ids to embeddings; accelerate asks for it, to keep weights that are tied in one shard."""
        return self.text.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """From hidden states to logits."""
        return self.head

    @property
    def layer_classes(self) -> list[str]:
        """Names of the classes of a layer: what is to be sharded or checkpointed one by one."""
        layers = [self.text.layers[0], *([self.visual.blocks[0]] if self.visual else [])]
        return sorted({type(layer).__name__ for layer in layers})

    def checkpoint_activations_(self):
        """Keep what goes into each layer alone, and compute the layer again for its gradient."""
        for part in (self.text, self.visual):
            if part is not None:
                # The older name is all that transformers 5.17 has.
                enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
                enable({"use_reentrant": False})

    def use_liger_kernels_(self):
        """Take Liger's kernels for norms, rotations and gated layers. Raises ConfigError where it is not installed.

        Its losses are left out: only the few positions that are asked for go through the head here.
        """
        if not is_liger_kernel_available():
            raise ConfigError(
                'liger=true needs liger-kernel, which is not installed; pip install "streamingvlm[liger]"'
            )
        apply_liger_kernel(self.whole, {"cross_entropy": False, "fused_linear_cross_entropy": False})

    def save_pretrained(self, folder: str | Path, state: dict[str, torch.Tensor] | None = None):
        """Write the whole model, or its adapters, as a Hugging Face folder.

        state: this module's own state dict, where its weights are spread over processes and had to be gathered.
        """
        whole = self.whole
        state = self.state_dict() if state is None else state
        trained = {saved: state[name] for name, saved in self._saved_names.items()}
        others = {name: weights for name, weights in whole.named_parameters() if name not in trained}
        with quiet_transformers():
            whole.save_pretrained(folder, state_dict=trained | {name: w.detach() for name, w in others.items()})

    @property
    def num_saved_bytes(self) -> int:
        """Bytes of what `save_pretrained` writes."""
        whole = self.whole
        saved = {id(w): w for w in (self if hasattr(whole, "peft_config") else whole).parameters()}
        return sum(w.nbytes for w in saved.values() if w.requires_grad or not hasattr(whole, "peft_config"))

    def saved_state(self, folder: str | Path) -> dict[str, torch.Tensor]:
        """Read back what `save_pretrained` wrote, as a state dict of this module; of adapters, the adapters alone."""
        whole = self.whole
        if hasattr(whole, "peft_config"):
            weights = load_file(Path(folder) / _ADAPTER_FILE)
            in_file = {name: saved.replace(f".{whole.active_adapter}", "") for name, saved in self._saved_names.items()}
            return {name: weights[saved] for name, saved in in_file.items() if saved in weights}
        dtype = next(self.text.parameters()).dtype
        with quiet_transformers():
            read = type(whole).from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        weights = dict(read.named_parameters())
        return {name: weights[saved].detach() for name, saved in self._saved_names.items()}


def _names_in(whole: nn.Module, part: nn.Module) -> dict[str, str]:
    """The name in ``whole`` of each parameter of ``part``; weights that are tied have one name there, the first."""
    names = {id(weights): name for name, weights in whole.named_parameters()}
    return {name: names[id(weights)] for name, weights in part.named_parameters(remove_duplicate=False)}


def _flash_boundaries(starts: torch.Tensor | None) -> dict[str, torch.Tensor | int]:
    """Name the arguments by which flash attention is told of a pack; other kernels read it off the position ids."""
    if starts is None:
        return {}
    longest = int((starts[1:] - starts[:-1]).max())
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
