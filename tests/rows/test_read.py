"""Rows of files: one table in every format, encodings, and errors that name the place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast.rows.fields import get_value, missing_field_error
from srt_fast.rows.json_rows import read_json
from srt_fast.rows.read import read_rows

ROWS = [{"prompt": "é\u2028x", "text": f"{i},\n{{"} for i in range(3000)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
BOM = "\ufeff"


def values(*names: object) -> list:
    return [row for _, row in read_rows([str(name) for name in names], "FILE")]


def as_csv(separator: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "text"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_table(write: Callable) -> bytes:
    sink = io.BytesIO()
    write(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def write_arrow(table: pyarrow.Table, sink: io.BytesIO) -> None:
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_stream(table: pyarrow.Table, sink: io.BytesIO) -> None:
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def as_inspect_log(samples: list[dict]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("header.json", "{}")
        for number, sample in enumerate(samples):
            archive.writestr(f"samples/{number}.json", json.dumps(sample))
    return sink.getvalue()


FILES = {
    "a.jsonl": LINES.encode(),
    "bom.jsonl": (BOM + LINES).encode(),
    "utf-16.jsonl": (BOM + LINES).encode("utf-16-le"),
    "old mac.jsonl": LINES.replace("\n", "\r").encode(),
    "windows.jsonl": LINES.replace("\n", "\r\n\r\n").encode(),
    "no last line end.jsonl": LINES.rstrip().encode(),
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "numbered.json": json.dumps({str(i): row for i, row in enumerate(ROWS)}).encode(),
    "inspect.json": json.dumps({"eval": {}, "samples": ROWS}, indent=1).encode(),
    "inspect.eval": as_inspect_log(ROWS),
    "a.csv": as_csv(","),
    "semicolons.csv": as_csv(";"),
    "a.tsv": as_csv("\t"),
    "a.parquet": as_table(pyarrow.parquet.write_table),
    "a.arrow": as_table(write_arrow),
    "stream.arrow": as_table(write_stream),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "a.jsonl.bz2": bz2.compress(LINES.encode()),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.json.zst": pyarrow.compress(json.dumps(ROWS).encode(), "zstd", asbytes=True),
    "a.csv.gz": gzip.compress(as_csv(",")),
    "a.parquet.gz": gzip.compress(as_table(pyarrow.parquet.write_table)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_has_the_same_rows(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(FILES[name])
    assert values(tmp_path / name) == ROWS


def test_a_folder_and_a_pattern_are_their_files(tmp_path: Path, caplog):
    (tmp_path / "in").mkdir()
    for name, row in (("b.jsonl", 2), ("a.jsonl", 1), ("in/c.jsonl.gz", 3)):
        text = json.dumps({"n": row}).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    (tmp_path / "README.md").write_text("#")
    (tmp_path / "empty.json").write_text(" \n")
    assert [row["n"] for row in values(tmp_path)] == [1, 2, 3]
    assert "skipped 1 of 5 files: their names are not those of data files" in caplog.text
    assert "skipped 1 of 4 files: no rows" in caplog.text
    assert [row["n"] for row in values(tmp_path / "[ab].jsonl", tmp_path / "a.jsonl")] == [1, 2, 1]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False) | st.text(), max_size=3)
        | st.lists(st.integers() | st.text(max_size=3)),
        min_size=1,
    ),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
)
def test_an_array_gives_the_rows_that_python_reads(rows: list, ascii_only: bool, indent):
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    if any("\ud800" <= character <= "\udfff" for character in text):
        return  # no UTF-8
    numbered = [{"numbered": row} for row in rows]  # apart from what rows_of opens
    text = json.dumps(numbered, ensure_ascii=ascii_only, indent=indent)
    assert [row for _, row in read_json("x", io.StringIO(text))] == numbered


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.jsonl",
            '{"a": 1}\n{"a": "ó"}'.encode("latin-1"),
            "line 2: expected UTF-8, got byte 0x",
        ),
        (
            "a.json",
            '[\n{"a": 1},\n{"a": "ó"}]'.encode("latin-1"),
            "line 3: expected UTF-8, got byte",
        ),
        ("a.csv", "a,b\n1,ó\n".encode("latin-1"), "line 2: expected UTF-8, got byte 0xf3"),
        ("a.jsonl", "\ufeffx".encode("utf-16-le")[:-1], "expected text in utf-16"),
        ("a.jsonl", b'# x\n{"a": 1}\n', "line 1: expected a JSON object, got '# x'"),
        ("a.jsonl", b'{"a": 1}\n# x\n{"a": 1}\n', "line 2: expected a JSON object, got '# x'"),
        ("a.jsonl", b'{"a": 1}\n{"a": "b', "line 2: .*Unterminated.*the file may be cut"),
        ("a.json", b'[\n{"a": 1},\n{"a": "b', "line 3: .*Unterminated.*the file may be cut"),
        ("a.json", b'[{"a": 1},', "the file may be cut"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}]', "line 3: expected a JSON object, got"),
        ("a.csv", b'a,b\n1,2\n3,"x', "line 3: .*unexpected end of data; the file may be cut"),
        ("a.csv", b"a,b\n1,2,3\n", r"line 2: expected 2 cells, got 3 \(columns a, b\)"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-99], "expected a whole compressed file"),
        ("a.jsonl.zst", FILES["a.json.zst"][:-9], "expected a whole compressed file|may be cut"),
        ("a.parquet", FILES["a.parquet"][:-99], "expected a whole Parquet file"),
        ("a.arrow", FILES["a.arrow"][:-99], "expected a whole Arrow file"),
        ("a.eval", FILES["inspect.eval"][:-99], "expected a log of inspect"),
        ("a.eval", as_inspect_log([]), "expected a log of inspect with samples, got an archive of"),
    ],
)
def test_damage_is_one_error_with_its_place(name: str, data: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        values(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))


ROW = {
    "response": {"body": {"choices": [{"text": "a"}, {"text": "b"}]}},
    "x.y": 1,
    "s_1": "c",
    "s_2": None,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("response.body.choices.*.text", ["a", "b"]),
        ("response.body.choices.1.text", "b"),
        ("response.*.choices.0.text", ["a"]),
        ("s_*", ["c", None]),
        ("s_2,s_1", [None, "c"]),
        ("x.y", 1),
        ("response.x", None),
        ("z_*", None),
    ],
)
def test_a_path_goes_into_objects_and_lists(path: str, value: object):
    assert get_value(ROW, path) == value


def test_a_missing_field_is_named_beside_the_fields_that_there_are():
    error = missing_field_error("a.jsonl, line 1", ROW, "response.body.choice", "--gold")
    assert str(error) == (
        "a.jsonl, line 1: expected a value in field 'response.body.choice' (--gold), got fields "
        "choices in 'response.body'"
    )
