"""Published methods, each a short composition of the parts: they differ in arguments, not in machinery."""

from secateurs.methods.han import iterative_magnitude_
from secateurs.methods.obs import obs_
from secateurs.methods.rewinding import learning_rate_rewinding_, lottery_ticket_
from secateurs.methods.sparsegpt import sparsegpt_
from secateurs.methods.wanda import wanda_
from secateurs.methods.zhu_gupta import gradual_magnitude_

__all__ = [
    "gradual_magnitude_",
    "iterative_magnitude_",
    "learning_rate_rewinding_",
    "lottery_ticket_",
    "obs_",
    "sparsegpt_",
    "wanda_",
]
