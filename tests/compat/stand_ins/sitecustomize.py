"""Python runs this at its start, ahead of a pair's server, where torchvision can't load its operators.

The registry's torchvision is built against torch for GPUs; beside a torch for CPUs its operators do not load. It goes
on without them, but for two that it describes to torch's compiler at import, loaded or not: "operator torchvision::nms
does not exist". So these are declared here, without code behind them. ResNet-50 needs none, and transformers, which
imports torchvision where it is installed, none either.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

if found := find_spec("torchvision"):
    try:
        torch.ops.load_library(Path(found.origin).with_name("_C.so"))
    except OSError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in "nms", "qnms":
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
