"""`make` installs torch's CPU build where pip's index has it, and the plain build of the same version where not."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = re.search(r"TORCH_VERSION := (\S+)", (ROOT / "Makefile").read_text())[1]
CPU = f"{VERSION}+cpu"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="there is no +cpu build on other systems")


def write_index(folder, *versions):
    """Write an index with empty wheels that are named torch; return its address."""
    page = folder / "torch"
    page.mkdir(parents=True)
    for version in versions:
        info = f"torch-{version}.dist-info"
        with zipfile.ZipFile(page / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    names = [path.name for path in page.glob("*.whl")]
    (page / "index.html").write_text("".join(f'<a href="{name}">{name}</a>\n' for name in names))
    return folder.as_uri()


@pytest.fixture
def install_torch(tmp_path):
    """Run the rule that installs torch, in a folder of its own; returns the installed version and standard error."""

    def install(index, *settings):
        shutil.copy(ROOT / "Makefile", tmp_path)
        (tmp_path / "pyproject.toml").touch()
        unwanted = ("PIP_", "MAKE", "MFLAGS")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1"}
        command = ["make", ".venv/.torch", f"PYTHON={sys.executable}", *settings]
        made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        installed = list((tmp_path / ".venv").glob("lib/python*/site-packages/torch-*.dist-info"))
        assert (made.returncode == 0) == (len(installed) == 1) == (tmp_path / ".venv" / ".torch").exists()
        return (installed[0].name[len("torch-") : -len(".dist-info")] if installed else None), made.stderr

    return install


@linux_only
def test_the_cpu_build_is_taken_where_the_index_has_it(install_torch, tmp_path):
    version, errors = install_torch(write_index(tmp_path / "both", VERSION, CPU))
    assert version == CPU
    assert "plain build" not in errors


@linux_only
def test_the_plain_build_is_taken_where_there_is_no_other_and_one_line_says_so(install_torch, tmp_path):
    version, errors = install_torch(write_index(tmp_path / "plain", VERSION))
    assert version == VERSION
    said = [line for line in errors.splitlines() if line.startswith("make: ")]
    assert len(said) == 1
    assert all(part in said[0] for part in (CPU, "GB", "TORCH_INDEX="))


@linux_only
def test_an_index_of_cpu_builds_may_be_named(install_torch, tmp_path):
    cpu_builds = write_index(tmp_path / "cpu", CPU)
    version, _ = install_torch(write_index(tmp_path / "plain", VERSION), f"TORCH_INDEX={cpu_builds}")
    assert version == CPU


def test_a_chosen_build_is_installed_or_fails(install_torch, tmp_path):
    index = write_index(tmp_path / "both", VERSION, CPU)
    assert install_torch(index, "TORCH=torch==9.9")[0] is None
    assert install_torch(index, f"TORCH=torch=={VERSION}")[0] in (VERSION, CPU)


@linux_only
def test_a_cpu_build_that_cannot_be_installed_is_not_replaced_by_the_large_one(install_torch, tmp_path):
    index = write_index(tmp_path / "damaged", VERSION, CPU)
    (tmp_path / "damaged" / "torch" / f"torch-{CPU}-py3-none-any.whl").write_bytes(b"damaged")
    version, errors = install_torch(index)
    assert version is None
    assert "ERROR" in errors
    assert "plain build" not in errors


def test_an_index_without_torch_fails_with_pips_error(install_torch, tmp_path):
    version, errors = install_torch(write_index(tmp_path / "empty"))
    assert version is None
    assert "No matching distribution" in errors
