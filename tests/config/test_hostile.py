"""Files and command lines that are broken, hostile or hold passwords: one ValueError, no effect."""

import contextlib
import io

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srt_fast import cli
from srt_fast.config import override, to_dict
from srt_fast.config.arguments import configure, split_arguments
from srt_fast.config.overrides import read_file
from srt_fast.config.recipes import quickstart

YAML_TEXT = yaml.safe_dump(to_dict(quickstart()), sort_keys=False)
TOML_TEXT = "[train]\nlr = 0.5\nbetas = [0.9, 0.95]\n[task.params]\nmax_digits = 2\n"
FRAGMENTS = [*":{}[]-&*!|>'\"#%\n\t,?=", "3: ", "null", "~: 1", "[[", "{a: ", "1e999", "&a ", "*a"]
FRAGMENTS += ["<<: ", "\x00", "\x1b", "0x", "1_0", "!!python/object:os.system ", "2020-01-01", "]]"]
WORDS = ["quickstart", "--train.lr", "--model", "--task.params", "--vllm.urls", "--train.betas"]
WORDS += ["", "-1", "nan", "1e999", "a=b", "a=[", "a=!!python/object/apply:os.system ['id']", "="]
NO_FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
@settings(max_examples=60, deadline=None, suppress_health_check=NO_FIXTURES)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(FRAGMENTS), st.integers(0, 30)),
        min_size=1,
        max_size=3,
    )
)
def test_a_mutated_file_is_a_configuration_or_one_error(tmp_path, suffix, edits):
    """Each edit replaces a few characters of the file."""
    text = YAML_TEXT if suffix == ".yaml" else TOML_TEXT
    for place, fragment, length in edits:
        start = int(place * len(text))
        text = text[:start] + fragment + text[start + length :]
    file = tmp_path / f"run{suffix}"
    file.write_text(text)
    with contextlib.suppress(ValueError):
        override(quickstart(), read_file(file))


@settings(max_examples=15, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
def test_any_words_are_a_configuration_or_an_error(words):
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.suppress(ValueError, SystemExit):
        configure(split_arguments(words), "train")
    assert "Traceback" not in output.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3: {lr: 1}", "3: unknown field"),
        ("null: 1", "None: unknown field"),
        ("train: 3", "train: expected a table of fields, got 3"),
        ("train: {lr: " + "9" * 5000 + "}", "expected valid YAML"),
        ("task: " + "[" * 3000, "expected valid YAML"),
        ("model: !!python/object/apply:os.system ['touch pwned']", "expected valid YAML"),
        ("model: {path: 'https://user:secret@host/m'}", "model.path: expected a URL without user"),
        ("task: {params: {files: [{a: 'http://secret@h'}]}}", "task.params.files.0.a: expected"),
        ("vllm: {urls: ['http://user:secret@host:1']}", "vllm.urls.0: expected a URL without user"),
        ("vllm: {urls: 'ftp://user:secret@host'}", "got 'ftp://***@host'"),
    ],
)
def test_a_hostile_file_is_one_error(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    assert cli.main(["train", "bad.yaml"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: bad.yaml: ")
    assert "secret" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("command", [["train", "quickstart"], ["vote"], ["eval"], ["report"]])
def test_control_characters_in_arguments_reach_no_terminal(capsys, command):
    """tyro and argparse print unknown arguments as they are."""
    assert cli.main([*command, "--\x1b]0;title\x07"]) == 2
    assert "got '--\\x1b]0;title\\x07'" in capsys.readouterr().err
