"""LongVideoBench, VideoMME, MVBench and others: an adapter through which lmms-eval runs its tasks on our candidates.

lmms-eval finds it by its entry point (lmms_manifest.py) and imports it on demand:

    python -m lmms_eval --model streamingvlm --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct --tasks videomme

``candidate=offline_generate`` answers by offline generation, the way in which the paper's figures were measured. The
default streams the video through the session.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.evaluation.candidates.candidate import Candidate
from streamingvlm.evaluation.candidates.opening import LOCAL_CANDIDATES, candidate_from
from streamingvlm.evaluation.candidates.video_clip import Clip

log = logging.getLogger(__name__)

_GROUPS = ("cache", "video", "sampling")
_LIKELIHOOD = "streamingvlm generates text and gives no likelihoods; choose a task of output_type generate_until"
_ROUNDS = "streamingvlm answers one question per video; choose a task of output_type generate_until"


def __getattr__(name: str):
    if name != "StreamingLMM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model_class()


@cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    return type("StreamingLMM", (VideoAnswers, lmms), {"is_simple": True, "__module__": __name__})


class VideoAnswers:
    """The interface that lmms-eval expects of a model, answered by a candidate.

    pretrained: "pitch" (the embedded model), or the folder or hub name of a checkpoint. candidate: session, last_frames
        or offline_generate.
    device: of the model. batch_size, max_batch_size: 1, as one video is processed at a time.
    settings: options of the candidate; in a group by their dotted names, such as ``cache.policy=window``.
        Answers are greedy unless ``sampling.temperature`` says otherwise.

    Raises ConfigError for an unknown option, and what loading a model raises.
    """

    def __init__(
        self,
        pretrained: str = "pitch",
        candidate: str = "session",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        super().__init__()
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            raise ConfigError(f"batch_size={batch_size}: one video is processed at a time; give batch_size=1")
        self.candidate = _candidate(pretrained, candidate, device, settings)
        log.info("path of the answers: %s", self.candidate.path)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request, "" if its video cannot be read. Raises ConfigError for a task without one video."""
        return [self._answer(*request.args) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise ConfigError."""
        raise ConfigError(_LIKELIHOOD)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise ConfigError."""
        raise ConfigError(_ROUNDS)

    def _answer(
        self, context: str, generation: Mapping[str, Any], doc_to_visual, doc_id: int, task: str, split: str
    ) -> str:
        video = _one_video(doc_to_visual(self.task_dict[task][split][doc_id]), task)
        try:
            answer = self.candidate.answer(Clip(video), context, max_new_tokens=generation.get("max_new_tokens"))
        except VideoError as error:
            log.warning("%s, question %s gets an empty answer: %s", task, doc_id, error)
            return ""
        answer = _truncated(answer, generation.get("until") or ())
        self.cache_hook.add_partial("generate_until", (context, generation), answer)
        return answer


def _candidate(pretrained: str, kind: str, device: str | None, settings: Mapping[str, Any]) -> Candidate:
    if kind not in LOCAL_CANDIDATES:
        raise ConfigError(f"candidate={kind} is unknown; choose one of {', '.join(LOCAL_CANDIDATES)}")
    options: dict[str, Any] = {"kind": kind, "model": {"name": pretrained, "device": device}}
    if kind != "offline_generate":
        options["sampling"] = {"temperature": 0.0}
    for name, value in settings.items():
        group, _, setting = name.rpartition(".")
        if group and group not in _GROUPS:
            raise ConfigError(f"{name} is unknown; groups of options are {', '.join(_GROUPS)}")
        (options.setdefault(group, {}) if group else options)[setting] = value
    known = set(signature(LOCAL_CANDIDATES[kind]).parameters) | {"kind"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"candidate={kind} has no option {unknown[0]}; it has {', '.join(sorted(known - {'kind'}))}")
    return candidate_from(options)


def _one_video(visuals: Sequence[Any], task: str) -> Path:
    if len(visuals) != 1 or not isinstance(visuals[0], str | Path):
        kinds = ", ".join(type(visual).__name__ for visual in visuals[:3]) or "nothing"
        raise ConfigError(
            f"{task} gives {len(visuals)} of {kinds}, expected the path of one video; choose a video task"
        )
    return Path(visuals[0])


def _truncated(answer: str, until: str | Sequence[str]) -> str:
    """Return the answer up to the first stop string."""
    for end in (until,) if isinstance(until, str) else until:
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
