"""The training recipe of the embedded model: vision tower first, then language model, in stages.

Each stage writes a Hugging Face folder. An interrupted run continues after the last complete stage, or from the newest
checkpoint of the stage that was interrupted.
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
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, TrainerCallback, set_seed

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.data.chunks import CachedTokenizer
from streamingvlm.errors import ConfigError
from streamingvlm.model.checkpoint import save_checkpoint
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.model.stream_settings import stream_settings
from streamingvlm.pitch.camera import draw_camera
from streamingvlm.pitch.dice import Dice, hashed
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.collate import Collate
from streamingvlm.training.pitch.architecture import FRAME_SIZE, build_model, tiny_config
from streamingvlm.training.pitch.drills import DrillDataset, DrillSettings, MixedDataset
from streamingvlm.training.pitch.induction_heads import freeze_induction_heads_, init_induction_heads_
from streamingvlm.training.pitch.pitch_clips import ClipDataset, ClipSettings
from streamingvlm.training.pitch.pitch_footage import Footage, encode_footage, film_match, render_match
from streamingvlm.training.pitch.sft_with_tower import SFTModelWithTower
from streamingvlm.training.pitch.tower import Tower
from streamingvlm.training.pitch.tower_distillation import FilmedSecondsDataset, TowerWithTeacher
from streamingvlm.training.pitch.tower_pretraining import TowerDataset, TowerWithHeads
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.trainer import fit_
from streamingvlm.turns import TurnFormat

_LOG = logging.getLogger(__name__)
_RECORD = "training.json"
_MODEL_TYPE = "qwen2_5_vl"
# The text window is recomputed whenever it is cut. Cut by 20 tokens at once, that is one turn in ten (was six in ten).
_TEXT_STEP_TOKENS = 20
_VIDEO = VideoConfig(min_pixels=FRAME_SIZE**2, max_pixels=FRAME_SIZE**2)


@dataclass(frozen=True)
class FootagePlan:
    """The first ``duration_s`` seconds of ``num_matches`` matches, with consecutive seeds from ``first_seed`` on.

    camera_percent: matches that are filmed by a camera drawn at random (`draw_camera`).
    """

    first_seed: int
    num_matches: int
    duration_s: int
    num_mirrorings: int = 1
    camera_percent: int = 0

    def render(self) -> list[Footage]:
        """Render the footage."""
        return [self._render_match(self.first_seed + number) for number in range(self.num_matches)]

    def _render_match(self, seed: int) -> Footage:
        if Dice(hashed(seed, 4)).chance(self.camera_percent):
            return film_match(seed, self.duration_s, draw_camera(hashed(seed, 5)))
        return render_match(seed, self.duration_s)


@dataclass(frozen=True)
class Stage:
    """One stage: the tower is trained, or the language model is trained on clips, drills or both.

    train_tower: also train the tower, jointly with the language model, from the frames of the clips.
    distil_tower: train the tower alone, to give filmed seconds the features that the base's tower gives rendered ones.
    after: name of the stage whose weights this one starts from; by default the previous stage. Two stages that start
        from the same one draw the same random numbers.
    footage: for training of the tower alone or for the clips; clips, drills: None if unused, both None to train the
        tower alone.
    drills_percent: share of drills among the examples of a stage with clips.
    """

    name: str
    fit: FitSettings
    footage: FootagePlan | None = None
    clips: ClipSettings | None = None
    drills: DrillSettings | None = None
    drills_percent: int = 0
    train_tower: bool = False
    distil_tower: bool = False
    after: str | None = None

    def __post_init__(self):
        if self.distil_tower and not self.trains_tower_alone:
            raise ConfigError(f"stage {self.name} has distil_tower and clips or drills; make two stages of it")

    @property
    def trains_tower_alone(self) -> bool:
        """Return True if the stage pretrains or distils the tower."""
        return self.clips is None and self.drills is None

    @property
    def changes_tower(self) -> bool:
        """Return True if the stage changes the tower, and with it the features of all footage."""
        return self.trains_tower_alone or self.train_tower


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a model: the seed, the stages in order, and the sizes for `tiny_config`.

    induction_heads: initialize the language model with fixed induction heads (`init_induction_heads_`).
    base: checkpoint whose weights the first stage starts from; None for new weights.
    num_averaged: average the weights after this many of the last stages (model soups, arXiv 2203.05482).
    """

    seed: int
    stages: Sequence[Stage]
    sizes: Mapping[str, int] = field(default_factory=dict)
    induction_heads: bool = False
    base: str | None = None
    num_averaged: int = 1

    def __post_init__(self):
        if not 1 <= self.num_averaged <= len(self.stages):
            raise ConfigError(
                f"num_averaged={self.num_averaged}, but the recipe has {len(self.stages)} stages; give a number from 1 "
                f"to {len(self.stages)}"
            )
        for number, stage in enumerate(self.stages):
            if stage.distil_tower and self.base is None:
                raise ConfigError(f"stage {stage.name} has distil_tower, but the recipe has no base; give recipe.base")
            before = [earlier.name for earlier in self.stages[:number]]
            if stage.after is not None and stage.after not in before:
                raise ConfigError(
                    f"stage {stage.name} has after={stage.after}, which is not an earlier stage; choose one of "
                    f"{', '.join(before)}"
                )

    def path(self, number: int) -> list[int]:
        """Return the numbers of the stages that lead to the weights after stage ``number``, itself included."""
        after = self.stages[number].after
        before = number - 1 if after is None else [stage.name for stage in self.stages].index(after)
        return [*(self.path(before) if before >= 0 else ()), number]


