"""What the zoo tries: a literal table of models that somebody named, and what transformers' own registries hold beside them.

A row is a class of transformers and what its small configuration says beyond :func:`small_config`.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT_LENGTHS, WINDOW_LENGTHS = (21, 32), (21, 128)
"""Lengths that a row is compiled for; a window shorter than the length shows only at the second."""

TEXT, DECODER, HEAD, TOWER, ODD, IMAGE, SOUND = (
    "text encoder",
    "decoder",
    "head",
    "text tower",
    "odd shape",
    "image",
    "sound",
)
GROUPS = (TEXT, DECODER, HEAD, TOWER, ODD, IMAGE, SOUND)


@dataclass(frozen=True)
class Row:
    """A model to try: its class in transformers, and where its configuration differs from the small one."""

    name: str
    group: str
    model_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = TEXT_LENGTHS


def _windowed(name: str, group: str, model_class: str, **config: Any) -> Row:
    return Row(name, group, model_class, config, WINDOW_LENGTHS)


MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
NAMED: tuple[Row, ...] = (
    # Encoders whose window, bias or head only shows in a configuration that is not the default one.
    _windowed("modernbert-window", TEXT, "ModernBertModel", local_attention=8, global_attn_every_n_layers=2),
    _windowed("mistral-window", DECODER, "MistralModel", sliding_window=8),
    _windowed("gemma2-window", DECODER, "Gemma2Model", sliding_window=8, query_pre_attn_scalar=16),
    _windowed("gemma3-window", DECODER, "Gemma3TextModel", sliding_window=8, query_pre_attn_scalar=16),
    _windowed(
        "embedding-gemma",
        TEXT,
        "Gemma3TextModel",
        sliding_window=8,
        query_pre_attn_scalar=16,
        use_bidirectional_attention=True,
    ),
    _windowed("gpt-neo-local", DECODER, "GPTNeoModel", window_size=8, attention_types=[[["global", "local"], 1]]),
    _windowed("qwen2-window", DECODER, "Qwen2Model", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    _windowed("cohere2-window", DECODER, "Cohere2Model", sliding_window=8),
    _windowed("olmo3-window", DECODER, "Olmo3Model", sliding_window=8),
    _windowed("phi3-window", DECODER, "Phi3Model", sliding_window=8),
    _windowed("starcoder2-window", DECODER, "Starcoder2Model", sliding_window=8),
    _windowed("gpt2-128", DECODER, "GPT2Model"),
    _windowed("deberta-v2-128", TEXT, "DebertaV2Model"),
    Row("t5-encoder", TEXT, "T5EncoderModel"),
    Row("t5-encoder-gated", TEXT, "T5EncoderModel", {"feed_forward_proj": "gated-gelu", "is_gated_act": True}),
    Row("umt5-encoder", TEXT, "UMT5EncoderModel"),
    Row("mt5-encoder", TEXT, "MT5EncoderModel"),
    Row(
        "deberta-v3",
        TEXT,
        "DebertaV2Model",
        {
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    Row(
        "deberta-relative",
        TEXT,
        "DebertaModel",
        {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "max_relative_positions": 16,
            "type_vocab_size": 0,
        },
    ),
    Row(
        "deberta-v2-conv",
        TEXT,
        "DebertaV2Model",
        {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
            "conv_act": "gelu",
            "max_relative_positions": 16,
        },
    ),
    Row("esm2-rotary", TEXT, "EsmModel", {"position_embedding_type": "rotary", "token_dropout": True}),
    Row("esm2-no-dropout", TEXT, "EsmModel", {"position_embedding_type": "rotary", "token_dropout": False}),
    Row("falcon-alibi", DECODER, "FalconModel", {"alibi": True, "new_decoder_architecture": False}),
    Row("falcon-new", DECODER, "FalconModel", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Row("falcon-multi-query", DECODER, "FalconModel", {"multi_query": True, "new_decoder_architecture": False}),
    Row("mpt-no-alibi", DECODER, "MptModel", {"attn_config": {"alibi": False}}),
    Row("gpt-bigcode-heads", DECODER, "GPTBigCodeModel", {"multi_query": False}),
    Row("albert-groups", TEXT, "AlbertModel", {"num_hidden_layers": 3, "num_hidden_groups": 2}),
    # Odd shapes.
    Row("bert-hidden-60", ODD, "BertModel", {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 90}),
    Row("bert-vocabulary-1009", ODD, "BertModel", {"vocab_size": 1009}),
    Row("bert-one-layer", ODD, "BertModel", {"num_hidden_layers": 1}),
    Row("bert-one-head", ODD, "BertModel", {"num_attention_heads": 1}),
    Row("bert-decoder", ODD, "BertModel", {"is_decoder": True}),
    Row("roberta-hidden-40", ODD, "RobertaModel", {"hidden_size": 40, "intermediate_size": 72}),
    Row("electra-narrow-embedding", ODD, "ElectraModel", {"embedding_size": 32}),
    Row("llama-head-dim-24", ODD, "LlamaModel", {"head_dim": 24}),
    Row("llama-one-kv-head", ODD, "LlamaModel", {"num_key_value_heads": 1}),
    Row("llama-bias", ODD, "LlamaModel", {"attention_bias": True, "mlp_bias": True}),
    Row(
        "llama-hidden-72",
        ODD,
        "LlamaModel",
        {
            "hidden_size": 72,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 12,
            "intermediate_size": 100,
        },
    ),
    Row("qwen3-head-dim-32", ODD, "Qwen3Model", {"head_dim": 32}),
    Row("gpt2-one-layer", ODD, "GPT2Model", {"n_layer": 1}),
    Row("gpt-neox-partial-rotary", ODD, "GPTNeoXModel", {"rotary_pct": 0.5}),
    Row("gpt-neox-sequential", ODD, "GPTNeoXModel", {"use_parallel_residual": False}),
    Row("opt-post-norm", ODD, "OPTModel", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    Row("modernbert-hidden-60", ODD, "ModernBertModel", {"hidden_size": 60, "num_attention_heads": 3}),
    Row("vit-odd-patches", ODD, "ViTModel", {"image_size": 30, "patch_size": 10}),
    Row("gemma2-no-cap", ODD, "Gemma2Model", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    Row("mixtral-4", ODD, "MixtralModel", MOE),
    # Heads.
    Row("gpt2-lm-untied", HEAD, "GPT2LMHeadModel", {"tie_word_embeddings": False}),
    Row("llama-lm-tied", HEAD, "LlamaForCausalLM", {"tie_word_embeddings": True}),
    Row("llama-lm-tied-odd", HEAD, "LlamaForCausalLM", {"tie_word_embeddings": True, "vocab_size": 1009}),
    Row("bert-masked-lm-untied", HEAD, "BertForMaskedLM", {"tie_word_embeddings": False}),
    Row("bert-masked-lm-odd", HEAD, "BertForMaskedLM", {"vocab_size": 1009}),
    *(
        Row(f"{short}-{head}", HEAD, model_class, {"pad_token_id": 0} if head == "sequence" else {})
        for head, model_classes in {
            "masked-lm": (
                "BertForMaskedLM",
                "RobertaForMaskedLM",
                "AlbertForMaskedLM",
                "DistilBertForMaskedLM",
                "ElectraForMaskedLM",
                "MPNetForMaskedLM",
                "ModernBertForMaskedLM",
                "DebertaV2ForMaskedLM",
                "XLMRobertaForMaskedLM",
                "MobileBertForMaskedLM",
                "EsmForMaskedLM",
                "CamembertForMaskedLM",
                "FNetForMaskedLM",
                "NomicBertForMaskedLM",
            ),
            "lm": (
                "GPT2LMHeadModel",
                "LlamaForCausalLM",
                "OPTForCausalLM",
                "BloomForCausalLM",
                "GPTNeoXForCausalLM",
                "Qwen2ForCausalLM",
                "Qwen3ForCausalLM",
                "Gemma2ForCausalLM",
                "Gemma3ForCausalLM",
                "MistralForCausalLM",
                "PhiForCausalLM",
                "Phi3ForCausalLM",
                "FalconForCausalLM",
                "GPTJForCausalLM",
                "GPTNeoForCausalLM",
                "CohereForCausalLM",
                "GraniteForCausalLM",
                "ModernBertDecoderForCausalLM",
                "XLNetLMHeadModel",
                "FlaubertWithLMHeadModel",
            ),
            "sequence": (
                "BertForSequenceClassification",
                "RobertaForSequenceClassification",
                "DistilBertForSequenceClassification",
                "AlbertForSequenceClassification",
                "DebertaV2ForSequenceClassification",
                "ModernBertForSequenceClassification",
                "XLNetForSequenceClassification",
                "GPT2ForSequenceClassification",
                "LlamaForSequenceClassification",
                "Qwen2ForSequenceClassification",
                "MistralForSequenceClassification",
                "Gemma2ForSequenceClassification",
                "OPTForSequenceClassification",
                "T5ForSequenceClassification",
                "BartForSequenceClassification",
            ),
            "tokens": (
                "BertForTokenClassification",
                "RobertaForTokenClassification",
                "DebertaV2ForTokenClassification",
                "LlamaForTokenClassification",
                "GPT2ForTokenClassification",
                "T5ForTokenClassification",
            ),
            "answers": (
                "BertForQuestionAnswering",
                "RobertaForQuestionAnswering",
                "DistilBertForQuestionAnswering",
                "DebertaV2ForQuestionAnswering",
                "GPT2ForQuestionAnswering",
                "LlamaForQuestionAnswering",
                "XLMForQuestionAnsweringSimple",
            ),
        }.items()
        for model_class in model_classes
        for short in [model_class.split("For")[0].removesuffix("WithLMHeadModel").removesuffix("LMHeadModel").lower()]
    ),
    Row("clip-text-projection", HEAD, "CLIPTextModelWithProjection"),
    Row("vit-classifier", HEAD, "ViTForImageClassification"),
    Row("deit-classifier", HEAD, "DeiTForImageClassification"),
    Row("ast-classifier", HEAD, "ASTForAudioClassification"),
    # Towers, and encoders that only a classifier's class holds.
    Row("clip-text", TOWER, "CLIPTextModel"),
    Row("siglip-text", TOWER, "SiglipTextModel"),
    Row("siglip2-text", TOWER, "Siglip2TextModel"),
    Row("metaclip2-text", TOWER, "MetaClip2TextModel"),
    Row("altclip-text", TOWER, "AltCLIPTextModel"),
    Row("chinese-clip-text", TOWER, "ChineseCLIPTextModel"),
    Row("clipseg-text", TOWER, "CLIPSegTextModel"),
    Row("xclip-text", TOWER, "XCLIPTextModel"),
    Row("owlvit-text", TOWER, "OwlViTTextModel"),
    Row("groupvit-text", TOWER, "GroupViTTextModel"),
    Row("align-text", TOWER, "AlignTextModel"),
    Row("clap-text", TOWER, "ClapTextModel"),
    Row("blip-text", TOWER, "BlipTextModel"),
    Row("flava-text", TOWER, "FlavaTextModel"),
    Row("bridgetower-text", TOWER, "BridgeTowerTextModel"),
    Row("dpr-context", TOWER, "DPRContextEncoder"),
    Row("flava-image", IMAGE, "FlavaImageModel"),
    Row("altclip-vision", IMAGE, "AltCLIPVisionModel"),
    Row("blip-vision", IMAGE, "BlipVisionModel"),
    Row("whisper-encoder", SOUND, "WhisperForAudioClassification"),
)


def registered(heads: bool) -> Iterator[Row]:
    """Yield a row for each class in transformers' registries that one kind of input is enough for; ``heads`` adds theirs."""
    from transformers.models.auto import modeling_auto as auto

    causal = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    tables = {"": auto.MODEL_MAPPING_NAMES, "encoding": auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    if heads:
        tables |= {
            "masked-lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            "lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            "tokens": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            "answers": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        }
    seen: set[str] = set()
    for kind, table in tables.items():
        for model_type, names in table.items():
            for name in (names,) if isinstance(names, str) else names:
                if name in seen:
                    continue
                seen.add(name)
                group = _group(name, model_type in causal)
                suffix = kind or ("" if isinstance(names, str) else name.lower())
                yield Row(f"{model_type}-{suffix}".rstrip("-"), HEAD if kind not in ("", "encoding") else group, name)


def _group(model_class: str, causal: bool) -> str:
    taken = parameters_of(model_class)
    if "input_ids" in taken:
        return DECODER if causal else TEXT
    return SOUND if taken.keys() & {"input_features", "input_values"} else IMAGE


def parameters_of(model_class: str) -> dict[str, inspect.Parameter]:
    """Return what a class's forward takes; nothing where transformers lacks a library that it needs."""
    import transformers

    found = getattr(transformers, model_class, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return {}
    return dict(inspect.signature(found.forward).parameters)


def rows(heads: bool = False) -> tuple[Row, ...]:
    """Return every row: those of the table first, then what the registries hold beside them, names told apart."""
    table = {row.name: row for row in NAMED}
    plain = {row.model_class for row in NAMED if not row.config}
    for row in registered(heads):
        if row.model_class not in plain:
            name = row.name if row.name not in table else f"{row.name}-default"
            table[name] = Row(name, row.group, row.model_class)
    return tuple(table.values())


SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "model_dim", "n_embed"), 64),
    **dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim", "embedding_size", "trigram_input_dim"), 64),
    **dict.fromkeys(("decoder_hidden_size", "word_embed_proj_dim", "projection_dim", "embedding_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks", "depth"), 2),
    **dict.fromkeys(("decoder_num_hidden_layers", "encoder_num_hidden_layers", "conformer_num_hidden_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "decoder_num_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "ffn_dim", "ffn_hidden_size", "hidden_dim", "n_inner", "d_inner"), 96
    ),
    **dict.fromkeys(
        ("encoder_ffn_dim", "decoder_ffn_dim", "decoder_intermediate_size", "shared_expert_intermediate_size"), 96
    ),
    **dict.fromkeys(("head_dim", "d_kv", "global_head_dim", "attention_key_size", "attention_hidden_size"), 16),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx"), 256),
    # Experts.
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "encoder_moe_num_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "num_shared_experts"), 1),
    # Latent attention.
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("qk_rope_head_dim",), 8),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 16),
    "index_n_heads": 16,  # a key that no head likes ties with others, and which of them topk takes is not defined
    "index_topk": 4,
    "index_head_dim": 16,
    # States and convolutions.
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads", "linear_num_key_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 32),
    "lru_width": 64,
    "rotary_dim": 8,
    "num_labels": 3,
    # Images and sound.
    **dict.fromkeys(("image_size", "crop_size"), 32),
    "patch_size": 8,
    "num_frames": 4,
    **dict.fromkeys(("hidden_sizes", "conv_dim"), 32),
    "depths": 1,
    **dict.fromkeys(("max_source_positions", "num_mel_bins", "max_length"), 32),
    **dict.fromkeys(("num_conv_pos_embeddings",), 16),
    **dict.fromkeys(("num_conv_pos_embedding_groups",), 4),
}
"""What a small configuration says, by the name of the entry; larger entries only are made smaller."""

