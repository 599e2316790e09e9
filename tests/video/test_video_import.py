"""Importing the package must load no decoder: they are large, and may not be installed."""

import subprocess
import sys


def test_importing_the_package_loads_no_decoder():
    code = "import sys, streamingvlm.video; print(sorted({'av', 'decord'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
