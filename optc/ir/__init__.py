"""Thin helpers over onnx_ir: load and save, structural checks, canonical ops, interfaces."""
