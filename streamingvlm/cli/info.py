"""``streamingvlm info``: this installation; with a model, what its streams need and how many fit."""

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

import psutil
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from packaging.requirements import Requirement

import streamingvlm
from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.cli.configurations import CONFIGS, choices
from streamingvlm.inference.sizing import StreamSizing, tokens_per_s
from streamingvlm.inference.stream_config import StreamConfig
from streamingvlm.model.attention import has_flash_attn, supports_varlen
from streamingvlm.model.checkpoint import EMBEDDED
from streamingvlm.model.cpu_kernels.linear_layers import supports_onednn
from streamingvlm.model.loading import StreamingModel, device_named, dtype_named, load_without_weights
from streamingvlm.pitch.tokenizer import build_tokenizer

_PACKAGES = ("torch", "transformers", "av", "hydra-core", "datasets")
_NOT_FOR_USERS = ("dev",)


def info(options: dict[str, Any]):
    """Print the facts of the installation, then those of the model."""
    device = device_named(options["model"]["device"])
    dtype = dtype_named(options["model"]["dtype"], device)
    sections = {
        "installation": installation(),
        "device": device_facts(device, dtype),
        "extras": extras(),
        "model": sizes(options, device),
    }
    for title, facts in sections.items():
        print(title)
        for name, value in facts.items():
            print(f"  {name:<22} {value}")


def installation() -> dict[str, str]:
    """Return versions and folders."""
    versions = {name: version(name) for name in _PACKAGES}
    return {
        "streamingvlm": streamingvlm.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        **versions,
        "configs": str(CONFIGS),
        "embedded model": str(EMBEDDED["pitch"]),
        "models of the hub": HF_HUB_CACHE,
    }


def device_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return the devices of this machine, and the kernels that a model on ``device`` uses."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {f"cuda:{index}": f"{name}, {_gb(_memory(index))}" for index, name in enumerate(names)}
    facts["cpu"] = f"{platform.machine()}, {psutil.cpu_count()} cores, {_gb(psutil.virtual_memory().total)}"
    is_fast = supports_varlen(torch.empty(0, 64, dtype=dtype, device=device))
    facts["chosen"] = f"{device} in {_short(dtype)}"
    facts["attention"] = "flash attention of torch, all streams in one call" if is_fast else "sdpa, a call for a stream"
    facts["decode"] = "CUDA graphs" if is_fast else "the pass of the prefill"
    if device.type == "cpu":
        facts["linear layers"] = "oneDNN" if supports_onednn(device, dtype) else "torch"
    facts["flash-attn (training)"] = "installed" if has_flash_attn() else "not installed; sdpa instead"
    return facts


def extras() -> dict[str, str]:
    """Return each extra: present, or what is missing with the line that installs it."""
    about = metadata("streamingvlm")
    requirements = [Requirement(line) for line in about.get_all("Requires-Dist")]
    names = [name for name in about.get_all("Provides-Extra") if name not in _NOT_FOR_USERS]
    return {name: _presence(name, [one.name for one in requirements if _is_of(one, name)]) for name in sorted(names)}


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return bool(marker) and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _presence(name: str, packages: list[str]) -> str:
    if missing := [package for package in packages if not _is_installed(package)]:
        return f'{", ".join(missing)} missing: pip install "streamingvlm[{name}]"'
    return "present"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def sizes(options: dict[str, Any], device: torch.device) -> dict[str, str]:
    """Return what the streams of the options need, and how many fit the device."""
    video = dict(options["video"])
    height, width = video.pop("height"), video.pop("width")
    model = structure(options, device)
    config = StreamConfig.resolve(model, cache=options["cache"], video=video, sampling=options["sampling"])
    sizing = StreamSizing.of(config, options["query"], options["previous_text"])
    memory_bytes = int(options["memory_gb"] * 1e9) if options["memory_gb"] else memory(device)
    facts = {
        "name": model.name,
        "parameters": f"{sizing.num_parameters:,}",
        "weights": f"{_gb(sizing.weight_bytes)} in {_short(model.dtype)}{_before(options['model'])}",
        "tokens of a second": f"{tokens_per_s(config, height, width):.0f} at {width}x{height}",
        "cache of a token": f"{sizing.token_bytes:,} bytes",
    }
    if sizing.tokens is None:
        return facts | {"cache of a stream": f"without a bound under cache.policy={config.cache.policy}"}
    facts["cache of a stream"] = f"{_gb(sizing.cache_bytes(1))}, {sizing.tokens:,} tokens"
    num_fitting = sizing.num_fitting(memory_bytes)
    facts["fits"] = f"{num_fitting:,} streams in the {_gb(memory_bytes)} of {device}, without activations"
    if options["streams"] is not None:
        total = sizing.weight_bytes + sizing.cache_bytes(options["streams"])
        verdict = "fits" if options["streams"] <= num_fitting else "does not fit"
        facts[f"{options['streams']} streams"] = f"{_gb(total)} with the weights: {verdict}"
    return facts


def _before(model: Mapping[str, Any]) -> str:
    method = model.get("quantization")
    return f", before model.quantization={method} makes them smaller" if method else ""


def structure(options: dict[str, Any], device: torch.device) -> StreamingModel:
    """Return the model of the options without its weights."""
    name, dtype = options["model"]["name"], options["model"]["dtype"]
    if name in choices("architecture"):
        meta = torch.device("meta")
        return random_model(architecture_named(name), device=meta, dtype=dtype_named(dtype, device))
    return load_without_weights(name, device=device, dtype=dtype, tokenizer=build_tokenizer())


def memory(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    return _memory(device.index or 0) if device.type == "cuda" else psutil.virtual_memory().total


def _memory(index: int) -> int:
    return torch.cuda.get_device_properties(index).total_memory


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
