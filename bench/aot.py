"""Every Triton kernel compiled ahead of time, without a GPU.

    python bench/aot.py                                     sm_80, sm_90, sm_100, gfx942
    python bench/aot.py --arch 86 89 120                    GPUs with less shared memory
    python bench/aot.py --arch 90 --out bench/results/aot.md

Reports registers, spills, shared memory, wide loads and tensor cores. The package's own launchers
run (compiled/variants.py), on meta tensors of real sizes, with a driver that reports the GPU.
Triton's JIT compiles what they launch and stops there. So types, alignments, constants, block sizes
and warps are those of a real run.

--out writes a table, and JSON beside it. It keeps the results of other versions of Triton there.
Exit status 1 if a rule is broken. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
import triton.knobs

from compiled.chips import CHIPS, Chip, Compiled, compile_variant
from compiled.variants import HIDDEN_SIZE, VARIANTS, VOCAB_SIZE, Variant
from measure import environment
from report import markdown
from srt_kernels.lm_head import logits_kernel

LARGE_CHIPS = ["80", "90", "100", "gfx942"]

HEADER = f"""# Kernels compiled ahead of time

`python bench/aot.py --out bench/results/aot.md` with each version of Triton; no GPU.
V {VOCAB_SIZE}, H {HIDDEN_SIZE} unless a line says otherwise. A cell is: registers of a thread /
bytes that it spills / bytes of shared memory of a block / warps at a time in a multiprocessor (of
64 on NVIDIA GPUs, of 32 wavefronts on gfx942). Loads and tensor core instructions are in aot.json.
"""


def broken_rules(compiled: Compiled, variant: Variant, chip: Chip) -> list[str]:
    """What is wrong with a compiled variant, a line for each rule."""
    lines = []
    if compiled.spilled or compiled.spills:
        lines.append(f"spills: {compiled.spilled} bytes a thread, {compiled.spills} instructions")
    if compiled.shared > chip.block_shared:
        lines.append(f"shared memory: {compiled.shared} bytes of at most {chip.block_shared}")
    if compiled.occupancy == 0:
        lines.append(f"no block fits: {compiled.registers} registers, {compiled.warps} warps")
    loaded = variant.streams * logits_kernel.BLOCK
    wide_loads = loaded // (4 * chip.target.warp_size * compiled.warps)
    if compiled.wide_loads < wide_loads:
        lines.append(f"128-bit loads: {compiled.wide_loads}, expected {wide_loads}")
    if variant.needs_tensor_cores and not compiled.tensor:
        lines.append(f"tensor cores: no {chip.tensor}")
    return lines


def compile_row(variant: Variant, chip: Chip) -> dict[str, Any]:
    """A row of the JSON document. If a compiler raises, the error is its result."""
    try:
        compiled = compile_variant(variant, chip)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        return {
            "kernel": variant.kernel,
            "variant": variant.name,
            "arch": chip.name,
            "broken": [text],
        }
    return asdict(compiled) | {"broken": broken_rules(compiled, variant, chip)}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "registers" not in row:
        return "FAILED"
    spilled = f"**{row['spilled']}**" if row["spilled"] else "0"
    return f"{row['registers']} / {spilled} / {row['shared']} / {row['occupancy']}"


def table(version: str, rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each variant, a column for each GPU, and the broken rules below."""
    archs = {row["arch"] for row in rows}
    chips = [chip.name for chip in CHIPS.values() if chip.name in archs]
    cells = {(row["kernel"], row["variant"], row["arch"]): _cell(row) for row in rows}
    names = list(dict.fromkeys((row["kernel"], row["variant"]) for row in rows))
    lines = [[*name, *(cells.get((*name, chip), "") for chip in chips)] for name in names]
    text = markdown(f"Triton {version}", ["kernel", "variant", *chips], lines)
    broken = [
        f"- {row['kernel']}[{row['variant']}] on {row['arch']}: {rule}"
        for row in rows
        for rule in row["broken"]
    ]
    verdict = "\n".join(["Broken:", *broken]) if broken else "No rule is broken."
    return f"{text}\n{verdict}\n"


def save(path: Path, document: dict[str, Any]) -> None:
    """Write table and JSON beside the results of other versions of Triton."""
    json_path = path.with_suffix(".json")
    documents = json.loads(json_path.read_text()) if json_path.exists() else {}
    documents[document["triton"]] = document
    documents = dict(sorted(documents.items()))
    text = json.dumps(documents, indent=1)
    text = text.replace("\n    ", " ").replace("\n   }", " }")  # a row is a line
    json_path.write_text(text + "\n")
    tables = [table(version, saved["rows"]) for version, saved in documents.items()]
    path.write_text("\n".join([HEADER, *tables]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", choices=CHIPS, default=LARGE_CHIPS)
    parser.add_argument("--out", type=Path, help="Markdown file; JSON goes beside it")
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("expected TRITON_INTERPRET unset: the interpreter compiles nothing")
    warnings.simplefilter("ignore")  # fusion of multiply and add will be off by default
    rows = []
    for variant in VARIANTS:
        for arch in options.arch:
            row = compile_row(variant, CHIPS[arch])
            rows.append(row)
            text = f"{variant} {CHIPS[arch].name}: {_cell(row)} {'; '.join(row['broken'])}"
            print(text, file=sys.stderr, flush=True)
    document = {
        "triton": triton.__version__,
        "environment": environment(torch.device("cpu")),
        "rows": rows,
    }
    if options.out:
        save(options.out, document)
    print(table(triton.__version__, rows))
    print(json.dumps(document))
    return int(any(row["broken"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
