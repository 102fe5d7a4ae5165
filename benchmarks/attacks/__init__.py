"""Attacks on what the package promises: damaged and hostile files, killed processes, whatever a training loop may do to masks."""

from attacks.kills import KILLS, kill
from attacks.mutants import KINDS, mutants, sound
from attacks.sequences import CHECKS, sequence
from attacks.verdict import Verdict

__all__ = ["CHECKS", "KILLS", "KINDS", "Verdict", "kill", "mutants", "sequence", "sound"]
