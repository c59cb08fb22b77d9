"""optc: a compiler for transformer inference."""

__all__ = ["__version__"]

__version__ = "0.1.0"
