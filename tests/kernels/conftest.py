"""The ops on one device.

Plain: the PyTorch path on a CPU. TRITON_INTERPRET=1: the Triton kernels in the interpreter.
SRT_TEST_DEVICE=cuda: the kernels on a GPU. Needs torch, triton and pytest only: run it alone with
--confcutdir.
"""

import os

import pytest
import torch

DEVICE = os.environ.get("SRT_TEST_DEVICE", "cpu")
torch.set_default_device(DEVICE)


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(
        reason="bad values are an assertion on the device, and end the process's use of it"
    )
    for item in items:
        if DEVICE != "cpu" and item.originalname == "test_bad_input":
            item.add_marker(skip)
