"""All families of the zoo.

Nothing in optc knows these names: a family that does not fuse is a missing equivalence.
"""

from __future__ import annotations

from decoders import DECODERS, PADDED_DECODERS
from encoder_decoders import ENCODER_DECODERS, PADDED_ENCODER_DECODERS
from encoders import ENCODERS, PADDED_ENCODERS
from perception import PERCEPTION
from plain_torch import PLAIN_TORCH

FAMILIES = (
    DECODERS
    | ENCODERS
    | PERCEPTION
    | PLAIN_TORCH
    | ENCODER_DECODERS
    | PADDED_DECODERS
    | PADDED_ENCODERS
    | PADDED_ENCODER_DECODERS
)
