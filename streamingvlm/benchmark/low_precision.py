"""The effect of low-precision weights and caches on the commentary: Pitch accuracy, and identical lines."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamingvlm.benchmark.roofline import num_bytes
from streamingvlm.errors import StreamingVLMError
from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.evaluation.pitch.run import PitchRun, none_if_nan
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stats import percentile

_GREEDY = {"temperature": 0.0}


def measure_low_precision(
    cases: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    duration_s: int,
    *,
    on_case: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Stream one match per seed in each case, with greedy sampling, and compare the lines with the first case.

    cases: ``model`` (as `load_model` takes it) and ``cache`` by name. A case that this machine cannot run has an
    ``error`` instead of results.
    """
    results: dict[str, dict[str, Any]] = {}
    first: dict[int, PitchRun] = {}
    for name, case in cases.items():
        if on_case:
            on_case(name)
        try:
            session = StreamingSession.from_pretrained(**case["model"], cache=case["cache"], sampling=_GREEDY)
            runs = {seed: evaluate_pitch(session, seed=seed, duration_s=duration_s) for seed in seeds}
        except (StreamingVLMError, NotImplementedError, RuntimeError) as error:  # kernels that the machine lacks
            results[name] = {"error": str(error).splitlines()[0]}
            continue
        first = first or runs
        results[name] = _sizes(session) | {"runs": {str(seed): _compare(runs[seed], first[seed]) for seed in seeds}}
        del session
        gc.collect()
    return results


def _sizes(session: StreamingSession) -> dict[str, Any]:
    weight_mb = round(sum(map(num_bytes, session.model.hf.parameters())) / 2**20, 3)
    return {"weight_mb": weight_mb, "cache_bytes_per_token": session.engine.runner.pool.bytes_per_token}


def _compare(run: PitchRun, first: PitchRun) -> dict[str, Any]:
    lines, first_lines = ([second.said for second in of_run.watched] for of_run in (run, first))
    same = [line == first_line for line, first_line in zip(lines, first_lines, strict=True)]
    return {
        "macro_f1": none_if_nan(run.report.macro_f1),
        "right_share": none_if_nan(run.right_share),
        "same_lines": sum(same) / len(same),
        "first_difference_s": same.index(False) if False in same else None,
        "turn_p50_s": percentile(run.latencies_s, 0.5),
    }
