"""The rules of the house, read from the imports of every file."""

import ast
import os
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streamingvlm"
SOURCES = sorted(PACKAGE.rglob("*.py"))
COMMAND_LINE_ONLY = ("argparse", "hydra", "omegaconf", "wandb")
MODEL_CLASS_ENDINGS = (
    "ForConditionalGeneration",
    "ForCausalLM",
    "ForImageTextToText",
    "PreTrainedModel",
    "VLModel",
    "TextModel",
)


@cache
def tree(file):
    return ast.parse(file.read_text())


def imported_names(file):
    """Full names of what a file imports anywhere: ``a.b`` for ``import a.b``, ``a.b.c`` for ``from a.b import c``."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{_origin(node, file)}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "find_spec"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def _origin(node, file):
    if not node.level:
        return node.module
    package = file.relative_to(ROOT).with_suffix("").parts[: -node.level]
    return ".".join((*package, *([node.module] if node.module else [])))


def importers(*modules):
    """Files of the package, relative to it, that import any of the modules or something below them."""
    return {
        str(file.relative_to(PACKAGE))
        for file in SOURCES
        for name in imported_names(file)
        if any(name == module or name.startswith(module + ".") for module in modules)
    }


def folders(files):
    return {file.split("/")[0] for file in files}


def test_the_reader_of_imports_sees_every_way_to_import(tmp_path):
    file = PACKAGE / "video" / "x.py"
    source = tmp_path / "x.py"
    source.write_text("def f():\n    import av.codec\n    from hydra import main\n    import_module('flash_attn')\n")
    assert list(imported_names(source)) == ["av.codec", "hydra.main", "flash_attn"]
    node = ast.parse("from ..turns import Turn").body[0]
    assert _origin(node, file) == "streamingvlm.turns"


# From the ground up. An import may point down or stay on its layer; packages on one layer never import each other.
LAYERS = (
    ("atomic", "errors"),
    ("config", "device", "plotting", "provenance"),
    ("endpoint",),
    ("cache", "video"),
    ("model",),
    ("turns",),
    ("data", "pitch"),
    ("inference", "training"),
    ("evaluation",),
    ("benchmark", "serving"),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {package: height for height, packages in enumerate(LAYERS) for package in packages}


def module_files():
    """Every file of the package by the name of its module."""
    names = {}
    for file in SOURCES:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def arrows():
    """Every import inside the package, type hints and lazy imports included, as (importing, imported) modules."""
    modules = module_files()
    for name, file in modules.items():
        for imported in imported_names(file):
            target = imported
            while target not in modules and "." in target:
                target = target.rpartition(".")[0]
            if target in modules and target not in (name, "streamingvlm"):
                yield name, target


def package_of(module):
    return module.split(".")[1]


def test_every_package_has_a_layer():
    found = {package_of(name) for name in module_files() if name.count(".")}
    assert found - set(LAYER_OF) - {"assets"} == set()


def test_no_import_points_up():
    wrong = [
        (importing, imported)
        for importing, imported in arrows()
        if importing != "streamingvlm"
        and (one := package_of(importing)) != (other := package_of(imported))
        and LAYER_OF[one] <= LAYER_OF[other]
    ]
    assert wrong == []


def test_no_imports_form_a_circle():
    graph = {}
    for importing, imported in arrows():
        graph.setdefault(importing, set()).add(imported)
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules of the first circle


@pytest.mark.parametrize("module", COMMAND_LINE_ONLY)
def test_the_command_alone_reads_command_lines_and_logs_runs(module):
    assert folders(importers(module)) <= {"cli"}


def test_flash_attention_has_one_importer():
    assert importers("flash_attn") <= {"model/attention.py"}


def test_decoders_of_video_have_one_home():
    outside = {file for file in importers("av", "decord") if not file.startswith("video/")}
    # Pitch may write its mp4 for people itself, in one file.
    assert folders(outside) <= {"pitch"}
    assert len(outside) <= 1


def test_what_reads_files_knows_nothing_of_what_is_live():
    users = {file for file in importers("streamingvlm.video.live") if file.startswith("video/")}
    assert {file for file in users if not file.startswith("video/live/")} == {"video/__init__.py"}


def test_no_two_test_files_share_a_name():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_model_classes_of_transformers_are_used_by_model_and_training_alone():
    users = {
        str(file.relative_to(PACKAGE))
        for file in SOURCES
        for name in imported_names(file)
        if name.startswith(("transformers.models", "transformers.modeling"))
        or (name.startswith("transformers.") and name.endswith(MODEL_CLASS_ENDINGS))
        or (name.startswith("transformers.Auto") and "Model" in name)
    }
    assert folders(users) <= {"model", "training"}


def test_nothing_is_called_utils():
    named = [
        path for folder in ("streamingvlm", "scripts", "tests", "configs") for path in (ROOT / folder).rglob("*util*")
    ]
    assert [path for path in named if "__pycache__" not in path.parts] == []


def test_nothing_is_printed_by_the_library():
    for file in (file for file in SOURCES if not file.is_relative_to(PACKAGE / "cli")):
        calls = (node.func for node in ast.walk(tree(file)) if isinstance(node, ast.Call))
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], file


# The environment is watched with its writer, as torch, transformers and decord write to it when they are imported.
IMPORT_ALL = """
import importlib, pkgutil, sys
from importlib.util import find_spec

EXTRAS = {"streamingvlm.video.decord": "decord", "streamingvlm.serving.fleet.ray_serve": "ray"}

package = sys.argv[1]
network = ("socket.connect", "socket.bind", "socket.getaddrinfo")
caught = []


def watch(event, args):
    if event in network:
        caught.append((event, args))
    elif event in ("os.putenv", "os.unsetenv"):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"] in ("os", "collections.abc", "_collections_abc"):
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(package):
            caught.append((event, args))


sys.addaudithook(watch)
import streamingvlm

for module in pkgutil.walk_packages(streamingvlm.__path__, "streamingvlm."):
    if find_spec(EXTRAS.get(module.name, "torch")):
        importlib.import_module(module.name)

import torch

assert len([name for name in sys.modules if name.startswith("streamingvlm.")]) > 10
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert not caught, caught
"""

OPEN_A_SESSION_CLASS = """
import sys, streamingvlm
assert "torch" not in sys.modules
streamingvlm.StreamingSession
print(*(name for name in ("av", "decord", "hydra", "wandb", "datasets", "pandas", "pyarrow") if name in sys.modules))
"""


def run_python(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, str(PACKAGE)], env=environment, cwd="/", capture_output=True, text=True
    )


def test_importing_every_module_is_inert():
    result = run_python(IMPORT_ALL)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_package_waits_for_torch_and_what_a_viewer_does_not_need():
    result = run_python(OPEN_A_SESSION_CLASS)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == ""
