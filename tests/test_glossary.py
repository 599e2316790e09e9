"""One word, one meaning: names that the glossary of docs/architecture.md replaced are not used as identifiers."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("streamingvlm", "scripts", "dev")

# Names that the glossary replaced, wherever they stand.
RETIRED = frozenset(
    """
    Job SpokenTurn HeardTurn AskJob WeighJob SaveJob JobsInHand _feeding _speaking advance_
    Meal meals feed_ feed_all_ speak_
    StreamingDecoder fed_ say_ said_ see_ prepare_ unread serials new_serials
    Sight SightAhead look_at_ look_ahead_ hand_over
    _hush_ weighed_ first_ids take_ is_cut
    told_query query_told_ hear weigh looks_ahead submit_heard spoken_turn
    admit_ dismiss_ withdraw warm_
    TokenStep FixedTokens Speaker _ground
    PackedTokens new_offsets num_seen max_new max_seen
    Ends text_states
    Choice or_ SeenTokens see_only_ seen_ids
    Extents lengthen _pack _see_to SCRATCH_ROW
    Eviction text_survivors reread_text
    SnapshotKeeper _Home
    Second chunk_s Picture thinned
    Stamped mend
    Order Steps _Telling is_idle
    Commentator num_asked Encoded UnseenSecond
    mark_whole Meter Passed
    Hub Gate Gateway places
    utter instruct
    Link doubt unsettle settle lose KeptSession Later
    """.split()  # noqa: SIM905 - a list of words, to be read
)


@cache
def names(path):
    """Every identifier that a file defines or uses, with its line: names, attributes, arguments, classes, functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=name):
                found.append((name, node.lineno if hasattr(node, "lineno") else 0))
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.append((name, node.lineno))
            case ast.alias(name=name, asname=other):
                found += [(part, node.lineno) for part in (*name.split("."), other or "")]
    return found


def sources():
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_the_reader_sees_definitions_uses_and_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from a.b import c as d\nclass E:\n    def f(self, g): return self.h(i=g)\n")
    assert {name for name, _ in names(file)} >= {"a", "b", "c", "d", "E", "f", "g", "h", "i"} - {"a", "b"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_retired_name_is_used(folder):
    used = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources()
        if path.is_relative_to(ROOT / folder)
        for name, line in names(path)
        if name in RETIRED
    ]
    assert used == []


def test_no_file_is_named_by_a_retired_word():
    words = {re.sub(r"(?<!^)(?=[A-Z])", "_", name.strip("_")).lower() for name in RETIRED if name[0].isupper()}
    words -= {"eviction"}  # the class is EvictionPlan, the concept keeps its name
    assert [str(path) for path in sources() if path.stem in words] == []
