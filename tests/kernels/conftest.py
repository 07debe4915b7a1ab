"""The ops on one device: the CPU's PyTorch path, with TRITON_INTERPRET=1 the Triton kernels in the interpreter, and with
SRT_TEST_DEVICE=cuda the kernels on a GPU. Needs torch, triton and pytest only: run it alone with --confcutdir."""

import os

import torch

torch.set_default_device(os.environ.get("SRT_TEST_DEVICE", "cpu"))
