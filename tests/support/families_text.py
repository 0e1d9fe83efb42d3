"""Tiny tokenizers and text encoders, all offline and one token per character, for `families`."""

import string
from typing import Any

import tiny
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from benchmarks.pipelines import clip_config

WIDTH = 16
CHARACTERS = [*string.ascii_letters, *string.digits, *string.punctuation, "\n", "\u2581"]
USER_ONLY = (
    "<|im_start|>{% for m in messages %}{% if m.role == 'user' %}"
    "{{ m.content if m.content is string else m.content[0].text }}"
    "{% endif %}{% endfor %}"
)
_STACK = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2, "num_key_value_heads": 2}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
_VISION = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "out_hidden_size": WIDTH, "depth": 1, "num_heads": 2}


def clip(length: int = 16) -> tuple[CLIPTokenizer, CLIPTextModelWithProjection]:
    """Tokenizer and encoder of sequences of `length`, `WIDTH` wide, with a projection of the same width."""
    tokenizer = tiny.clip_tokenizer()
    tokenizer.model_max_length = length
    return tokenizer, CLIPTextModelWithProjection(_clip_config(tokenizer)).eval()


def clip_without_projection(length: int = 16) -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer = tiny.clip_tokenizer()
    tokenizer.model_max_length = length
    return tokenizer, CLIPTextModel(_clip_config(tokenizer)).eval()


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return clip_config(tokenizer, width=WIDTH, projection=WIDTH)


def umt5(tokenizer: Any) -> UMT5EncoderModel:
    """One layer, `tiny.TEXT_WIDTH` wide."""
    width = tiny.TEXT_WIDTH
    config = UMT5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config).eval()


def qwen_tokenizer(**settings: Any) -> Qwen2Tokenizer:
    """Bytes; a chat is what its user says."""
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], **settings)
    tokenizer.chat_template = USER_ONLY
    return tokenizer


def qwen3(tokenizer: Qwen2Tokenizer, layers: int = 2) -> Qwen3Model:
    return Qwen3Model(_qwen3_config(tokenizer, layers)).eval()


def qwen3_language_model(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(_qwen3_config(tokenizer, layers)).eval()


def _qwen3_config(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3Config:
    return Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=layers, head_dim=8, **_STACK)


def qwen25_vision(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    text = {**_STACK, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "rope_parameters": rope, **_ENDS}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=_VISION)).eval()


def qwen3_vision(tokenizer: Qwen2Tokenizer) -> Qwen3VLModel:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    text = {
        **_STACK,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "rope_parameters": rope,
        **_ENDS,
    }
    vision = {**_VISION, "deepstack_visual_indexes": [0]}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()


def mistral(tokenizer: Qwen2Tokenizer, layers: int) -> Mistral3ForConditionalGeneration:
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": layers, "head_dim": 8, **_STACK}
    vision = {
        "model_type": "pixtral",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": 6,
    }
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)).eval()


def gemma_tokenizer(words: list[str] | None = None) -> GemmaTokenizer:
    """Characters, and each of `words` as one token."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *CHARACTERS]
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.add_tokens(sorted(words or []))
    return tokenizer


def gemma(tokenizer: GemmaTokenizer) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, head_dim=8, **_STACK)).eval()


def glm(tokenizer: T5Tokenizer) -> GlmModel:
    config = GlmConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
        **_STACK,
    )
    return GlmModel(config).eval()


def llama_tokenizer(words: list[str] | None = None) -> LlamaTokenizer:
    """Characters, and each of `words` as one token."""
    tokens = ["<unk>", "<s>", "</s>", *CHARACTERS]
    tokenizer = LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.add_tokens(sorted(words or []))
    tokenizer.pad_token = "</s>"
    return tokenizer


def llama(tokenizer: LlamaTokenizer) -> LlamaModel:
    return LlamaModel(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=3, **_STACK)).eval()


def llama_language_model(tokenizer: LlamaTokenizer) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **_STACK)).eval()
