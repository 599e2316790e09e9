import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from streamingvlm.cli.command_line import Command, quote
from streamingvlm.cli.configurations import CONFIGS
from streamingvlm.cli.explanations import explain
from streamingvlm.cli.main import run
from streamingvlm.config import RENAMED_SETTINGS
from streamingvlm.errors import ConfigError, StreamingVLMError


def command(task, config_name="stream", plain="source"):
    """A command with the options of a stream, which calls ``task``."""
    text = ("query", "previous_text", "output.path")
    return Command("streamingvlm stream", config_name, plain, task, text=text)


ODD_TEXTS = [
    "",
    "Who's on, then?",
    'He said "goal", and left',
    "a = b, c: [d] {e} (f) ~g +h",
    "${oc.env:HOME} costs $5 \\${x}",
    "ends in \\",
    "\\\\'",
    "two\nlines\tand a tab",
    "Где мяч? 球在哪里",
    "  spaces around  ",
    "3",
    "true",
    "'open",
    "''''",
]


def value_of(override):
    """The value of an override after Hydra's grammar and OmegaConf's interpolation."""
    parsed = OverridesParser.create().parse_override(override)
    config = OmegaConf.create({})
    OmegaConf.update(config, parsed.key_or_group, parsed.value(), force_add=True)
    return OmegaConf.to_container(config, resolve=True)


def options_of(words):
    """The options that the task receives."""
    received = []
    run(command(received.append), words)
    return received[0]


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("'\"\\${}=, ab") | st.sampled_from(ODD_TEXTS))
def test_free_text_reaches_the_script_as_it_was_typed(text):
    if quote(text) == text:
        return  # null, and text in quotes of its own, are Hydra's
    assert value_of(f"query={quote(text)}") == {"query": text}


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_questions_survive_the_whole_command_line(text):
    words = [f"query={text}", f"previous_text={text}", f"output.path={text}"]
    options = options_of(words)
    assert (options["query"], options["previous_text"], options["output"]["path"]) == (text, text, text)


@pytest.mark.parametrize(
    "path",
    [
        "match.mp4",
        "my match.mp4",
        "a=b.mp4",
        "/videos/a=b, c.mp4",
        "x,y.mp4",
        "it's [1] {2}.mp4",
        "../up.mp4",
        "7",
        "null.mp4",
    ],
)
def test_a_plain_word_is_the_video(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if not path.startswith(("/", ".")):
        (tmp_path / path).touch()
    options = options_of([path, "video.fps=4", "cache=full"])
    assert options["source"] == path
    assert options["video"]["fps"] == 4
    assert options["cache"]["policy"] == "full"


def test_without_a_word_there_is_no_video():
    assert options_of([])["source"] is None


def test_the_video_may_be_anywhere_and_words_after_a_double_dash_are_paths():
    assert options_of(["cache=full", "match.mp4"])["source"] == "match.mp4"
    assert options_of(["cache=full", "--", "-cache=full"])["source"] == "-cache=full"


def test_an_option_takes_precedence_over_a_file_of_the_same_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache=full").touch()
    options = options_of(["cache=full"])
    assert (options["cache"]["policy"], options["source"]) == ("full", None)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("pitch", "pitch"),
        ("streamingvlm", "mit-han-lab/StreamingVLM"),
        ("mit-han-lab/StreamingVLM", "mit-han-lab/StreamingVLM"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("/models/my model, v=2", "/models/my model, v=2"),
    ],
)
def test_a_model_is_a_choice_a_folder_or_a_name_on_the_hub(value, name):
    assert options_of([f"model={value}"])["model"]["name"] == name


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["cache=foo"], ["cache=foo", "streaming", "full", "window", "recompute", "reference"]),
        (
            ["cache.vision_windw_s=8"],
            ["cache.vision_windw_s", "did you mean cache.vision_window_s?", "text_sink_tokens"],
        ),
        (["cahce=full"], ["cahce=full", "did you mean cache?", "query"]),
        (["x=y.mp4"], ["x=y.mp4", "nor a file"]),
        (["video.fps.x=1"], ["video.fps.x", "video.fps is a value"]),
        (["~cahce"], ["cahce", "did you mean cache?"]),
        (["video.fps=[1"], ["video.fps=[1", "cannot be parsed"]),
        (["video.chunk_s=2"], ["video.chunk_s was renamed to video.turn_s"]),
        (["cache.reread_text=true"], ["cache.reread_text was renamed to cache.recompute_text"]),
        (["--fps", "2"], ["--fps", "fps=VALUE"]),
        (["a.mp4", "b.mp4"], ["a.mp4", "b.mp4", "quotes"]),
        (["--config-name", "nowhere"], ["--config-name is unknown"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_word_is_named_in_one_line(words, parts, capsys):
    with pytest.raises(SystemExit) as exit_:
        options_of(words)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("streamingvlm stream: ")
    assert error.count("\n") == 1
    assert [part for part in parts if part not in error] == []


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("max_new_tokens=7", "sampling.max_new_tokens", 7),
        ("text_sink_tokens=64", "cache.text_sink_tokens", 64),
        ("seed=3", "sampling.seed", 3),
        ("min_pixels=784", "video.min_pixels", 784),
    ],
)
def test_a_short_name_is_found_at_any_depth_and_said(word, name, value, capsys):
    group, option = name.split(".")
    assert options_of([word])[group][option] == value
    assert capsys.readouterr().err == f"streamingvlm stream: {word} is taken as {name}={value}\n"


