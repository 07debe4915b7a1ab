"""Files that are damaged, too deep, or on a full disk."""

import json
import resource

import pytest

from srt_fast.files import MAX_DEPTH, append_rows, open_rows, parse_json, write_atomically


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 100_000])
def test_json_that_is_nested_too_deep(depth):
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="at most 64 lists and objects"):
        parse_json('{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}")


def test_a_resume_drops_damaged_rows_and_counts_them(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": "2"}\n[3]\n{"loss": 4}\n{"step": 5}\n{"st')
    open_rows(file, 9).close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1},
        {"step": 5},
    ]
    assert "dropped 5 damaged rows" in caplog.text


def test_a_row_on_a_full_disk_names_the_file_and_is_the_last():
    """Another row would follow a half-written one."""
    with open("/dev/full", "a") as file:
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            append_rows(file, [{"step": 1}])
        assert file.closed


def test_a_full_disk_leaves_the_old_file(tmp_path):
    file = tmp_path / "summary.json"
    write_atomically(file, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"summary\.json"):
            write_atomically(file, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
