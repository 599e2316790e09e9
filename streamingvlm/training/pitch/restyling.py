"""LoRA on the embedded model: the same match, told in another style.

What the model sees and knows of a match it has learnt already; a few minutes of adapters teach it other words in
another order. The tower stands still, so that footage is encoded once.
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
from streamingvlm.training.pitch.clips import ClipDataset, ClipSettings
from streamingvlm.training.pitch.footage import encode_
from streamingvlm.training.pitch.recipe import FootagePlan
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import FitSettings, fit_
from streamingvlm.turns import TurnFormat


@dataclass(frozen=True)
class RestylingPlan:
    """All that decides an adapter: the seed, the model to begin with, the style, and how it is taught."""

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


def restyle(plan: RestylingPlan, folder: str | Path, *, device: str = "cpu", **fitting) -> list[dict[str, float]]:
    """Tune adapters on footage told in the plan's style, save them to ``folder``, and return the loss curve.

    fitting: further arguments of `fit_`, such as callbacks.
    """
    set_seed(plan.seed)
    model = load_model(plan.base, device=device, dtype="float32")
    turns = TurnFormat.of(
        CachedTokenizer(model.tokenizer), model.family, resolve(VideoConfig, None, model.stream_defaults)
    )
    footage = plan.footage.film()
    encode_(footage, Tower(model.hf), num_mirrorings=plan.footage.num_mirrorings)
    clips = ClipDataset(
        footage,
        turns,
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
        **fitting,
    )
    save_adapter(adapted, model.tokenizer, folder)
    return curve


def restyling_from(options: Mapping[str, Any]) -> RestylingPlan:
    """Make a plan of plain mappings, as a configuration file has them. Raises ConfigError for a name it has not."""
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
            f"the restyling cannot be read ({error}); configs/experiment/pitch_lora.yaml is a whole one"
        ) from error
