"""PyTorch in, ONNX and reference answers out: the only package that imports torch.

Importing this package does not import torch; the functions do, when called.
"""

from optc.frontend.export import export_model, write_reference

__all__ = ["export_model", "write_reference"]
