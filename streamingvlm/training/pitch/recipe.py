"""The recipe of the embedded model: teach the tower to see, then the language model to speak, stage by stage.

Each stage leaves a Hugging Face folder, and a run that was broken off goes on from the last one that is complete.
"""

import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, set_seed

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.data.chunks import CachedTokenizer
from streamingvlm.errors import ConfigError
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.stream_settings import stream_settings
from streamingvlm.pitch.dice import hashed
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.collate import Collate
from streamingvlm.training.pitch.alignment import SecondDataset, TowerWithHeads
from streamingvlm.training.pitch.architecture import PICTURE_PIXELS, build_model, tiny_config
from streamingvlm.training.pitch.clips import ClipDataset, ClipSettings
from streamingvlm.training.pitch.drills import DrillDataset, DrillSettings, Mixed
from streamingvlm.training.pitch.footage import Footage, encode_, film
from streamingvlm.training.pitch.look_back import hold_, look_back_
from streamingvlm.training.pitch.together import SeeingCommentator
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import FitSettings, fit_
from streamingvlm.turns import TurnFormat

_LOG = logging.getLogger(__name__)
_RECORD = "training.json"
_MODEL_TYPE = "qwen2_5_vl"
# The text window is read anew when it is cut: by 20 tokens at once, in one second of ten instead of six.
_TEXT_STEP_TOKENS = 20
_VIDEO = VideoConfig(min_pixels=PICTURE_PIXELS**2, max_pixels=PICTURE_PIXELS**2)


@dataclass(frozen=True)
class FootagePlan:
    """The first ``duration_s`` seconds of each of ``num_matches`` matches, of seeds from ``first_seed`` on."""

    first_seed: int
    num_matches: int
    duration_s: int
    num_mirrorings: int = 1

    def film(self) -> list[Footage]:
        """Play and render them."""
        return [film(self.first_seed + number, self.duration_s) for number in range(self.num_matches)]


@dataclass(frozen=True)
class Stage:
    """The tower learns to see, or the language model learns from clips, drills or both while the tower rests.

    with_tower: the tower does not rest, it learns with the language model from the pictures of the clips.
    after: the stage whose weights it goes on from, by default the one before it; two after the same one draw alike.
    footage: of the tower's seconds or of the clips; clips, drills: None for none of them, a tower's stage has neither.
    drills_percent: of the examples where there are clips, too.
    """

    name: str
    fit: FitSettings
    footage: FootagePlan | None = None
    clips: ClipSettings | None = None
    drills: DrillSettings | None = None
    drills_percent: int = 0
    with_tower: bool = False
    after: str | None = None

    @property
    def is_of_tower(self) -> bool:
        """Whether it is the tower alone that learns."""
        return self.clips is None and self.drills is None

    @property
    def changes_tower(self) -> bool:
        """Whether pictures look otherwise after it than before."""
        return self.is_of_tower or self.with_tower


@dataclass(frozen=True)
class Recipe:
    """All that decides a model: the seed, the stages in their order, the sizes as `tiny_config` takes them.

    look_back: the language model is born with heads that look back (`look_back_`), which no stage trains.
    num_averaged: the model is the mean of the weights after so many last stages (model soups, arXiv 2203.05482).
    """

    seed: int
    stages: Sequence[Stage]
    sizes: Mapping[str, int] = field(default_factory=dict)
    look_back: bool = False
    num_averaged: int = 1

    def __post_init__(self):
        if not 1 <= self.num_averaged <= len(self.stages):
            raise ConfigError(
                f"num_averaged={self.num_averaged}, but the recipe has {len(self.stages)} stages; average one or more"
            )
        for number, stage in enumerate(self.stages):
            before = [earlier.name for earlier in self.stages[:number]]
            if stage.after is not None and stage.after not in before:
                raise ConfigError(
                    f"stage {stage.name} goes on after {stage.after}, which is no stage before it; choose from "
                    f"{', '.join(before)}"
                )

    def path(self, number: int) -> list[int]:
        """The stages that lead to the weights after stage ``number``: their numbers, that one last."""
        after = self.stages[number].after
        before = number - 1 if after is None else [stage.name for stage in self.stages].index(after)
        return [*(self.path(before) if before >= 0 else ()), number]


