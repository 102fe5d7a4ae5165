"""Architectures of the `transformers` package, built from tiny configurations; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from zoo.subject import Subject, floats, keywords, subject, tokens

Example = Callable[[], Any]

TEXT = {"vocab_size": 97, "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
WIDE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
GROUPED = {**WIDE, "num_key_value_heads": 2}
IMAGE = {"image_size": 32, "num_channels": 3}


def hub(name: str, family: str, architecture: str, example: Example, **settings: Any) -> Subject:
    """A subject that is `transformers.<architecture>` with these settings in its configuration."""

    def build() -> nn.Module:
        model_class = getattr(import_module("transformers"), architecture)
        return model_class(model_class.config_class(**settings))

    return subject(name, family, build, example)


def no() -> bool:
    """The example of `use_cache`."""
    return False


def encoder(name: str, architecture: str, **settings: Any) -> Subject:
    """A model of a text of 7 tokens."""
    return hub(name, "encoder", architecture, keywords(input_ids=tokens(2, 7)), **{**TEXT, **settings})


def decoder(name: str, architecture: str, **settings: Any) -> Subject:
    """A language model, called without a cache."""
    example = keywords(input_ids=tokens(2, 7), use_cache=no)
    return hub(name, "decoder", architecture, example, **{**TEXT, **settings})


def translator(name: str, architecture: str, **settings: Any) -> Subject:
    """An encoder of 7 tokens and a decoder of 5."""
    example = keywords(input_ids=tokens(2, 7), decoder_input_ids=tokens(2, 5, seed=3), use_cache=no)
    return hub(name, "encoder-decoder", architecture, example, **{**TEXT, "decoder_start_token_id": 2, **settings})


def vision(name: str, architecture: str, size: int = 32, **settings: Any) -> Subject:
    """A model of images."""
    return hub(name, "vision", architecture, keywords(pixel_values=floats(2, 3, size, size)), **{"image_size": size, **settings})


def audio(name: str, architecture: str, **settings: Any) -> Subject:
    """A model of 400 samples of sound."""
    return hub(name, "audio", architecture, keywords(input_values=floats(2, 400)), **settings)


SPEECH: dict[str, Any] = {
    **WIDE,
    "vocab_size": 29,
    "conv_dim": (20, 24, 28),
    "conv_kernel": (8, 3, 3),
    "conv_stride": (4, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
}
BART: dict[str, Any] = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
}
T5: dict[str, Any] = {"d_model": 40, "d_kv": 12, "d_ff": 72, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8}
HIERARCHY: dict[str, Any] = {"embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}
TWO_TOWERS: dict[str, Any] = {
    "text_config": {**TEXT, **WIDE, "max_position_embeddings": 16},
    "vision_config": {**IMAGE, **WIDE, "hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64, "patch_size": 8},
}

ENCODERS = [
    encoder("bert", "BertForSequenceClassification", **WIDE),
    encoder("bert_eager", "BertForMaskedLM", attn_implementation="eager", **WIDE),
    encoder("roberta", "RobertaForSequenceClassification", **WIDE),
    encoder("xlm_roberta", "XLMRobertaForTokenClassification", **WIDE),
    encoder("camembert", "CamembertForMaskedLM", **WIDE),
    encoder("distilbert", "DistilBertForSequenceClassification", dim=48, n_layers=2, n_heads=4, hidden_dim=80),
    encoder("albert", "AlbertForSequenceClassification", embedding_size=20, **WIDE),
    encoder("electra", "ElectraForSequenceClassification", embedding_size=20, **WIDE),
    encoder("deberta", "DebertaForSequenceClassification", pos_att_type=["c2p", "p2c"], relative_attention=True, **WIDE),
    encoder(
        "deberta_v2",
        "DebertaV2ForSequenceClassification",
        pos_att_type=["c2p", "p2c"],
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        **WIDE,
    ),
    encoder("mpnet", "MPNetForSequenceClassification", **WIDE),
    encoder("mobilebert", "MobileBertForSequenceClassification", **{**WIDE, "embedding_size": 20, "intra_bottleneck_size": 24}),
    encoder("squeezebert", "SqueezeBertForSequenceClassification", **{**WIDE, "embedding_size": 48}),
    encoder("convbert", "ConvBertForSequenceClassification", embedding_size=20, **WIDE),
    encoder("fnet", "FNetForSequenceClassification", hidden_size=48, num_hidden_layers=2, intermediate_size=80),
    encoder("modernbert", "ModernBertForSequenceClassification", cls_token_id=2, sep_token_id=3, **WIDE),
    encoder("roformer", "RoFormerForSequenceClassification", embedding_size=20, **WIDE),
    encoder("funnel", "FunnelForSequenceClassification", block_sizes=[1, 1], d_model=48, n_head=4, d_head=12, d_inner=80),
    hub(
        "xlnet",
        "encoder",
        "XLNetModel",
        keywords(input_ids=tokens(2, 7)),
        vocab_size=97,
        d_model=48,
        n_layer=2,
        n_head=4,
        d_inner=80,
    ),
    encoder("longformer", "LongformerForSequenceClassification", attention_window=4, **WIDE),
    encoder("ibert", "IBertForSequenceClassification", **WIDE),
    encoder("esm", "EsmForSequenceClassification", position_embedding_type="rotary", mask_token_id=4, **WIDE),
    encoder("nystromformer", "NystromformerForSequenceClassification", num_landmarks=7, segment_means_seq_len=7, **WIDE),
]
DECODERS = [
    decoder("gpt2", "GPT2LMHeadModel", n_embd=48, n_layer=2, n_head=4, n_inner=80, n_positions=40),
    decoder("gpt2_eager", "GPT2ForSequenceClassification", n_embd=36, n_layer=2, n_head=3, attn_implementation="eager"),
    decoder("gptj", "GPTJForCausalLM", n_embd=48, n_layer=2, n_head=4, n_inner=80, rotary_dim=8),
    decoder("gpt_neox", "GPTNeoXForCausalLM", **WIDE),
    decoder("gpt_neo", "GPTNeoForCausalLM", attention_types=[[["global", "local"], 1]], num_layers=2, num_heads=4, hidden_size=48),
    decoder("gpt_bigcode", "GPTBigCodeForCausalLM", n_embd=48, n_layer=2, n_head=4, n_inner=80),
    decoder("codegen", "CodeGenForCausalLM", n_embd=48, n_layer=2, n_head=4, rotary_dim=8),
    decoder(
        "opt", "OPTForCausalLM", hidden_size=48, num_hidden_layers=2, num_attention_heads=4, ffn_dim=80, word_embed_proj_dim=48
    ),
    decoder(
        "opt_projected",
        "OPTForCausalLM",
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=80,
        word_embed_proj_dim=20,
        do_layer_norm_before=False,
    ),
    decoder("llama", "LlamaForCausalLM", **GROUPED),
    decoder("llama_eager", "LlamaForSequenceClassification", attn_implementation="eager", **GROUPED),
    decoder("llama_head_dim", "LlamaForCausalLM", head_dim=8, attention_bias=True, mlp_bias=True, **GROUPED),
    decoder("mistral", "MistralForCausalLM", sliding_window=4, **GROUPED),
    decoder("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True, **GROUPED),
    decoder("qwen3", "Qwen3ForCausalLM", head_dim=16, **GROUPED),
    decoder("gemma", "GemmaForCausalLM", head_dim=16, **{**GROUPED, "num_key_value_heads": 1}),
    decoder("gemma2", "Gemma2ForCausalLM", head_dim=16, sliding_window=4, query_pre_attn_scalar=16, **GROUPED),
    decoder("gemma3", "Gemma3ForCausalLM", head_dim=16, sliding_window=4, query_pre_attn_scalar=16, **GROUPED),
    decoder("phi", "PhiForCausalLM", partial_rotary_factor=0.5, qk_layernorm=True, **WIDE),
    decoder("phi3", "Phi3ForCausalLM", **GROUPED),
    decoder("falcon", "FalconForCausalLM", multi_query=True, ffn_hidden_size=80, **WIDE),
    decoder(
        "falcon_grouped",
        "FalconForCausalLM",
        new_decoder_architecture=True,
        num_kv_heads=2,
        ffn_hidden_size=80,
        bias=True,
        **WIDE,
    ),
    decoder("bloom", "BloomForCausalLM", hidden_size=48, n_layer=2, n_head=4),
    decoder("mpt", "MptForCausalLM", d_model=48, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=40),
    decoder("stablelm", "StableLmForCausalLM", partial_rotary_factor=0.5, qk_layernorm=True, use_qkv_bias=True, **GROUPED),
    decoder("cohere", "CohereForCausalLM", use_qk_norm=True, **GROUPED),
    decoder("olmo", "OlmoForCausalLM", clip_qkv=8.0, **GROUPED),
    decoder("olmo2", "Olmo2ForCausalLM", **GROUPED),
    decoder("starcoder2", "Starcoder2ForCausalLM", **GROUPED),
    decoder("granite", "GraniteForCausalLM", **GROUPED),
    decoder("glm", "GlmForCausalLM", head_dim=12, **GROUPED),
    decoder("nemotron", "NemotronForCausalLM", **GROUPED),
    decoder("smollm3", "SmolLM3ForCausalLM", **GROUPED),
    decoder("ernie4_5", "Ernie4_5ForCausalLM", head_dim=12, **GROUPED),
    decoder("seed_oss", "SeedOssForCausalLM", head_dim=16, **GROUPED),
    decoder("persimmon", "PersimmonForCausalLM", **WIDE),
    decoder("biogpt", "BioGptForCausalLM", **WIDE),
    decoder("xglm", "XGLMForCausalLM", d_model=48, ffn_dim=80, num_layers=2, attention_heads=4),
    decoder("openai_gpt", "OpenAIGPTLMHeadModel", n_embd=48, n_layer=2, n_head=4, n_positions=40),
    decoder("ctrl", "CTRLLMHeadModel", n_embd=48, n_layer=2, n_head=4, dff=80, n_positions=40),
]
MIXTURES = [
    decoder("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **GROUPED),
    decoder("mixtral_eager", "MixtralForCausalLM", num_local_experts=4, experts_implementation="eager", **GROUPED),
    decoder(
        "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=28, head_dim=16, **GROUPED
    ),
    decoder("olmoe", "OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2, **GROUPED),
    decoder("gpt_oss", "GptOssForCausalLM", num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=4, **GROUPED),
    decoder("phimoe", "PhimoeForCausalLM", num_local_experts=4, num_experts_per_tok=2, **GROUPED),
    decoder(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=28,
        shared_expert_intermediate_size=36,
        **GROUPED,
    ),
    decoder(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        q_lora_rank=20,
        kv_lora_rank=24,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=14,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=28,
        first_k_dense_replace=1,
        **{**WIDE, "num_key_value_heads": 4},
    ),
]
RECURRENT = [
    decoder("mamba", "MambaForCausalLM", hidden_size=36, num_hidden_layers=2, state_size=6, time_step_rank=5, expand=2),
    decoder(
        "mamba2",
        "Mamba2ForCausalLM",
        hidden_size=32,
        num_hidden_layers=2,
        state_size=6,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=4,
    ),
    decoder("rwkv", "RwkvForCausalLM", hidden_size=48, attention_hidden_size=36, intermediate_size=80, num_hidden_layers=2),
    decoder(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        hidden_size=48,
        lru_width=60,
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=12,
        intermediate_size=160,
        attention_window_size=8,
    ),
]
TRANSLATORS = [
    translator("t5", "T5ForConditionalGeneration", feed_forward_proj="relu", **T5),
    translator("mt5", "MT5ForConditionalGeneration", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5),
    hub("t5_encoder", "encoder", "T5EncoderModel", keywords(input_ids=tokens(2, 7)), **{**TEXT, **T5}),
    translator("bart", "BartForConditionalGeneration", **BART),
    translator("mbart", "MBartForConditionalGeneration", **BART),
    translator("pegasus", "PegasusForConditionalGeneration", **BART),
    translator("marian", "MarianMTModel", **BART),
    translator("blenderbot", "BlenderbotForConditionalGeneration", **BART),
    translator("prophetnet", "ProphetNetForConditionalGeneration", hidden_size=48, num_encoder_layers=2, num_decoder_layers=2,
               num_encoder_attention_heads=4, num_decoder_attention_heads=3, encoder_ffn_dim=80, decoder_ffn_dim=72),
    translator("switch", "SwitchTransformersForConditionalGeneration", num_experts=3, num_decoder_layers=2, num_sparse_encoder_layers=1,
               num_sparse_decoder_layers=1, **T5),
    hub(
        "whisper",
        "encoder-decoder",
        "WhisperForConditionalGeneration",
        keywords(input_features=floats(2, 10, 24), decoder_input_ids=tokens(2, 5), use_cache=no),
        **{**TEXT, **BART, "num_mel_bins": 10, "max_source_positions": 12, "max_target_positions": 20},
        decoder_start_token_id=2,
    ),
    hub(
        "speech_to_text",
        "encoder-decoder",
        "Speech2TextForConditionalGeneration",
        keywords(input_features=floats(2, 24, 10), decoder_input_ids=tokens(2, 5), use_cache=no),
        **{**TEXT, **BART, "input_feat_per_channel": 10, "conv_channels": 28, "max_source_positions": 24},
    ),
]  # fmt: skip
IMAGES = [
    vision("vit", "ViTForImageClassification", patch_size=8, **WIDE),
    vision("vit_eager", "ViTModel", patch_size=8, attn_implementation="eager", **WIDE),
    vision("deit", "DeiTForImageClassification", patch_size=8, **WIDE),
    vision("beit", "BeitForImageClassification", patch_size=8, use_relative_position_bias=True, use_mean_pooling=True, **WIDE),
    vision("data2vec_vision", "Data2VecVisionForImageClassification", patch_size=8, use_shared_relative_position_bias=True, **WIDE),
    vision("dinov2", "Dinov2ForImageClassification", patch_size=8, mlp_ratio=2, **WIDE),
    vision("dinov2_swiglu", "Dinov2Model", patch_size=8, mlp_ratio=2, use_swiglu_ffn=True, **WIDE),
    vision("swin", "SwinForImageClassification", **HIERARCHY),
    vision("swinv2", "Swinv2ForImageClassification", **HIERARCHY),
    vision(
        "segformer",
        "SegformerForSemanticSegmentation",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 24],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 3],
        mlp_ratios=[2, 3],
        decoder_hidden_size=28,
    ),
    vision("convnext", "ConvNextForImageClassification", hidden_sizes=[16, 24, 36], depths=[1, 2, 1], num_stages=3),
    vision("convnextv2", "ConvNextV2ForImageClassification", hidden_sizes=[16, 24, 36], depths=[1, 2, 1], num_stages=3),
    vision("resnet", "ResNetForImageClassification", embedding_size=12, hidden_sizes=[24, 40], depths=[1, 2]),
    vision("resnet_basic", "ResNetModel", embedding_size=12, hidden_sizes=[24, 40], depths=[1, 2], layer_type="basic"),
    vision("regnet", "RegNetForImageClassification", embedding_size=12, hidden_sizes=[24, 40], depths=[1, 2], groups_width=8),
    vision(
        "mobilevit",
        "MobileViTForImageClassification",
        size=64,
        hidden_sizes=[24, 32, 40],
        neck_hidden_sizes=[8, 12, 16, 20, 24, 28, 36],
        num_attention_heads=4,
    ),
    vision("mobilevitv2", "MobileViTV2ForImageClassification", size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]),
    vision("mobilenet_v1", "MobileNetV1ForImageClassification", depth_multiplier=0.25),
    vision("mobilenet_v2_hub", "MobileNetV2ForImageClassification", depth_multiplier=0.25),
    vision("efficientnet", "EfficientNetForImageClassification", width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
    vision("poolformer", "PoolFormerForImageClassification", size=64, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    vision(
        "levit",
        "LevitForImageClassification",
        size=64,
        hidden_sizes=[32, 40, 48],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        down_ops=[["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 5, 4, 2, 2]],
    ),
    vision("cvt", "CvtForImageClassification", embed_dim=[16, 24, 36], num_heads=[1, 2, 3], depth=[1, 2, 3]),
    vision(
        "pvt",
        "PvtForImageClassification",
        size=64,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        mlp_ratios=[2, 2, 2, 2],
    ),
    vision("focalnet", "FocalNetForImageClassification",
           embed_dim=20, depths=[1, 2], patch_size=4, focal_levels=[2, 2], focal_windows=[3, 3]),
    vision("bit", "BitForImageClassification", embedding_size=12, hidden_sizes=[24, 40], depths=[1, 2], num_groups=4),
    vision("dpt", "DPTForDepthEstimation", patch_size=8, backbone_out_indices=[0, 1], neck_hidden_sizes=[12, 20],
           reassemble_factors=[2, 1], fusion_hidden_size=28, **WIDE),
    vision("ijepa", "IJepaForImageClassification", patch_size=8, **WIDE),
    hub("hiera", "vision", "HieraForImageClassification", keywords(pixel_values=floats(2, 3, 64, 64)), image_size=[64, 64],
        embed_dim=24, depths=[1, 1, 2], num_heads=[1, 2, 4], masked_unit_size=[4, 4], num_query_pool=2),
    vision("vit_msn", "ViTMSNForImageClassification", patch_size=8, **WIDE),
    hub("yolos", "vision", "YolosForObjectDetection", keywords(pixel_values=floats(2, 3, 32, 32)),
        image_size=[32, 32], patch_size=8, num_detection_tokens=5, **WIDE),
    vision("glpn", "GLPNForDepthEstimation", size=64, num_encoder_blocks=4, depths=[1] * 4, hidden_sizes=[16, 20, 24, 32],
           num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2] * 4, decoder_hidden_size=16),
]  # fmt: skip
PAIRS = [
    hub(
        "clip",
        "multimodal",
        "CLIPModel",
        keywords(input_ids=tokens(3, 7), pixel_values=floats(2, 3, 32, 32)),
        projection_dim=28,
        **TWO_TOWERS,
    ),
    hub(
        "siglip",
        "multimodal",
        "SiglipModel",
        keywords(input_ids=tokens(3, 16), pixel_values=floats(2, 3, 32, 32)),
        **{**TWO_TOWERS, "text_config": {**TWO_TOWERS["text_config"], "projection_size": 36}},
    ),
    hub("clip_vision", "vision", "CLIPVisionModelWithProjection", keywords(pixel_values=floats(2, 3, 32, 32)),
        **{**IMAGE, **WIDE, "patch_size": 8, "projection_dim": 28}),
]  # fmt: skip
SOUNDS = [
    audio("wav2vec2", "Wav2Vec2ForCTC", **SPEECH),
    audio("wav2vec2_stable", "Wav2Vec2Model", do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True, **SPEECH),
    audio("hubert", "HubertForSequenceClassification", **SPEECH),
    audio("wavlm", "WavLMModel", num_buckets=8, **SPEECH),
    hub("whisper_classifier", "audio", "WhisperForAudioClassification", keywords(input_features=floats(2, 10, 24)),
        **{**TEXT, **BART, "num_mel_bins": 10, "max_source_positions": 12, "classifier_proj_size": 28}),
    audio("sew", "SEWModel", squeeze_factor=2, **SPEECH),
    hub("ast", "audio", "ASTForAudioClassification", keywords(input_values=floats(2, 24, 16)),
        **{**WIDE, "max_length": 24, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 4, "time_stride": 4}),
]  # fmt: skip

TRANSFORMERS: list[Subject] = [
    *ENCODERS,
    *DECODERS,
    *MIXTURES,
    *RECURRENT,
    *TRANSLATORS,
    *IMAGES,
    *PAIRS,
    *SOUNDS,
]
