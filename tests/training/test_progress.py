"""Throughput metrics match the steps they describe, and held-out streams leave the run unchanged."""

import io
import logging
import random
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, Trainer, TrainingArguments

from streamingvlm.errors import ConfigError
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import example_from
from streamingvlm.training.flops import StepFlops
from streamingvlm.training.progress import HeldOutStream, ProgressLine
from streamingvlm.training.throughput import ThroughputLogger, ThroughputMeter, example_lengths
from streamingvlm.turns import Turn, TurnFormat

NUM_STEPS = 4


class Slow(torch.nn.Module):
    """A model whose step takes a while."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids, labels, **_):
        time.sleep(0.03)
        return {"loss": self.weight.square().sum()}


class MeteredTrainer(Trainer):
    """transformers' Trainer with a meter."""

    meter: ThroughputMeter

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self.meter.data_wait():
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self.meter.count(batch)
        return batches, num_items


@pytest.fixture
def turns(tiny_checkpoint):
    return TurnFormat(AutoTokenizer.from_pretrained(tiny_checkpoint()), temporal_step=1.0)


def example(turns, num_turns):
    seconds = [Turn(n, n, n + 1, (1, 2, 2)) for n in range(num_turns)]
    tokens = turns.prologue()
    for second in seconds:
        tokens += turns.open_turn(second) + turns.reply(second, "the ball")
    return example_from("chunk", tokens, torch.zeros(4 * num_turns, 8))


def train(turns, folder, callbacks, meter=None, *, wait_s=0.0, num_steps=NUM_STEPS, log_every=2):
    """Train for some steps of two examples, one of 1 and one of 3 turns."""
    examples = [example(turns, 1), example(turns, 3)] * num_steps

    def collate(batch):
        time.sleep(wait_s)
        return Collate(0)(batch)

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=2,
        logging_steps=log_every,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = MeteredTrainer(
        model=Slow(), args=arguments, train_dataset=examples, data_collator=collate, callbacks=callbacks
    )
    trainer.meter = meter or ThroughputMeter(turns.end_of_turn_id)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(examples)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], examples


def test_every_log_entry_has_the_pace_of_its_own_steps(turns, tmp_path):
    meter = ThroughputMeter(turns.end_of_turn_id)
    history, examples = train(turns, tmp_path, [ThroughputLogger(meter, turn_s=2.0)], meter)
    num_tokens = sum(len(one.input_ids) for one in examples[:2])
    for entry in history:
        assert 0 < entry["tokens_per_s"] < 2 * num_tokens / 0.06
        # 4 turns of 2 s a step
        assert entry["video_s_per_s"] / entry["tokens_per_s"] == pytest.approx(8 / num_tokens)
        assert entry["peak_memory_gb"] > 0.01
        assert "mfu" not in entry
    assert len(history) == 2


def test_data_wait_is_separate_from_compute(turns, tmp_path):
    shares = []
    for wait_s in (0.0, 0.09):
        meter = ThroughputMeter(turns.end_of_turn_id)
        history, _ = train(turns, tmp_path, [ThroughputLogger(meter)], meter, wait_s=wait_s)
        shares.append(history[-1]["data_wait"])
    assert 0 <= shares[0] < shares[1] <= 1


class Idle(HeldOutStream):
    """Time between two steps that belongs to neither."""

    def __init__(self):
        super().__init__(lambda: time.sleep(0.5), every_steps=1, show=lambda *_: None)


def test_time_between_steps_does_not_count(turns, tmp_path):
    meter = ThroughputMeter(turns.end_of_turn_id)
    history, examples = train(turns, tmp_path, [ThroughputLogger(meter), Idle()], meter, log_every=1)
    tokens_a_step = sum(len(one.input_ids) for one in examples[:2])
    # Steps of 30 ms: with the half second beside each, a step would take more than half a second.
    assert max(entry["tokens_per_s"] for entry in history) > tokens_a_step / 0.5