@pytest.mark.parametrize("words", [["fps=4"], ["device=cpu"]])
def test_a_name_of_the_top_level_is_taken_as_it_is(words, capsys):
    name, _, value = words[0].partition("=")
    assert str(options_of(words)[name]) == value
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("dtype=float16", ["dtype is ambiguous; give ", "cache.dtype=float16", "model.dtype=float16"]),
        ("max_new_tokenz=4", ["did you mean sampling.max_new_tokens?"]),
        ("temprature=1", ["did you mean sampling.temperature?"]),
        ("fps=8,16", ["for value in 8 16; do streamingvlm stream fps=$value; done", "[8,16]"]),
        ("video.fps=8,16", ["for value in 8 16; do streamingvlm stream video.fps=$value; done"]),
        ("cache=full,window", ["for value in full window; do streamingvlm stream cache=$value; done"]),
    ],
)
def test_a_short_name_that_is_wrong_and_a_sweep_are_answered_with_what_to_give(word, parts, capsys):
    with pytest.raises(SystemExit) as exit_:
        options_of([word])
    error = capsys.readouterr().err
    assert (exit_.value.code, error.count("\n")) == (2, 1)
    assert [part for part in parts if part not in error] == []


def run_task(task):
    run(command(task), [])


def raising(error):
    def task(options):
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StreamingVLMError("a.mp4: no such file"), 2, "streamingvlm stream: a.mp4: no such file\n"),
        (ConfigError("video.fps=-1"), 2, "streamingvlm stream: video.fps=-1\n"),
        (KeyboardInterrupt(), 130, "streamingvlm stream: stopped\n"),
    ],
)
def test_user_errors_end_in_one_line(error, code, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_task(raising(error))
    assert exit_.value.code == code
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_task(lambda options: 1 / 0)


def test_other_hydra_errors_are_cut_to_their_first_line():
    assert explain(HydraException("\nfirst\nsecond"), command(print), []) == "first"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("candidate=ordinary", "renamed to candidate=offline_generate"),
        ("candidate.video.chunk_s=2", "renamed to candidate.video.turn_s"),
    ],
)
def test_an_old_name_inside_a_group_is_answered_with_the_new_one(word, hint, capsys):
    task = command(lambda options: pytest.fail("the task ran"), "evaluate", "benchmark")
    with pytest.raises(SystemExit) as exit_:
        run(task, ["benchmark=livesports", word])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert hint in error and error.count("\n") == 1


@pytest.mark.parametrize("group", [section for section in RENAMED_SETTINGS if section.endswith("=")])
def test_new_names_of_renamed_choices_exist(group):
    for choice in RENAMED_SETTINGS[group].values():
        assert (CONFIGS / group.rstrip("=") / f"{choice}.yaml").is_file()


def test_a_full_disk_is_reported_in_one_line(capsys):
    def write_to_full_disk(options):
        with open("/dev/full", "w") as file:
            file.write("a result")

    with pytest.raises(SystemExit) as ended:
        run_task(write_to_full_disk)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "streamingvlm stream: a file cannot be written (No space left on device); free some space and run it again\n"
    )
