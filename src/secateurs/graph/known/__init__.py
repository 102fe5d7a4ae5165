"""What is certain of every tensor for every input: proven from the trace and the zeros among the parameters."""

from secateurs.graph.known.interpret import interpret
from secateurs.graph.known.knowing import Knowing
from secateurs.graph.known.state import Known

__all__ = ["Knowing", "Known", "interpret"]