def test_mfu_is_model_flops_over_peak_flops(turns, tmp_path):
    flops = StepFlops(per_token=10, per_supervised_token=100, per_pair=2)
    meter = ThroughputMeter(turns.end_of_turn_id, flops=flops)
    history, examples = train(turns, tmp_path, [ThroughputLogger(meter, peak_tflops=1e-9)], meter)
    lengths = [len(one.input_ids) for one in examples[:2]]
    num_supervised = sum(int((one.labels >= 0).sum()) for one in examples[:2])
    for entry in history:
        flops_per_token = flops.of(lengths, num_supervised) / sum(lengths)
        assert entry["mfu"] == pytest.approx(entry["tokens_per_s"] * flops_per_token / 1e3)


def test_a_padding_batch_is_not_counted(turns):
    meter = ThroughputMeter(turns.end_of_turn_id)
    batch = Collate(0)([example(turns, 2)])
    meter.count({**batch, "weights": torch.zeros(3)})
    assert meter.counters.num_tokens == meter.counters.num_turns == 0
    meter.count(batch)
    assert meter.counters.num_turns == 2


@pytest.mark.parametrize("sizes", [(1, 3, 2), (4,), (2, 2)])
def test_padding_tokens_are_not_counted(turns, sizes):
    examples = [example(turns, size) for size in sizes]
    lengths = [len(one.input_ids) for one in examples]
    assert example_lengths(Collate(0)(examples)) == lengths
    assert example_lengths({"cu_seqlens": torch.tensor([0, *np.cumsum(lengths)])}) == lengths


def test_extra_metrics_join_the_log(turns, tmp_path):
    meter = ThroughputMeter(turns.end_of_turn_id)
    history, _ = train(
        turns, tmp_path, [ThroughputLogger(meter, extra_metrics=lambda: {"vision/hit_rate": 0.5})], meter
    )
    assert history[-1]["vision/hit_rate"] == 0.5


def test_a_peak_of_0_is_refused():
    with pytest.raises(ConfigError, match="peak_tflops"):
        ThroughputLogger(ThroughputMeter(0), peak_tflops=0)


def test_without_a_terminal_lines_go_to_the_log(turns, tmp_path, caplog):
    meter = ThroughputMeter(turns.end_of_turn_id)
    file = io.StringIO()
    with caplog.at_level(logging.INFO):
        train(turns, tmp_path, [ThroughputLogger(meter), ProgressLine(Console(file=file))], meter)
    lines = [record.message for record in caplog.records if record.name.endswith("progress")]
    assert [line.split(":")[0] for line in lines] == ["step 2 of 4", "step 4 of 4"]
    assert all(word in lines[0] for word in ("loss ", "tokens/s", "data wait", "left"))
    assert "left" not in lines[1] and file.getvalue() == ""


def test_in_a_terminal_a_bar_goes_to_its_end(turns, tmp_path, caplog):
    meter = ThroughputMeter(turns.end_of_turn_id)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200)
    with caplog.at_level(logging.INFO):
        train(turns, tmp_path, [ThroughputLogger(meter), ProgressLine(console)], meter)
    assert "4/4" in file.getvalue() and "tokens/s" in file.getvalue()
    assert not [record for record in caplog.records if record.name.endswith("progress")]


def test_a_held_out_stream_runs_every_n_steps_and_at_the_end(turns, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(turns, tmp_path, [HeldOutStream(lambda: "said and true", every_steps=2)], num_steps=5)
    told = [record.message for record in caplog.records if "said and true" in record.message]
    assert [message.splitlines()[0] for message in told] == [f"held-out stream after step {n}" for n in (2, 4, 5)]
    steps = []
    tell = HeldOutStream(str, every_steps=2, show=lambda step, _: steps.append(step))
    train(turns, tmp_path, [tell], num_steps=5)
    assert steps == [2, 4, 5]
    with pytest.raises(ConfigError, match="every_steps=0"):
        HeldOutStream(str, every_steps=0)


def test_the_meter_does_not_change_random_states(turns, tmp_path):
    def drawn(callbacks):
        torch.manual_seed(0)
        random.seed(0)
        train(turns, tmp_path, callbacks)
        return torch.rand(1).item(), random.random()

    assert drawn([]) == drawn([ThroughputLogger(ThroughputMeter(0)), ProgressLine()])
