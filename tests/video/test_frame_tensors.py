"""The same frames in every form that a user has them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamingvlm.errors import VideoError
from streamingvlm.video.frame_tensors import group_frames, to_frame, to_frames
from streamingvlm.video.video_turn import VideoTurn

# A side of 3 could be the channels, too: then tensors are read channels first, and arrays channels last.
SIDES = st.integers(1, 12).filter(lambda side: side != 3)


@st.composite
def videos(draw) -> np.ndarray:
    """Draw uint8 frames [F, H, W, 3]."""
    shape = (draw(st.integers(1, 4)), draw(SIDES), draw(SIDES), 3)
    return np.random.default_rng(draw(st.integers(0, 999))).integers(0, 256, shape, dtype=np.uint8)


def forms(video: np.ndarray):
    """Every form of the same frames [F, H, W, 3]."""
    first = np.ascontiguousarray(video.transpose(0, 3, 1, 2))
    read_only = video.copy()
    read_only.flags.writeable = False
    mirrored = np.ascontiguousarray(video[:, ::-1, ::-1])[:, ::-1, ::-1]  # strides below 0
    images = [Image.fromarray(frame) for frame in video]
    stacks = [video, first, read_only, mirrored, torch.from_numpy(video), torch.from_numpy(first)]
    yield from stacks
    yield from (list(stack) for stack in stacks)
    yield from (images, tuple(images), [image.convert("RGBA") for image in images])
    yield [frame if index % 2 else image for index, (frame, image) in enumerate(zip(first, images, strict=True))]


@given(videos())
def test_every_form_gives_the_same_frames(video):
    expected = torch.from_numpy(video.transpose(0, 3, 1, 2).copy())
    for form in forms(video):
        assert torch.equal(to_frames(form), expected)
    for frame in (video[0], expected[0], Image.fromarray(video[0])):
        assert torch.equal(to_frame(frame), expected[0])
        assert torch.equal(to_frames(frame), expected[:1])


def test_the_channels_of_an_ambiguous_frame_are_first_in_tensors_and_last_in_arrays():
    frame = torch.arange(3 * 5 * 3, dtype=torch.uint8).view(3, 5, 3)
    assert torch.equal(to_frame(frame), frame)
    assert torch.equal(to_frame(frame.numpy()), frame.permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA"])
def test_images_of_other_modes_become_rgb(mode):
    image = Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode)
    assert torch.equal(to_frame(image), torch.full((3, 4, 6), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    "wrong, remedy",
    [
        (torch.zeros(2, 3, 4, 6), r"float32 \[2, 3, 4, 6\].*\(frames \* 255\)\.round\(\)\.to\(torch\.uint8\)"),
        (np.zeros((4, 6, 3), np.float64), r"\(frames \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (np.zeros((4, 6, 3), np.int64), r"int64.* with frames\.astype\(np\.uint8\)"),
        (np.zeros((4, 6), np.uint8), "grey"),
        (np.zeros((2, 4, 6, 1), np.uint8), "grey"),
        (torch.zeros(4, 5, 6, dtype=torch.uint8), "alpha"),
        (np.zeros((4, 6, 4), np.uint8), "alpha"),
        (torch.zeros(5, 2, 5, 4, 6, dtype=torch.uint8), "a list"),
        (np.zeros((0, 4, 6, 3), np.uint8), r"\[0, 4, 6, 3\]"),
        (Image.new("F", (6, 4)), "mode F"),
        (Image.new("I;16", (6, 4)), "mode I;16"),
        ([], "no frame"),
        ([np.zeros((4, 6, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)], "6 x 4, 8 x 4"),
        (None, "None"),
        ([None, None], "None"),
        ("match.mp4", "a str"),
    ],
)
def test_anything_else_is_refused_in_one_line(wrong, remedy):
    with pytest.raises(VideoError, match=remedy) as error:
        to_frames(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_single_frames_are_grouped_and_the_last_group_is_filled_up(num_frames):
    video = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 6)
    groups = list(group_frames(video, num_frames))
    values = torch.cat(groups)[:, 0, 0, 0].tolist()
    assert {len(group) for group in groups} == {num_frames}
    assert values == list(range(5)) + [4] * (-5 % num_frames)


def test_a_camera_may_write_all_frames_to_the_same_memory():
    def camera():
        memory = np.zeros((4, 6, 3), np.uint8)
        for value in range(4):
            memory[:] = value
            yield memory

    assert [group[:, 0, 0, 0].tolist() for group in group_frames(camera(), 2)] == [[0, 1], [2, 3]]


def test_turns_among_single_frames_stay_in_order():
    frame = np.full((4, 6, 3), 7, np.uint8)
    turn = VideoTurn(0, 0.0, 1.0, to_frames([frame, frame]))
    items = list(group_frames([turn, frame, turn, [frame, frame]], 2))
    assert items[0] is turn and items[2] is turn and torch.equal(items[1], turn.frames) and len(items[3]) == 2


def test_what_cannot_be_iterated_is_refused():
    with pytest.raises(VideoError, match=r"a float.*camera's number"):
        list(group_frames(0.5, 2))