NEVER_NONE = ("head_dim", "num_key_value_heads")
"""Entries that some classes read although their default is None."""

SAME = {"head_dim": "qk_rope_head_dim", "num_key_value_heads": "num_attention_heads"}
"""Entries of latent attention that mean one thing, where they are equal by default."""

VOCABULARY = ("vocab_size", "n_words", "vocab_size_per_layer_input")

SWIN = {
    "embed_dim": 48,
    "depths": [1, 1],
    "num_heads": [3, 6],
    "window_size": 2,
    "image_size": 32,
    "patch_size": 4,
}

MULTIMODAL_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}

SPECIAL: dict[str, dict[str, Any]] = {
    "BridgeTowerTextConfig": {"hidden_size": 64},
    "CohereCompassTextConfig": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "Cosmos3EdgeTextConfig": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    },
    "CvtConfig": {"embed_dim": (32, 48, 64), "num_heads": (1, 3, 4), "depth": (1, 2, 3)},
    "DeepseekV2Config": {"num_experts_per_tok": 2, "topk_group": 1},
    "DoryConfig": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "Dots3NoteTextConfig": {"num_key_value_heads": 4},
    "DonutSwinConfig": SWIN,
    "EsmConfig": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "EsmcConfig": {"num_key_value_heads": 4},
    "FalconH1Config": {"mamba_d_ssm": 128},
    "FocalNetConfig": {"embed_dim": 24},
    "FunnelConfig": {"block_sizes": [1, 1, 1], "num_decoder_layers": 1, "d_head": 16},
    "Gemma3nTextConfig": {"intermediate_size": [96, 96], "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16},
    "Glm5NextTextConfig": {"num_key_value_heads": 4},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "HYV4VLTextConfig": {"qk_rope_head_dim": 64},
    "LevitConfig": {"image_size": 64, "patch_size": 16},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "LukeConfig": {"entity_vocab_size": 11, "entity_emb_size": 32},
    "Mamba2Config": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "MaskFormerSwinConfig": SWIN,
    "Mistral4Config": {"head_dim": 8},
    "ReformerConfig": {"axial_pos_shape": (16, 16), "axial_pos_embds_dim": (32, 32), "attn_layers": ("local", "lsh")},
    "RoCBertConfig": {
        "shape_embed_dim": 16,
        "pronunciation_embed_dim": 16,
        "shape_vocab_size": 31,
        "pronunciation_vocab_size": 31,
    },
    "Swinv2Config": {"embed_dim": 48, "window_size": 2},
    "SwinConfig": SWIN,
    "Qwen2VLTextConfig": MULTIMODAL_ROTARY,
    "Qwen2_5_VLTextConfig": MULTIMODAL_ROTARY,
    "Glm4vTextConfig": MULTIMODAL_ROTARY,
    "GlmOcrTextConfig": MULTIMODAL_ROTARY,
    "GlmImageTextConfig": MULTIMODAL_ROTARY,
    "Qwen3NextConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "Qwen3_5TextConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "XmodConfig": {"default_language": "en_XX"},
    "ZambaConfig": {"layers_block_type": ["mamba", "hybrid"]},
    "Zamba2Config": {"layers_block_type": ["mamba", "hybrid"]},
}
"""What a class's configuration needs beyond small numbers, to be sound."""


def small_config(config_class: type, overrides: Mapping[str, Any] | None = None) -> Any:
    """Return a configuration of a class with few, narrow layers, and what ``overrides`` says."""
    entries = _small_entries(config_class()) | SPECIAL.get(config_class.__name__, {})
    return config_class(**entries | dict(overrides or {}))


def _small_entries(default: Any) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    entries: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            entries[name] = {"model_type": value.model_type} | _small_entries(value)
        elif name in VOCABULARY and isinstance(value, int):
            entries[name] = min(value, 503)
        elif name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            entries[name] = min(value, SMALL[name])
        elif name in SMALL and isinstance(value, list | tuple) and value and isinstance(value[0], int):
            entries[name] = type(value)(min(v, SMALL[name]) for v in value)
        elif name in NEVER_NONE and value is None:
            entries[name] = SMALL[name]
    given = vars(default)
    for name, same in SAME.items():
        if "qk_rope_head_dim" in entries and given.get(name) is not None and given[name] == given.get(same):
            entries[name] = entries[same]
    words = entries.get("vocab_size")
    for name, value in vars(default).items():
        if words and name.endswith("token_id") and isinstance(value, int) and value >= words:
            entries[name] = 1
    return entries
