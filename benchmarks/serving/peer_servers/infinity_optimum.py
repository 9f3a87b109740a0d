"""infinity's command line with its optimum engine made to start. Runs in that peer's environment."""

from __future__ import annotations

import os
import sys

from torch.onnx._internal.torchscript_exporter import symbolic_opset14

# optimum 1.27's exporter, which is imported and not used here, takes names from this module that torch 2.13 moved.
sys.modules["torch.onnx.symbolic_opset14"] = symbolic_opset14

from infinity_emb.cli import cli  # noqa: E402 - behind what it needs

if __name__ == "__main__":
    # It hands a graph's whole path to optimum, which wants the name within the model's folder; here the two are one.
    place = sys.argv.index("--model-id") + 1
    os.chdir(sys.argv[place])
    sys.argv[place] = "."
    cli()
