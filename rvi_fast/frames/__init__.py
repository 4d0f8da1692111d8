"""pandas DataFrames of columns of all kinds, as numbers that a model takes, and back."""

from .encoder import FrameEncoder
from .kinds import KINDS, recognise

__all__ = ["KINDS", "FrameEncoder", "recognise"]
