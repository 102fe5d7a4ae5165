"""Small models of every kind, for tests and benchmarks of structural pruning."""

from __future__ import annotations

from zoo.attention import ATTENTION
from zoo.classic import CLASSIC
from zoo.convolutions import CONVOLUTIONS
from zoo.hub import TRANSFORMERS
from zoo.oddities import ODDITIES
from zoo.sequences import SEQUENCES
from zoo.subject import Subject, channels_last, randomised

HAND_WRITTEN: list[Subject] = [*CONVOLUTIONS, *ATTENTION, *SEQUENCES, *ODDITIES]

__all__ = ["CLASSIC", "HAND_WRITTEN", "TRANSFORMERS", "Subject", "channels_last", "randomised"]