class RecipeRun:
    """The training of a recipe in a folder, with one subfolder per stage. callbacks: of each stage's training."""

    def __init__(
        self, recipe: Recipe, folder: str | Path, *, device: str = "cpu", callbacks: Sequence[TrainerCallback] = ()
    ):
        self.recipe = recipe
        self.folder = Path(folder)
        self.device = device
        self.callbacks = callbacks
        self.tokenizer = build_tokenizer()
        self._encoded: tuple[object, list[Footage]] = (None, [])

    def train(self) -> Path:
        """Run the stages that are not complete; return the folder of the last stage."""
        for number, stage in enumerate(self.recipe.stages):
            folder = self._stage_folder(number)
            if (folder / _RECORD).is_file():
                continue
            started = time.monotonic()
            _LOG.info("stage %d of %d: %s", number + 1, len(self.recipe.stages), stage.name)
            set_seed(self._seed_of(number) % 2**32)
            model = self._model_before(number)
            loss_curve = self._train_stage(model, number, stage)
            _save(model, self.tokenizer, folder)
            record = {"minutes": (time.monotonic() - started) / 60, "loss_curve": loss_curve}
            (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
            _LOG.info("%s: loss %.3f after %.1f min", folder.name, loss_curve[-1]["loss"], record["minutes"])
        return folder

    def averaged_model(self) -> Qwen2_5_VLForConditionalGeneration:
        """Load the model of the last stage with the mean weights of the last ``num_averaged`` stages."""
        last = len(self.recipe.stages) - 1
        model = _load(self._stage_folder(last))
        others = [_load(self._stage_folder(last - back)) for back in range(1, self.recipe.num_averaged)]
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
        if len(path) == 1 and self.recipe.base:
            return self._base_model()
        if len(path) == 1:
            model = build_model(tiny_config(self.tokenizer, **self.recipe.sizes))
            if self.recipe.induction_heads:
                init_induction_heads_(model)
            return model.to(self.device)
        return _load(self._stage_folder(path[-2])).to(self.device)

    def _base_model(self) -> Qwen2_5_VLForConditionalGeneration:
        return load_model(self.recipe.base, device=self.device, dtype="float32").hf

    def _train_stage(
        self, model: Qwen2_5_VLForConditionalGeneration, number: int, stage: Stage
    ) -> list[dict[str, float]]:
        draw = {"num_examples": stage.fit.num_steps * stage.fit.batch_size, "seed": self._seed_of(number)}
        if stage.trains_tower_alone:
            module = self._tower_module(model, stage).to(self.device)
            of_seconds = FilmedSecondsDataset if stage.distil_tower else TowerDataset
            dataset, collate = of_seconds(stage.footage.render(), **draw), module.collate
        else:
            if self.recipe.induction_heads:
                freeze_induction_heads_(model)
            module = SFTModelWithTower(model).to(self.device) if stage.train_tower else SFTModel(model)
            dataset, collate = self._examples(model, number, stage, draw), Collate(self.tokenizer.pad_token_id)
        return fit_(
            module,
            dataset,
            collate,
            stage.fit,
            seed=self.recipe.seed,
            folder=self._stage_folder(number),
            device=self.device,
            callbacks=self.callbacks,
            resume=True,
        )

    def _tower_module(self, model: Qwen2_5_VLForConditionalGeneration, stage: Stage) -> TowerWithHeads:
        if not stage.distil_tower:
            return TowerWithHeads(Tower(model))
        return TowerWithTeacher(Tower(model), Tower(self._base_model()))

    def _examples(
        self, model: Qwen2_5_VLForConditionalGeneration, number: int, stage: Stage, draw: Mapping[str, int]
    ) -> Dataset:
        turn_format = self._turn_format(model)
        drills = DrillDataset(turn_format, stage.drills, **draw) if stage.drills else None
        if stage.clips is None:
            return drills
        footage = stage.footage.render() if stage.train_tower else self._encoded_footage(model, number)
        clips = ClipDataset(footage, turn_format, stage.clips, **draw)
        if drills is None:
            return clips
        return MixedDataset(clips, drills, drills_percent=stage.drills_percent, seed=draw["seed"])

    def _turn_format(self, model: Qwen2_5_VLForConditionalGeneration) -> TurnFormat:
        return TurnFormat.of(CachedTokenizer(self.tokenizer), Tower(model).family, _VIDEO)

    def _encoded_footage(self, model: Qwen2_5_VLForConditionalGeneration, number: int) -> list[Footage]:
        """Return the encoded footage of a stage; stages with the same footage and tower share it."""
        plan = self.recipe.stages[number].footage
        before = self.recipe.path(number)[:-1]
        tower_stage = max((n for n in before if self.recipe.stages[n].changes_tower), default=-1)
        if self._encoded[0] != (plan, tower_stage):
            footage = plan.render()
            encode_footage(footage, Tower(model), num_mirrorings=plan.num_mirrorings)
            self._encoded = (plan, tower_stage), footage
        return self._encoded[1]

    def loss_curves(self) -> dict[str, list[dict[str, float]]]:
        """Return the loss curves of the complete stages, by name."""
        return {name: record["loss_curve"] for name, record in self._records().items()}

    def history(self) -> dict[str, Any]:
        """Return seed, machine, and steps and minutes of the complete stages, to be stored with the model."""
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


def export_model(run: RecipeRun, target: str | Path):
    """Write the trained model to ``target`` in bfloat16, with its stream settings and its history."""
    model = run.averaged_model().to(torch.bfloat16)
    for part in (model.config.text_config, model.config.vision_config):
        part.dtype = torch.bfloat16
    of_base = getattr(model.config, "streamingvlm", {})
    history = run.history()
    history["stages"] = of_base.get("training", {}).get("stages", {}) | history["stages"]
    model.config.streamingvlm = of_base | stream_defaults(run.recipe) | {"training": history}
    _save(model, run.tokenizer, Path(target))


def stream_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the stream settings of the model: those it was trained with; none if no stage has clips."""
    clips = next((stage.clips for stage in reversed(recipe.stages) if stage.clips), None)
    if clips is None:
        return {}
    # The last score is read from text that is no longer in its turn. With keys computed inside that turn it is
    # sometimes misread, so the text is recomputed. Clips have previous text of any length, so a text window that is a
    # step short of full is not new to the model.
    cache = CacheConfig(
        text_sink_tokens=clips.text_sink_tokens,
        text_window_tokens=clips.text_window_tokens,
        text_step_tokens=_TEXT_STEP_TOKENS,
        recompute_text=True,
    )
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.0)
    return stream_settings(cache, _VIDEO, sampling, turn_format=FAMILIES[_MODEL_TYPE].turn_format)


def recipe_from(options: Mapping[str, Any]) -> Recipe:
    """Read a recipe from the mappings of a configuration file. Raises ConfigError for unknown and missing names.

    A key ``clips`` beside the stages overrides the clips of each stage.
    """
    try:
        stages = [_stage(options.get("clips") or {}, **stage) for stage in options["stages"]]
        more = {name: value for name, value in options.items() if name not in ("seed", "stages", "clips")}
        return Recipe(int(options["seed"]), stages, **more)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the key recipe cannot be read ({error}); see experiment/pitch.yaml of the configs, "
            "whose folder `streamingvlm info` names"
        ) from error


def _stage(
    all_clips: Mapping,
    name: str,
    fit: Mapping,
    footage: Mapping | None = None,
    clips: Mapping | None = None,
    drills: Mapping | None = None,
    drills_percent: int = 0,
    **more: Any,
) -> Stage:
    return Stage(
        name,
        FitSettings(**fit),
        None if footage is None else FootagePlan(**footage),
        None if clips is None else ClipSettings(**{**clips, **all_clips}),
        None if drills is None else DrillSettings(**drills),
        drills_percent,
        **more,
    )


def _save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path):
    save_checkpoint(model, folder)
    tokenizer.save_pretrained(folder)


def _load(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
