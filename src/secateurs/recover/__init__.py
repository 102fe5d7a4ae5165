"""Getting the accuracy back: one training loop, hooks, schedules."""

from secateurs.recover.ac_dc import ac_dc
from secateurs.recover.attention import distill_attention
from secateurs.recover.biases import Corrected, correct_biases_
from secateurs.recover.bits import learned_bits, quantised
from secateurs.recover.connectivity import Line, Rewinding, Training, instability, line_between, rewinding_point
from secateurs.recover.distill import distill
from secateurs.recover.dropout import adjust_dropout_, dropout_rates
from secateurs.recover.early_bird import early_bird
from secateurs.recover.evaluate import evaluate
from secateurs.recover.features import attention_transfer, distill_features, distill_tokens
from secateurs.recover.gates import channel_attention
from secateurs.recover.gradual import gradual, rewind_
from secateurs.recover.growing import growing_penalty
from secateurs.recover.hard_concrete import hard_concrete, l0_gates, open_probability
from secateurs.recover.hooks import clip_gradients, mask_gradients, per_step
from secateurs.recover.learned_masks import learned_n_of_m, mixed_mask, sparse_refined
from secateurs.recover.loop import train_
from secateurs.recover.movement import Movement, movement_pruning
from secateurs.recover.penalties import group_lasso, penalty
from secateurs.recover.proximal import Step
from secateurs.recover.prune_at import prune_at
from secateurs.recover.reconstruct import BlockTraining, Reconstructed, reconstruct_
from secateurs.recover.regrowth import gradual_regrowth, rigl, sparse_evolutionary
from secateurs.recover.rescale import rescale_
from secateurs.recover.restart import restart_
from secateurs.recover.schedules import Schedule, cubic, geometric, linear, one_shot
from secateurs.recover.target import Target
from secateurs.recover.teacher import Teacher, teacher_of
from secateurs.recover.thresholding import hard_threshold
from secateurs.recover.thresholds import indicated, indicators, soft_movement, soft_threshold, soft_thresholded
from secateurs.recover.tickets import shuffled
from secateurs.recover.trainers import lightning_callback, trainer_callback
from secateurs.recover.training_macs import step_macs, training_macs

__all__ = [
    "BlockTraining",
    "Corrected",
    "Line",
    "Movement",
    "Reconstructed",
    "Rewinding",
    "Schedule",
    "Step",
    "Target",
    "Teacher",
    "Training",
    "ac_dc",
    "adjust_dropout_",
    "attention_transfer",
    "channel_attention",
    "clip_gradients",
    "correct_biases_",
    "cubic",
    "distill",
    "distill_attention",
    "distill_features",
    "distill_tokens",
    "dropout_rates",
    "early_bird",
    "evaluate",
    "geometric",
    "gradual",
    "gradual_regrowth",
    "group_lasso",
    "growing_penalty",
    "hard_concrete",
    "hard_threshold",
    "indicated",
    "indicators",
    "instability",
    "l0_gates",
    "learned_bits",
    "learned_n_of_m",
    "lightning_callback",
    "line_between",
    "linear",
    "mask_gradients",
    "mixed_mask",
    "movement_pruning",
    "one_shot",
    "open_probability",
    "penalty",
    "per_step",
    "prune_at",
    "quantised",
    "reconstruct_",
    "rescale_",
    "restart_",
    "rewind_",
    "rewinding_point",
    "rigl",
    "shuffled",
    "soft_movement",
    "soft_threshold",
    "soft_thresholded",
    "sparse_evolutionary",
    "sparse_refined",
    "step_macs",
    "teacher_of",
    "train_",
    "trainer_callback",
    "training_macs",
]
