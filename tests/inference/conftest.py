"""Tiny random models of each family, loaded as a session wants them."""

import pytest

from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import StreamingModel, load_model


@pytest.fixture(scope="module")
def models(tiny_checkpoint) -> dict[str, StreamingModel]:
    """Give a model of each family by its model type."""
    return {name: load_model(tiny_checkpoint(name), device="cpu") for name in FAMILIES}


@pytest.fixture(scope="module")
def model(models) -> StreamingModel:
    """Give the one that most tests look at."""
    return models["qwen2_5_vl"]