class Run:
    """A recipe being followed in a folder: one subfolder a stage."""

    def __init__(self, recipe: Recipe, folder: str | Path, *, device: str = "cpu"):
        self.recipe = recipe
        self.folder = Path(folder)
        self.device = device
        self.tokenizer = build_tokenizer()
        self._encoded: tuple[object, list[Footage]] = (None, [])

    def follow(self) -> Path:
        """Go through the stages that are not complete yet; return the folder of the last."""
        for number, stage in enumerate(self.recipe.stages):
            folder = self._stage_folder(number)
            if (folder / _RECORD).is_file():
                continue
            started = time.monotonic()
            set_seed(self._seed_of(number) % 2**32)
            model = self._model_before(number)
            loss_curve = self._teach_(model, number, stage)
            _save(model, self.tokenizer, folder)
            record = {"minutes": (time.monotonic() - started) / 60, "loss_curve": loss_curve}
            (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
            _LOG.info("%s: loss %.3f after %.1f min", folder.name, loss_curve[-1]["loss"], record["minutes"])
        return folder

    def averaged(self) -> Qwen2_5_VLForConditionalGeneration:
        """The model of the last stage with the mean of the weights after the last ones, as many as are averaged."""
        last = len(self.recipe.stages) - 1
        model = _read(self._stage_folder(last))
        others = [_read(self._stage_folder(last - back)) for back in range(1, self.recipe.num_averaged)]
        with torch.no_grad():
            for weights, *more in zip(model.parameters(), *(other.parameters() for other in others), strict=True):
                weights.copy_(torch.stack([weights, *more]).mean(0))
        return model

    def _seed_of(self, number: int) -> int:
        return hashed(self.recipe.seed, len(self.recipe.path(number)) - 1)

    def _stage_folder(self, number: int) -> Path:
        return self.folder / f"{number}-{self.recipe.stages[number].name}"

    def _model_before(self, number: int) -> Qwen2_5_VLForConditionalGeneration:
        path = self.recipe.path(number)
        if len(path) == 1:
            model = build_model(tiny_config(self.tokenizer, **self.recipe.sizes))
            if self.recipe.look_back:
                look_back_(model)
            return model.to(self.device)
        return _read(self._stage_folder(path[-2])).to(self.device)

    def _teach_(self, model: Qwen2_5_VLForConditionalGeneration, number: int, stage: Stage) -> list[dict[str, float]]:
        draw = {"num_examples": stage.fit.num_steps * stage.fit.batch_size, "seed": self._seed_of(number)}
        if stage.is_of_tower:
            module = TowerWithHeads(Tower(model)).to(self.device)
            dataset, collate = SecondDataset(stage.footage.film(), **draw), module.collate
        else:
            if self.recipe.look_back:
                hold_(model)
            module = SeeingCommentator(model).to(self.device) if stage.with_tower else SFTModel(model)
            dataset, collate = self._examples(model, number, stage, draw), Collate(self.tokenizer.pad_token_id)
        folder = self._stage_folder(number)
        return fit_(module, dataset, collate, stage.fit, seed=self.recipe.seed, folder=folder, device=self.device)

    def _examples(
        self, model: Qwen2_5_VLForConditionalGeneration, number: int, stage: Stage, draw: Mapping[str, int]
    ) -> Dataset:
        turns = self._turns(model)
        drills = DrillDataset(turns, stage.drills, **draw) if stage.drills else None
        if stage.clips is None:
            return drills
        footage = stage.footage.film() if stage.with_tower else self._encoded_footage(model, number)
        clips = ClipDataset(footage, turns, stage.clips, **draw)
        if drills is None:
            return clips
        return Mixed(clips, drills, drills_percent=stage.drills_percent, seed=draw["seed"])

    def _turns(self, model: Qwen2_5_VLForConditionalGeneration) -> TurnFormat:
        return TurnFormat.of(CachedTokenizer(self.tokenizer), Tower(model).family, _VIDEO)

    def _encoded_footage(self, model: Qwen2_5_VLForConditionalGeneration, number: int) -> list[Footage]:
        """What the tower makes of a stage's footage; stages with the same footage and the same tower share it."""
        plan = self.recipe.stages[number].footage
        before = self.recipe.path(number)[:-1]
        tower_stage = max((n for n in before if self.recipe.stages[n].changes_tower), default=-1)
        if self._encoded[0] != (plan, tower_stage):
            footage = plan.film()
            encode_(footage, Tower(model), num_mirrorings=plan.num_mirrorings)
            self._encoded = (plan, tower_stage), footage
        return self._encoded[1]

    def loss_curves(self) -> dict[str, list[dict[str, float]]]:
        """The loss curve of every complete stage, by name."""
        return {name: record["loss_curve"] for name, record in self._records().items()}

    def history(self) -> dict[str, Any]:
        """Seed, machine, and the steps and minutes of every complete stage, for the model's own record."""
        fits = {stage.name: stage.fit for stage in self.recipe.stages}
        return {
            "seed": self.recipe.seed,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.device}",
            "torch": torch.__version__,
            "stages": {
                name: {
                    "steps": fits[name].num_steps,
                    "batch_size": fits[name].batch_size,
                    "minutes": round(record["minutes"], 1),
                }
                for name, record in self._records().items()
            },
        }

    def _records(self) -> dict[str, Any]:
        files = {stage.name: self._stage_folder(number) / _RECORD for number, stage in enumerate(self.recipe.stages)}
        return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def publish(run: Run, target: str | Path):
    """Write the finished model to ``target``: half the bytes, with its streaming defaults and its history."""
    model = run.averaged().to(torch.bfloat16)
    for part in (model.config.text_config, model.config.vision_config):
        part.dtype = torch.bfloat16
    model.config.streamingvlm = stream_defaults(run.recipe) | {"training": run.history()}
    _save(model, run.tokenizer, Path(target))


