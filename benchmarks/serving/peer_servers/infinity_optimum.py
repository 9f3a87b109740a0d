"""infinity's command line with its optimum engine made to start. Runs in that peer's environment."""

from __future__ import annotations

import torch.onnx.symbolic_opset14 as symbolic

# optimum 1.27's exporter, which infinity imports and does not use, wants these from torch; 2.13 has them no more.
for name in ("_attention_scale", "_causal_attention_mask"):
    if not hasattr(symbolic, name):
        setattr(symbolic, name, None)

from infinity_emb.cli import cli  # noqa: E402 - behind what it needs

if __name__ == "__main__":
    cli()
