"""Published methods, each a short composition of the parts: they differ in arguments, not in machinery."""

from secateurs.methods.at_initialisation import grasp_, snip_, synflow_
from secateurs.methods.autoprune import autoprune_
from secateurs.methods.bit_pruning import bit_pruning_
from secateurs.methods.castellano import castellano_
from secateurs.methods.collins_kohli import memory_bounded_
from secateurs.methods.controls import dense_of_size_, random_start_, width_of_size
from secateurs.methods.deep_compression import deep_compression_
from secateurs.methods.depth import depth_
from secateurs.methods.early_bird import early_bird_
from secateurs.methods.energy_aware import energy_aware_
from secateurs.methods.fbs import fbs_
from secateurs.methods.fpgm import fpgm_
from secateurs.methods.group_sparsity import group_sparsity_
from secateurs.methods.growing import growing_regularisation_
from secateurs.methods.han import iterative_magnitude_
from secateurs.methods.kwon import kwon2022_
from secateurs.methods.l0 import l0_
from secateurs.methods.low_rank import svd_
from secateurs.methods.maskllm import maskllm_
from secateurs.methods.molchanov import taylor_
from secateurs.methods.movement import movement_
from secateurs.methods.netadapt import netadapt_
from secateurs.methods.oats import oats_
from secateurs.methods.obs import obs_
from secateurs.methods.pcas import pcas_
from secateurs.methods.reap import reap_
from secateurs.methods.reconstruction import he2017_, thinet_
from secateurs.methods.rewinding import learning_rate_rewinding_, lottery_ticket_, random_ticket_
from secateurs.methods.slimming import network_slimming_
from secateurs.methods.soft_threshold import str_
from secateurs.methods.sparse_training import ac_dc_, granet_, rigl_, sparse_evolutionary_
from secateurs.methods.sparsegpt import sparsegpt_
from secateurs.methods.spatten import spatten_
from secateurs.methods.sr_ste import sr_ste_
from secateurs.methods.ssl import ssl_
from secateurs.methods.teal import teal_
from secateurs.methods.wanda import wanda_
from secateurs.methods.zhu_gupta import gradual_magnitude_

__all__ = [
    "ac_dc_",
    "autoprune_",
    "bit_pruning_",
    "castellano_",
    "deep_compression_",
    "dense_of_size_",
    "depth_",
    "early_bird_",
    "energy_aware_",
    "fbs_",
    "fpgm_",
    "gradual_magnitude_",
    "granet_",
    "grasp_",
    "group_sparsity_",
    "growing_regularisation_",
    "he2017_",
    "iterative_magnitude_",
    "kwon2022_",
    "l0_",
    "learning_rate_rewinding_",
    "lottery_ticket_",
    "maskllm_",
    "memory_bounded_",
    "movement_",
    "netadapt_",
    "network_slimming_",
    "oats_",
    "obs_",
    "pcas_",
    "random_start_",
    "random_ticket_",
    "reap_",
    "rigl_",
    "snip_",
    "sparse_evolutionary_",
    "sparsegpt_",
    "spatten_",
    "sr_ste_",
    "ssl_",
    "str_",
    "svd_",
    "synflow_",
    "taylor_",
    "teal_",
    "thinet_",
    "wanda_",
    "width_of_size",
]
