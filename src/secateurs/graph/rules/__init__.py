"""What each operation says of the dimensions of its operands."""

from secateurs.graph.rules.shapes import stretches
from secateurs.graph.rules.table import RULES, rule_of

__all__ = ["RULES", "rule_of", "stretches"]
