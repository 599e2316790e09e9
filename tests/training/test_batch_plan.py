"""The examples of a step depend only on seed and step, however the step is split over processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import DataError, VideoError
from streamingvlm.training.batch_plan import BatchPlan
from streamingvlm.training.step_loader import StepLoader

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def plan_of(lengths, **settings):
    defaults = {"num_examples": len(lengths), "batch_size": 5, "num_steps": 100, "length_of": lengths.__getitem__}
    return BatchPlan(**defaults | settings)


@given(lengths=LENGTHS, batch_size=st.integers(1, 12), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_has_every_example_once(lengths, batch_size, seed, epoch):
    plan = plan_of(lengths, batch_size=batch_size, seed=seed)
    first = epoch * plan.steps_per_epoch
    steps = [plan.examples(step) for step in range(first, first + plan.steps_per_epoch)]
    assert sorted(example for step in steps for example in step) == list(range(len(lengths)))
    assert all(len(step) == batch_size for step in steps[:-1])
    assert plan.epoch_at(first) == epoch


def test_epochs_and_seeds_differ_and_repeat_themselves():
    plan = plan_of([1] * 40)
    assert plan.examples(0) == plan_of([1] * 40).examples(0)
    assert plan.examples(0) != plan.examples(plan.steps_per_epoch)
    assert plan.examples(0) != plan_of([1] * 40, seed=1).examples(0)
    assert plan_of([1] * 40, seed=None).examples(1) == [5, 6, 7, 8, 9]


@given(
    lengths=LENGTHS,
    num_processes=st.integers(1, 4),
    accumulation_steps=st.integers(1, 3),
    pack_tokens=st.sampled_from([0, 50, 80, 1000]),
    step=st.integers(0, 20),
)
def test_the_processes_share_a_step_between_them(lengths, num_processes, accumulation_steps, pack_tokens, step):
    shared = {"num_processes": num_processes, "pack_tokens": pack_tokens}
    plan = plan_of(lengths, accumulation_steps=1 if pack_tokens else accumulation_steps, **shared)
    shares = [plan.micro_batches(step, process) for process in range(num_processes)]
    busy = [micro for share in shares for micro in share if not micro.is_padding]
    assert len({len(share) for share in shares}) == 1
    assert sorted(example for micro in busy for example in micro.examples) == sorted(plan.examples(step))
    if pack_tokens:
        assert all(sum(lengths[example] for example in micro.examples) <= pack_tokens for micro in busy)


@pytest.mark.parametrize("first", [0, 3, 7])
def test_a_resumed_run_gets_the_batches_it_would_have_got(first):
    plan = plan_of([1] * 12, num_steps=7, num_processes=2, accumulation_steps=2)
    dataset = list(range(12))

    def steps(**more):
        return list(StepLoader(dataset, lambda examples: {"examples": examples}, plan, process_index=1, **more))

    assert steps(first_step=lambda: first) == steps()[first:]
    assert steps(num_workers=1) == steps()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_error_of_an_example_is_raised_unchanged(num_workers):
    class Broken(list):
        def __getitem__(self, index):
            raise VideoError(f"{index}.mp4 is cut off; copy it again")

    with pytest.raises(VideoError) as error:
        list(StepLoader(Broken(range(12)), list, plan_of([1] * 12), num_workers=num_workers))
    assert str(error.value).endswith(".mp4 is cut off; copy it again") and "\n" not in str(error.value)


class SomeBad(list):
    """Examples of which some cannot be read."""

    bad = (0, 7, 8)

    def __getitem__(self, index):
        if index in self.bad:
            raise VideoError(f"{index}.mp4 is cut off; copy it again")
        return index


def collate(examples):
    return {"examples": tuple(examples), "weights": torch.ones(len(examples))}


def examples_of(steps):
    return [[e for micro in step if micro["weights"].any() for e in micro["examples"]] for step in steps]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("splits", [{"accumulation_steps": 5}, {"pack_tokens": 2}, {"accumulation_steps": 1}])
def test_bad_examples_are_skipped_named_and_counted_and_the_others_keep_their_order(num_workers, splits, caplog):
    plan = plan_of([1] * 12, num_steps=6, seed=None, **splits)
    good = examples_of(StepLoader(list(range(12)), collate, plan))
    loader = StepLoader(SomeBad(range(12)), collate, plan, num_workers=num_workers, max_bad_fraction=0.25)
    steps = list(loader)
    assert [len(step) for step in steps] == [len(plan.micro_batches(number, 0)) for number in range(6)]
    assert examples_of(steps) == [[e for e in step if e not in SomeBad.bad] for step in good]
    assert len(loader.bad) == 3
    assert "3 of 12 examples so far: 8.mp4 is cut off" in caplog.text


def test_too_many_bad_examples_end_the_run():
    loader = StepLoader(SomeBad(range(12)), collate, plan_of([1] * 12, seed=None), max_bad_fraction=0.2)
    with pytest.raises(DataError, match=r"3 of 12 examples cannot be read, more than max_bad_fraction=0.2.*8\.mp4"):
        list(loader)


def test_a_process_without_work_runs_padding_batches_of_weight_0():
    plan = plan_of([10] * 3, batch_size=3, num_processes=2, pack_tokens=10, num_steps=1)
    mine, other = (
        [
            int(batch["weights"])
            for step in StepLoader([5, 6, 7], _weighing, plan, process_index=process)
            for batch in step
        ]
        for process in (0, 1)
    )
    assert (len(mine), len(other)) == (2, 2)
    assert 0 not in mine and other[1] == 0
    assert torch.tensor(mine + other).sum() == 5 + 6 + 7


def _weighing(examples):
    return {"weights": torch.tensor(examples)}
