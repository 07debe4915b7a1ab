"""What a terminal is shown: no control characters, no passwords, no output of C code."""

import io
import subprocess
import sys

import pytest

from srt_fast.errors import hide_passwords, print_text, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("100 %\rdone\x7f\x9b1m", r"100 %\rdone\x7f\x9b1m"),
        ("a\u2028b \u202etxt.exe", r"a\u2028b \u202etxt.exe"),
        ("caf\udce9", r"caf\udce9"),
        ("é 東京\n\tx\\n", "é 東京\n\tx\\n"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown


def test_print_text_writes_what_the_stream_can_hold():
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    print_text("é \x1b http://user:secret@host:1/a@b http://h/c@d", stream)
    stream.flush()
    assert buffer.getvalue() == rb"\xe9 \x1b http://***@host:1/a@b http://h/c@d" + b"\n"
    assert hide_passwords("https://token@host") == "https://***@host"


NATIVE = """
import ctypes, os, sys
from pathlib import Path
from srt_fast.errors import native_output_to
libc = ctypes.CDLL(None)
try:
    with native_output_to(Path(sys.argv[1])):
        libc.puts(b"puts")  # C keeps it back until the end of the process
        os.write(2, b"write\\n")
        os.system("echo child")
        print("python")
        print("python error", file=sys.stderr)
        raise ValueError("start failed")
except ValueError as error:
    print(error)
os.write(1, b"afterwards\\n")
"""


def test_output_of_c_code_goes_to_the_file(tmp_path):
    """Python's goes where it went before, and so does all output afterwards."""
    log = tmp_path / "vllm.log"
    log.write_text("earlier\n")
    process = subprocess.run(
        [sys.executable, "-c", NATIVE, str(log)], capture_output=True, text=True, check=True
    )
    assert sorted(log.read_text().split()) == ["child", "earlier", "puts", "write"]
    assert sorted(process.stdout.splitlines()) == ["afterwards", "python", "start failed"]
    assert process.stderr == "python error\n"
