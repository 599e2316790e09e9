"""LoRA on the embedded model: tuning it to another style of commentary.

The model already recognizes the events; adapters trained for a few minutes teach it another word order. The tower is
frozen, so footage is encoded once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from streamingvlm.config import VideoConfig, resolve
from streamingvlm.data.chunks import CachedTokenizer
from streamingvlm.errors import ConfigError
from streamingvlm.model.loading import load_model
from streamingvlm.pitch.styles import STYLES
from streamingvlm.training.adapters import LoraSettings, save_adapter, with_lora_
from streamingvlm.training.collate import Collate
from streamingvlm.training.pitch.pitch_clips import ClipDataset, ClipSettings
from streamingvlm.training.pitch.pitch_footage import encode_footage
from streamingvlm.training.pitch.recipe import FootagePlan
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import fit_
from streamingvlm.turns import TurnFormat


@dataclass(frozen=True)
class RestylingPlan:
    """Everything that determines an adapter: seed, base model, style, and training settings."""

    seed: int
    base: str
    style: str
    lora: LoraSettings
    fit: FitSettings
    footage: FootagePlan
    clips: ClipSettings

    def __post_init__(self):
        if self.style not in STYLES:
            raise ConfigError(f"style={self.style} is unknown; choose one of {', '.join(STYLES)}")


def restyle(plan: RestylingPlan, folder: str | Path, *, device: str = "cpu", **fit_arguments) -> list[dict[str, float]]:
    """Train adapters on commentary in the plan's style, save them to ``folder``, and return the loss curve.

    fit_arguments: further arguments of `fit_`, such as callbacks.
    """
    set_seed(plan.seed)
    model = load_model(plan.base, device=device, dtype="float32")
    turn_format = TurnFormat.of(
        CachedTokenizer(model.tokenizer), model.family, resolve(VideoConfig, None, model.stream_defaults)
    )
    footage = plan.footage.render()
    encode_footage(footage, Tower(model.hf), num_mirrorings=plan.footage.num_mirrorings)
    clips = ClipDataset(
        footage,
        turn_format,
        plan.clips,
        num_examples=plan.fit.num_steps * plan.fit.batch_size,
        seed=plan.seed,
        style=STYLES[plan.style],
    )
    adapted = with_lora_(model, plan.lora)
    curve = fit_(
        SFTModel(adapted),
        clips,
        Collate(model.tokenizer.pad_token_id),
        plan.fit,
        seed=plan.seed,
        folder=Path(folder),
        device=device,
        **fit_arguments,
    )
    save_adapter(adapted, model.tokenizer, folder)
    return curve


def restyling_from(options: Mapping[str, Any]) -> RestylingPlan:
    """Read a plan from the mappings of a configuration file. Raises ConfigError for unknown and missing names."""
    try:
        parts = {
            name: kind(**options[name])
            for name, kind in (
                ("lora", LoraSettings),
                ("fit", FitSettings),
                ("footage", FootagePlan),
                ("clips", ClipSettings),
            )
        }
        return RestylingPlan(int(options["seed"]), str(options["base"]), str(options["style"]), **parts)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the key restyling cannot be read ({error}); see experiment/pitch_lora.yaml of the "
            "configs, whose folder `streamingvlm info` names"
        ) from error
