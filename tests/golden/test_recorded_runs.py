"""The reference policy against recorded runs of the paper's released code, round by round.

Every pair X.json, X.npz of every folder of recorded runs is replayed through StreamingSession: the carried copy, and
the folder named by STREAMINGVLM_GOLDEN or the full recording beside the checkout.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import Recording
from recordings import golden_folders
from steering import record_logits

from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel, load_model

LOGIT_TOLERANCE = 1e-4
STRIDE = 997


def recorded_runs() -> list[tuple[Path, str]]:
    return [
        (folder, file.stem)
        for folder in golden_folders()
        for file in sorted(folder.glob("*.json"))
        if file.with_suffix(".npz").is_file() and "rounds" in json.loads(file.read_text("utf-8"))
    ]


class Probe:
    """Steps a session and keeps what it fed, where it stood, and the logits of each token."""

    def __init__(self, session: StreamingSession):
        self.session, self.logits = session, record_logits(session)
        self.prefill = session.engine.runner.prefill
        session.engine.runner.prefill = self._prefill

    def step(self, frames: torch.Tensor):
        self.logits.clear()
        self.session.step(frames)
        self.after = self.session.inspect()
        self.reply = self.after.ids[len(self.input_ids) :]

    def _prefill(self, batch) -> torch.Tensor:
        view = self.session.inspect()
        self.input_ids, self.num_cached, self.positions = view.ids, view.num_cached, view.positions
        self.key_norms = view.keys.norm(dim=-1).transpose(1, 2)
        self.value_norms = view.values.norm(dim=-1).transpose(1, 2)
        return self.prefill(batch)


@pytest.fixture(scope="module")
def models() -> dict[Path, StreamingModel]:
    return {}


@pytest.mark.parametrize("folder, name", recorded_runs(), ids=lambda value: getattr(value, "name", value))
def test_every_round_of_a_recorded_run_is_repeated(folder: Path, name: str, models: dict[Path, StreamingModel]):
    if folder not in models:
        models[folder] = load_model(folder / "model", device="cpu")
    recording = Recording(folder, name)
    probe = Probe(recording.session(models[folder]))
    for row in recording.rounds:
        probe.step(recording.frames_of(row["round"]))
        check_tokens(recording, row, probe)
        check_positions(recording, row["round"], probe)
        check_logits(recording, row["round"], probe)
        check_cache(recording, row, probe)


def check_tokens(recording: Recording, row: dict, probe: Probe):
    index = row["round"]
    assert probe.input_ids == recording.array(index, "input_ids").tolist(), f"ids of round {index}"
    generated = recording.array(index, "generated_ids").tolist()
    assert probe.reply[: len(generated)] == generated, f"reply of round {index}"


def check_positions(recording: Recording, index: int, probe: Probe):
    recorded = torch.from_numpy(recording.array(index, "position_ids"))
    # Native positions were recorded of the new tokens alone, contiguous ones of all.
    assert torch.equal(probe.positions[:, -recorded.shape[1] :], recorded), f"positions of round {index}"
    if recording.config.get("pos_mode") != "append":
        assert recorded.shape[1] == len(probe.input_ids)
    decoded = recording.array(index, "dec_pos")
    if len(decoded):
        spoken = probe.after.positions[:, len(probe.input_ids) :][:, : len(decoded)]
        assert torch.equal(spoken.T, torch.from_numpy(decoded)), f"positions of the reply of round {index}"


def check_logits(recording: Recording, index: int, probe: Probe):
    top_ids = torch.from_numpy(recording.array(index, "prefill_top_ids")).long()
    assert_close(probe.logits[0][top_ids], recording.array(index, "prefill_top_logits"), index)
    strided_ids = range(0, len(probe.logits[0]), STRIDE) if recording.strided_ids is None else recording.strided_ids
    strided = probe.logits[0][torch.as_tensor(np.array(strided_ids)).long()]
    assert_close(strided, recording.array(index, "prefill_logits_strided"), index)
    step_ids, step_logits = recording.array(index, "step_top_ids"), recording.array(index, "step_top_logits")
    for logits, ids, recorded in zip(probe.logits, step_ids, step_logits, strict=True):
        assert_close(logits[torch.from_numpy(ids).long()], recorded, index)


def check_cache(recording: Recording, row: dict, probe: Probe):
    assert probe.num_cached == row["kv_len_at_prefill"]
    assert probe.after.num_cached == row["kv_len_after_generate"]
    is_reused = probe.num_cached > 0 and recording.config.get("pos_mode") != "append"
    for name, norms in (("k_norm", probe.key_norms), ("v_norm", probe.value_norms)):
        recorded = recording.array(row["round"], name)
        if is_reused and recorded is not None:
            assert_close(norms.square().sum(-1).sqrt(), recorded, row["round"], tolerance=1e-3)


def assert_close(actual: torch.Tensor, recorded: np.ndarray, index: int, tolerance: float = LOGIT_TOLERANCE):
    difference = (actual - torch.from_numpy(recorded)).abs().max().item()
    assert difference <= tolerance, f"round {index}: {difference} away"
