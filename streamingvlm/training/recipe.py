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
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, set_seed

from streamingvlm.errors import ConfigError
from streamingvlm.pitch.dice import hashed
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.alignment import SecondDataset, TowerWithHeads
from streamingvlm.training.architecture import PICTURE_PIXELS, build_model, tiny_config
from streamingvlm.training.chunks import RememberingTokenizer
from streamingvlm.training.collate import Collate
from streamingvlm.training.commentator import Commentator
from streamingvlm.training.dataset import ClipDataset, ClipSettings
from streamingvlm.training.footage import Footage, encode_, film
from streamingvlm.training.tower import Tower
from streamingvlm.training.trainer import StageSettings, fit_
from streamingvlm.turns import TurnFormat

_LOG = logging.getLogger(__name__)
_RECORD = "training.json"
_WINDOW_S = 16.0
_PATCH_S = 1.0  # two frames a second, two frames a temporal patch


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
class LanguageStage:
    """A stage in which the language model learns from clips while the tower stands still."""

    name: str
    fit: StageSettings
    clips: ClipSettings = field(default_factory=ClipSettings)


@dataclass(frozen=True)
class Recipe:
    """All that decides a model: the seed, the sizes, the footage and the stages.

    sizes: of the model, as `tiny_config` takes them.
    """

    seed: int
    tower_footage: FootagePlan
    tower: StageSettings
    language_footage: FootagePlan
    language: Sequence[LanguageStage]
    sizes: Mapping[str, int] = field(default_factory=dict)


class Run:
    """A recipe being followed in a folder: one subfolder a stage."""

    def __init__(self, recipe: Recipe, folder: str | Path, *, device: str = "cpu"):
        self.recipe = recipe
        self.folder = Path(folder)
        self.device = device
        self.tokenizer = build_tokenizer()
        self._footage: list[Footage] = []

    def follow(self) -> Path:
        """Go through the stages that are not complete yet; return the folder of the last."""
        recipe = self.recipe
        folder = self._stage_folder(0, "tower")
        if not (folder / _RECORD).is_file():
            set_seed(recipe.seed)
            model = build_model(tiny_config(self.tokenizer, **recipe.sizes)).to(self.device)
            self._record(folder, model, self._teach_tower_, recipe.tower)
        for number, stage in enumerate(recipe.language, start=1):
            before, folder = folder, self._stage_folder(number, stage.name)
            if not (folder / _RECORD).is_file():
                model = Qwen2_5_VLForConditionalGeneration.from_pretrained(before, dtype=torch.float32).to(self.device)
                set_seed(hashed(recipe.seed, number) % 2**32)
                self._record(folder, model, self._teach_language_, stage)
        return folder

    def loss_curves(self) -> dict[str, list[dict[str, float]]]:
        """The loss curve of every complete stage, by name."""
        return {name: record["loss_curve"] for name, record in self._records().items()}

    def history(self) -> dict[str, Any]:
        """Seed, machine, and the steps and minutes of every complete stage, for the model's own record."""
        fits = {"tower": self.recipe.tower} | {stage.name: stage.fit for stage in self.recipe.language}
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
        names = ["tower", *(stage.name for stage in self.recipe.language)]
        files = {name: self._stage_folder(number, name) / _RECORD for number, name in enumerate(names)}
        return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}

    def _stage_folder(self, number: int, name: str) -> Path:
        return self.folder / f"{number}-{name}"

    def _record(self, folder: Path, model: Qwen2_5_VLForConditionalGeneration, teach_, stage):
        """Run a stage, then write the model and, last of all, how it came about."""
        started = time.monotonic()
        loss_curve = teach_(model, stage, folder)
        _save(model, self.tokenizer, folder)
        record = {"minutes": (time.monotonic() - started) / 60, "loss_curve": loss_curve}
        (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        _LOG.info("%s: loss %.3f after %.1f min", folder.name, loss_curve[-1]["loss"], record["minutes"])

    def _teach_tower_(self, model, settings: StageSettings, folder: Path) -> list[dict[str, float]]:
        seconds = SecondDataset(
            self.recipe.tower_footage.film(),
            num_examples=settings.num_steps * settings.batch_size,
            seed=hashed(self.recipe.seed, 0),
        )
        heads = TowerWithHeads(Tower(model)).to(self.device)
        return fit_(heads, seconds, heads.collate, settings, seed=self.recipe.seed, folder=folder, device=self.device)

    def _teach_language_(self, model, stage: LanguageStage, folder: Path) -> list[dict[str, float]]:
        clips = ClipDataset(
            self._encoded_footage(model),
            TurnFormat(RememberingTokenizer(self.tokenizer), temporal_step=Tower(model).family.temporal_step(_PATCH_S)),
            stage.clips,
            num_examples=stage.fit.num_steps * stage.fit.batch_size,
            seed=hashed(self.recipe.seed, *stage.name.encode()),
        )
        collate = Collate(self.tokenizer.pad_token_id)
        seed = self.recipe.seed
        return fit_(Commentator(model), clips, collate, stage.fit, seed=seed, folder=folder, device=self.device)

    def _encoded_footage(self, model) -> list[Footage]:
        """What the tower makes of the footage; it stands still, so that all language stages share it."""
        if not self._footage:
            plan = self.recipe.language_footage
            self._footage = plan.film()
            encode_(self._footage, Tower(model), num_mirrorings=plan.num_mirrorings)
        return self._footage


def publish(run: Run, stage_folder: Path, target: str | Path):
    """Write the finished model to ``target``: half the bytes, with its streaming defaults and its history."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stage_folder, dtype=torch.bfloat16)
    model.config.streamingvlm = stream_defaults(run.recipe) | {"training": run.history()}
    _save(model, run.tokenizer, Path(target))


def stream_defaults(recipe: Recipe) -> dict[str, Any]:
    """How a stream is to be watched with the model: as it was trained."""
    clips = recipe.language[-1].clips
    return {
        "fps": 2.0,
        "chunk_s": 1.0,
        "min_pixels": PICTURE_PIXELS**2,
        "max_pixels": PICTURE_PIXELS**2,
        "text_sink_tokens": clips.text_sink_tokens,
        "text_window_tokens": clips.text_window_tokens,
        "vision_window_s": _WINDOW_S,
        "turn_window_s": _WINDOW_S,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
    }


def recipe_from(options: Mapping[str, Any]) -> Recipe:
    """Make a recipe of plain mappings, as a configuration file has them. Raises ConfigError for a name it has not."""
    try:
        return Recipe(
            seed=options["seed"],
            tower_footage=FootagePlan(**options["tower_footage"]),
            tower=StageSettings(**options["tower"]),
            language_footage=FootagePlan(**options["language_footage"]),
            language=[
                LanguageStage(stage["name"], StageSettings(**stage["fit"]), ClipSettings(**stage["clips"]))
                for stage in options["language"]
            ],
            sizes=options.get("sizes", {}),
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the recipe cannot be read: {error}; see configs/experiment/pitch.yaml for a whole one") from error


def _save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