def stream_defaults(recipe: Recipe) -> dict[str, Any]:
    """How a stream is to be watched with the model: as it was trained."""
    clips = next(stage.clips for stage in reversed(recipe.stages) if stage.clips)
    # The last score is read from text that left its turn. With the keys of that turn it is misread now and then. The
    # clips have previous text of any length: nothing is new to the model where the window is a step short of full.
    cache = CacheConfig(
        text_sink_tokens=clips.text_sink_tokens,
        text_window_tokens=clips.text_window_tokens,
        text_step_tokens=_TEXT_STEP_TOKENS,
        recompute_text=True,
    )
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.0)
    return stream_settings(cache, _VIDEO, sampling, turn_format=FAMILIES[_MODEL_TYPE].turn_format)


def recipe_from(options: Mapping[str, Any]) -> Recipe:
    """Make a recipe of plain mappings, as a configuration file has them. Raises ConfigError for a name it has not.

    ``clips`` beside the stages goes before the clips of each.
    """
    try:
        stages = [_stage(options.get("clips") or {}, **stage) for stage in options["stages"]]
        more = {name: options[name] for name in ("sizes", "look_back", "num_averaged") if name in options}
        return Recipe(int(options["seed"]), stages, **more)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the recipe cannot be read ({error}); configs/experiment/pitch.yaml is a whole one"
        ) from error


def _stage(
    all_clips: Mapping,
    name: str,
    fit: Mapping,
    footage: Mapping | None = None,
    clips: Mapping | None = None,
    drills: Mapping | None = None,
    drills_percent: int = 0,
    with_tower: bool = False,
    after: str | None = None,
) -> Stage:
    return Stage(
        name,
        FitSettings(**fit),
        None if footage is None else FootagePlan(**footage),
        None if clips is None else ClipSettings(**{**clips, **all_clips}),
        None if drills is None else DrillSettings(**drills),
        drills_percent,
        with_tower,
        after,
    )


def _save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
