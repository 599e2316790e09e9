"""The model of supervised fine-tuning: tokens and vision in, one loss per supervised token out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from streamingvlm.errors import ConfigError
from streamingvlm.model.checkpoint import ADAPTER_WEIGHTS, save_checkpoint
from streamingvlm.model.loading import quiet_transformers
from streamingvlm.model.vision import deepstack_inputs
from streamingvlm.training.adapters import read_trained_base, write_trained_base
from streamingvlm.training.examples import IGNORED_LABEL


class SFTModel(nn.Module):
    """The language model of a Hugging Face model with the loss of its replies.

    The head runs at supervised positions only; about nine tokens in ten are not supervised. With ``train_vision`` the
    vision tower is part of this module and is trained. Otherwise it is frozen and not part of it, and each batch brings
    vision features.

    model: a Hugging Face model, or a peft model around one; it shares its weights with this module.
    """

    def __init__(self, model: PreTrainedModel, *, train_vision: bool = False):
        super().__init__()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.model.visual.requires_grad_(train_vision)
        self.text = base.model.language_model
        self.head = base.lm_head
        self.visual = base.model.visual if train_vision else None
        self.vision_pad_id = base.config.video_token_id
        self._full_model = [model]  # in a list: as a submodule it would be wrapped, moved and saved twice
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
        cu_seqlens: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return ``losses`` [A], float32, one per supervised token. `Collate` documents the shapes of the inputs."""
        if pixels is not None:
            vision, deepstack = self._encode(pixels, grids)
        embeds = self.text.embed_tokens(input_ids)
        is_vision = input_ids == self.vision_pad_id
        embeds = embeds.masked_scatter(is_vision[..., None], vision.to(embeds.dtype))
        hidden = self.text(
            inputs_embeds=embeds,
            position_ids=position_ids,
            use_cache=False,
            **deepstack_inputs(is_vision, deepstack),
            **_flash_boundaries(cu_seqlens),
        ).last_hidden_state
        targets = labels[:, 1:]
        is_supervised = targets != IGNORED_LABEL
        logits = self.head(hidden[:, :-1][is_supervised])
        return {"losses": nn.functional.cross_entropy(logits.float(), targets[is_supervised], reduction="none")}

    def _encode(self, pixels: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        output = self.visual(pixels.to(self.visual.dtype), grid_thw=grids)
        return output.pooler_output, getattr(output, "deepstack_features", None) or ()

    @property
    def full_model(self) -> nn.Module:
        """The model passed to the constructor: a Hugging Face model, or a peft model around one."""
        return self._full_model[0]

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embeddings; accelerate asks for them, to keep tied weights in one shard."""
        return self.text.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the head; accelerate asks for it, as for the input embeddings."""
        return self.head

    @property
    def layer_classes(self) -> list[str]:
        """Class names of the transformer layers, the unit of sharding and of activation checkpointing."""
        layers = [self.text.layers[0], *([self.visual.blocks[0]] if self.visual else [])]
        return sorted({type(layer).__name__ for layer in layers})

    def checkpoint_activations_(self):
        """Store only the inputs of each layer and recompute its activations in the backward pass."""
        for part in (self.text, self.visual):
            if part is not None:
                # transformers 5.17 has only the older name.
                enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
                enable({"use_reentrant": False})

    def use_liger_kernels_(self):
        """Use Liger's kernels for norms, rotary embeddings and gated MLPs. Raises ConfigError if not installed.

        Liger's fused losses are not used: only few positions go through the head here.
        """
        if not is_liger_kernel_available():
            raise ConfigError(
                'liger=true needs liger-kernel, which is not installed; run: pip install "streamingvlm[liger]"'
            )
        apply_liger_kernel(self.full_model, {"cross_entropy": False, "fused_linear_cross_entropy": False})

    def save_pretrained(self, folder: str | Path, state: dict[str, torch.Tensor] | None = None):
        """Write the full model, or its adapters and whatever else was trained, as a Hugging Face folder.

        state: the gathered state dict of this module, if its weights are sharded over processes.
        """
        model = self.full_model
        state = self.state_dict() if state is None else state
        trained = {saved: state[name] for name, saved in self._saved_names.items()}
        others = {name: weights for name, weights in model.named_parameters() if name not in trained}
        with quiet_transformers():
            # Whether embeddings are saved with adapters, peft would else ask the hub by the base model's name.
            options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
            state = trained | {name: weights.detach() for name, weights in others.items()}
            save_checkpoint(model, Path(folder), state_dict=state, **options)
        if hasattr(model, "peft_config"):
            write_trained_base(model, state, folder)

    @property
    def num_saved_bytes(self) -> int:
        """Bytes that `save_pretrained` writes."""
        model = self.full_model
        saved = {id(w): w for w in (self if hasattr(model, "peft_config") else model).parameters()}
        return sum(w.nbytes for w in saved.values() if w.requires_grad or not hasattr(model, "peft_config"))

    def saved_state(self, folder: str | Path) -> dict[str, torch.Tensor]:
        """Read what `save_pretrained` wrote as a state dict of this module; of a peft model, what was trained."""
        model = self.full_model
        if hasattr(model, "peft_config"):
            weights = load_file(Path(folder) / ADAPTER_WEIGHTS) | read_trained_base(folder)
            in_file = {name: saved.replace(f".{model.active_adapter}", "") for name, saved in self._saved_names.items()}
            return {name: weights[saved] for name, saved in in_file.items() if saved in weights}
        dtype = next(self.text.parameters()).dtype
        with quiet_transformers():
            loaded = type(model).from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        weights = dict(loaded.named_parameters())
        return {name: weights[saved].detach() for name, saved in self._saved_names.items()}


def _names_in(model: nn.Module, part: nn.Module) -> dict[str, str]:
    """Map the name of each parameter of ``part`` to its name in ``model``; tied weights have one name there."""
    names = {id(weights): name for name, weights in model.named_parameters()}
    return {name: names[id(weights)] for name, weights in part.named_parameters(remove_duplicate=False)}


def _flash_boundaries(cu_seqlens: torch.Tensor | None) -> dict[str, torch.Tensor | int]:
    """Return the pack boundaries as flash attention's arguments; other kernels derive them from the position ids."""
    if cu_seqlens is None:
        return {}
    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    return {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": longest, "max_length_k": longest}
