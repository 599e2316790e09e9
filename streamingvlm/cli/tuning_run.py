"""The parts of a fine-tuning run, from the options of ``streamingvlm train``: adapters, metrics, held-out stream."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback

from streamingvlm.cli.run_log import WandbLog
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.held_out import HeldOutCommentary, stream_held_out
from streamingvlm.model.loading import load_model
from streamingvlm.training.adapters import LoraSettings, RecordAdapter, qlora_quantization, with_lora_, write_record
from streamingvlm.training.fine_tuning import FineTuning
from streamingvlm.training.flops import known_peak_tflops, step_flops
from streamingvlm.training.progress import HeldOutStream, ProgressLine, log_commentary
from streamingvlm.training.throughput import ThroughputLogger, ThroughputMeter
from streamingvlm.turns import TurnFormat


def lora_from(options: Mapping[str, Any]) -> dict[str, Callable]:
    """Return the arguments of `FineTuning` for the config group ``lora``; empty if LoRA is disabled."""
    if not options["enabled"]:
        return {}
    names = ("rank", "alpha", "dropout", "target_modules")
    adapt = partial(with_lora_, settings=LoraSettings(**{name: options[name] for name in names}))
    if not options["quantize"]:
        return {"adapt": adapt}
    return {"adapt": adapt, "load": partial(load_model, quantization=qlora_quantization())}


def write_adapter_record(tuning: FineTuning):
    """Write the record of the base model beside trained adapters; do nothing if the full model was trained."""
    if tuning.adapt is not None and tuning.target.is_dir():
        write_record(tuning.module.full_model, tuning.target)


def callbacks_for(
    tuning: FineTuning, options: Mapping[str, Any], run_logs: Sequence[WandbLog]
) -> tuple[ThroughputMeter, list[TrainerCallback]]:
    """Return the meter and the callbacks of a run; those that add metrics come before those that show them."""
    full_model = tuning.module.full_model  # before the FLOPs are counted: inserts adapters and freezes weights
    turn_format = TurnFormat.of(tuning.model.tokenizer, tuning.model.family, tuning.video)
    meter = ThroughputMeter(turn_format.end_of_turn_id, flops=step_flops(tuning.model.hf))
    vision_metrics = dict if tuning.vision is None else tuning.vision.metrics
    peak_tflops = options["peak_tflops"] or _peak_tflops(tuning.device)
    callbacks = [
        ThroughputLogger(meter, turn_s=tuning.video.turn_s, peak_tflops=peak_tflops, extra_metrics=vision_metrics)
    ]
    callbacks += [RecordAdapter(full_model)] if tuning.adapt is not None else []
    callbacks += [ProgressLine(Console()), *run_logs]
    if options["held_out_stream"]["every_steps"]:
        callbacks.append(_held_out_stream(tuning, options["held_out_stream"], run_logs))
    return meter, callbacks


def held_out_recording(tuning: FineTuning, name: str | None) -> Mapping[str, Any]:
    """Return the recording with that id, by default the first held-out one. Raises ConfigError if there is none."""
    chunks, recordings = tuning.prepared.chunks, tuning.prepared.recordings
    held_out = [r for r, split in zip(chunks["recording"][:], chunks["split"][:], strict=True) if split == "held_out"]
    if name is None and not held_out:
        raise ConfigError(f"{tuning.settings.data} has no held-out recording; give held_out_stream.every_steps=0")
    ids = recordings["id"][:]
    if name is not None and name not in ids:
        raise ConfigError(
            f"held_out_stream.recording={name} is not in {tuning.settings.data}; give one of its {len(ids)} ids, such "
            f"as {ids[0]}"
        )
    return recordings[ids.index(name or held_out[0])]


def check_held_out_stream(tuning: FineTuning, options: Mapping[str, Any]):
    """Raise ConfigError if a held-out stream is impossible, before anything is loaded."""
    stream, fit = options["held_out_stream"], tuning.settings.fit
    if not stream["every_steps"]:
        return
    if fit.fsdp != "off" or fit.deepspeed is not None:
        raise ConfigError(
            "a sharded model (fsdp, deepspeed) cannot be streamed during training; give held_out_stream.every_steps=0 "
            "and stream its checkpoints"
        )
    held_out_recording(tuning, stream["recording"])


def _held_out_stream(tuning: FineTuning, options: Mapping[str, Any], run_logs: Sequence[WandbLog]) -> HeldOutStream:
    recording = held_out_recording(tuning, options["recording"])

    def stream() -> HeldOutCommentary:
        root, max_turns = tuning.video_root, options["max_turns"]
        return stream_held_out(tuning.model, recording, video_root=root, max_turns=max_turns)

    def show(step: int, commentary: HeldOutCommentary):
        log_commentary(step, commentary)
        for run_log in run_logs:
            run_log.show(step, commentary)

    return HeldOutStream(stream, every_steps=options["every_steps"], show=show)


def _peak_tflops(device: torch.device) -> float | None:
    return known_peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
