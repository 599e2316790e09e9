"""Rehearse the CUDA path without a GPU: the real engine on fake CUDA tensors at the sizes of Qwen2.5-VL-7B.

    python dev/rehearse_cuda.py --turns 20

It needs a CUDA build of torch 2.13 and no GPU. The language model has two layers and the vision tower two (one with
windows); async vision and graph capture are on. An operator with wrong devices or dtypes fails, as do a wait, an
allocation or a pageable copy inside a capture. Uploads by ``Tensor.to`` under inference mode are not counted yet.
"""

import argparse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import torch
from rehearsal.fake_device import FakeCuda

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.inference import vision_runner
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession


def small_7b() -> dict:
    """Return the architecture of Qwen2.5-VL-7B with two layers in each model, one of the tower's with windows."""
    architecture = architecture_named("7b")
    architecture["text_config"]["num_hidden_layers"] = 2
    architecture["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    return architecture


def rehearse(device: FakeCuda, num_turns: int):
    """Stream turns of 720p video, and print the operators, waits and uploads of the last one."""
    model = random_model(small_7b(), device=torch.device("cuda"), dtype=torch.bfloat16)
    session = StreamingSession(model, engine=Engine(model, num_slots=1))
    for _ in range(num_turns):
        device.traffic.clear()
        line = session.step(torch.zeros(2, 3, 720, 1280, dtype=torch.uint8))
    num_operators = sum(device.traffic.operators.values())
    print(f"{line.num_tokens} tokens, {session.layout.num_tokens} in the cache, {num_operators} operators")
    for name, events in (("wait", device.traffic.waits), ("upload", device.traffic.uploads)):
        for place, count in Counter(events).most_common():
            print(f"{count:6d} {name}: {place}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    cuda = FakeCuda()
    executor = partial(ThreadPoolExecutor, initializer=cuda.enter_thread)
    with cuda.installed(), mock.patch.object(vision_runner, "ThreadPoolExecutor", executor):
        rehearse(cuda, parser.parse_args().turns)
