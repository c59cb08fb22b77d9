"""Decoders: language models, one vocabulary entry predicted per position."""

from __future__ import annotations

from family import COMMON, DECODER, GROUPED, VOCABULARY, Site, causal, decoder, with_padding

_SMALL_HEADS = GROUPED | {"head_dim": 8}
_SHORT = {"max_position_embeddings": 64}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = DECODER | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    **_EXPERTS,
}

DECODERS = {
    "gpt2": causal("GPT2Config", _GPT2),
    "llama": causal("LlamaConfig", GROUPED, 2, rotary=4, rms_norms=5),
    "qwen2": causal("Qwen2Config", GROUPED, 2, rotary=4, rms_norms=5),
    "qwen3": causal("Qwen3Config", _SMALL_HEADS, 2, rotary=4, rms_norms=9),
    "mistral": causal(
        "MistralConfig",
        GROUPED | {"sliding_window": 8},
        site=Site(causal=True, window=8, key_heads=2),
        rotary=4,
        rms_norms=5,
    ),
    "phi3": causal(
        "Phi3Config",
        GROUPED | {"pad_token_id": 0, "partial_rotary_factor": 0.5},
        2,
        rotary=4,
        rms_norms=5,
    ),
    "gemma2": decoder(
        "Gemma2Config",
        _SMALL_HEADS | {"sliding_window": 8},
        sites=(
            Site(causal=True, window=8, softcap=50.0, key_heads=2),
            Site(causal=True, softcap=50.0, key_heads=2),
        ),
        sdpa=False,
        rotary=4,
        rms_norms=9,
    ),
    "opt": causal("OPTConfig", COMMON | _SHORT | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt_neox": causal("GPTNeoXConfig", DECODER, rotary=4),
    "bloom": causal(
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
        site=Site(causal=True, mask="bias"),
        sdpa=False,
    ),
    "falcon": causal("FalconConfig", COMMON | {"multi_query": True}, 1, rotary=4),
    "falcon_new": causal(
        "FalconConfig", COMMON | {"new_decoder_architecture": True, "num_kv_heads": 2}, 2, rotary=4
    ),
    "gptj": causal("GPTJConfig", _GPT2 | {"rotary_dim": 4}, sdpa=False, rotary=4),
    "codegen": causal("CodeGenConfig", _GPT2 | {"rotary_dim": 4}, sdpa=False, rotary=4),
    "gpt_bigcode": causal("GPTBigCodeConfig", _GPT2 | {"multi_query": True}, 1),
    "gpt_neo": decoder(
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "vocab_size": VOCABULARY,
            **_SHORT,
        },
        sites=(Site(causal=True), Site(causal=True, window=8)),
        sdpa=False,
    ),
    "starcoder2": causal("Starcoder2Config", GROUPED | {"sliding_window": None}, 2, rotary=4),
    "mpt": causal(
        "MptConfig",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": VOCABULARY},
        site=Site(causal=True, mask="bias"),
        sdpa=False,
    ),
    "phi": causal("PhiConfig", DECODER, rotary=4),
    "stablelm": causal("StableLmConfig", GROUPED, 2, rotary=4),
    "cohere": causal(
        "CohereConfig",
        GROUPED,
        2,
        rotary=4,
        rms_norms=3,
        traced=False,
    ),
    "cohere2": causal(
        "Cohere2Config",
        GROUPED | {"sliding_window": 8},
        site=Site(causal=True, window=8, key_heads=2),
        rotary=4,
        rms_norms=3,
        traced=False,
    ),
    "olmo": causal("OlmoConfig", GROUPED, 2, rotary=4),
    "olmo2": causal("Olmo2Config", GROUPED, 2, rotary=4, rms_norms=9),
    "granite": causal("GraniteConfig", GROUPED, 2, rotary=4, rms_norms=5),
    "gemma": causal("GemmaConfig", _SMALL_HEADS, 2, rotary=4, rms_norms=5),
    "gemma3": causal(
        "Gemma3TextConfig",
        _SMALL_HEADS | {"sliding_window": 8},
        site=Site(causal=True, window=8, key_heads=2),
        rotary=4,
        rms_norms=13,
    ),
    "qwen2_moe": causal(
        "Qwen2MoeConfig",
        GROUPED | _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
        2,
        rotary=4,
        rms_norms=5,
    ),
    "mixtral": causal(
        "MixtralConfig", GROUPED | {"num_local_experts": 4}, 2, rotary=4, rms_norms=5
    ),
    "gpt_oss": decoder(
        "GptOssConfig",
        _SMALL_HEADS | {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        sites=(),
        refused=2,  # a learned sink takes part in the Softmax
        sdpa=False,
        rotary=4,
        rms_norms=5,
    ),
    "deepseek_v3": causal("DeepseekV3Config", _LATENT, rotary=4, rms_norms=9),
    "glm": causal(
        "GlmConfig",
        _SMALL_HEADS | {"pad_token_id": 0},
        2,
        rotary=4,
        rms_norms=5,
        traced=False,
    ),
    "glm4": causal(
        "Glm4Config",
        _SMALL_HEADS | {"pad_token_id": 0},
        2,
        rotary=4,
        rms_norms=9,
        traced=False,
    ),
    "exaone4": causal(
        "Exaone4Config",
        GROUPED | {"sliding_window": 8},
        site=Site(causal=True, window=8, key_heads=2),
        rotary=4,
        rms_norms=9,
    ),
    "smollm3": causal("SmolLM3Config", GROUPED | {"pad_token_id": 0}, 2, rotary=4, rms_norms=5),
    "nemotron": causal("NemotronConfig", _SMALL_HEADS, 2, rotary=4),
    "persimmon": causal("PersimmonConfig", DECODER, rotary=4),
    "seed_oss": causal("SeedOssConfig", _SMALL_HEADS, 2, rotary=4, rms_norms=5),
    "helium": causal(
        "HeliumConfig",
        _SMALL_HEADS,
        2,
        rotary=4,
        rms_norms=5,
        traced=False,
    ),
    "arcee": causal("ArceeConfig", GROUPED, 2, rotary=4, rms_norms=5),
    "apertus": causal(
        "ApertusConfig",
        GROUPED,
        2,
        rotary=4,
        rms_norms=9,
        traced=False,
    ),
    "diffllama": causal(
        "DiffLlamaConfig",
        GROUPED,
        rotary=4,
        rms_norms=7,
        traced=False,
    ),
    "biogpt": causal("BioGptConfig", DECODER),
    "ctrl": causal(
        "CTRLConfig",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "dff": 48},
    ),
    "openai_gpt": causal("OpenAIGPTConfig", _GPT2, sdpa=False),
    "xglm": causal(
        "XGLMConfig",
        {
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 48,
            "vocab_size": VOCABULARY,
            **_SHORT,
        },
        sdpa=False,
    ),
    "minimax_m2": causal(
        "MiniMaxM2Config",
        _SMALL_HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
        2,
        rotary=4,
        rms_norms=9,
    ),
    "modernbert_decoder": decoder(
        "ModernBertDecoderConfig",
        DECODER
        | {
            "local_attention": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        sites=(Site(causal=True), Site(causal=True, window=8)),
        rotary=4,
    ),
    "lfm2": causal(
        "Lfm2Config",
        GROUPED | {"layer_types": ["conv", "full_attention"]},
        2,
        layers=1,
        rotary=2,
        rms_norms=7,
    ),
}
PADDED_DECODERS = {
    f"{name}_padded": with_padding(DECODERS[name])
    for name in ("gpt2", "llama", "mistral", "opt", "bloom", "gemma3", "gpt_neox")
}
