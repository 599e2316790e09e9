import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import scripts_path  # noqa: F401
import torch
from architectures import architecture_named
from rehearsal.fake_device import FakeCuda

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.inference import vision_runner
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession

device = FakeCuda()
arch = architecture_named("7b")
arch["text_config"]["num_hidden_layers"] = 2
arch["vision_config"]["depth"] = 2
arch["vision_config"]["fullatt_block_indexes"] = [1]
pool = partial(ThreadPoolExecutor, initializer=device.enter_thread)
t0 = time.time()
with device.installed(), mock.patch.object(vision_runner, "ThreadPoolExecutor", pool):
    model = random_model(arch, device=torch.device("cuda"), dtype=torch.bfloat16)
    torch.cuda.synchronize()
    print("model", time.time() - t0)
    engine = Engine(model, num_slots=1)
    session = StreamingSession(model, engine=engine)
    print("session", time.time() - t0, engine.runner.graphs)
    for turn in range(20):
        device.traffic.clear()
        line = session.step(torch.zeros(2, 3, 720, 1280, dtype=torch.uint8))
        if turn in (0, 1, 19):
            print(turn, line.num_tokens, session.layout.num_tokens, sum(device.traffic.operators.values()))
            for k, v in Counter(device.traffic.waits).most_common():
                print("   ", v, k)
            for k, v in Counter(device.traffic.uploads).most_common():
                print("   ", v, k)
print(time.time() - t0)
