"""Pre-training of Qwen3-VL-class vision-language models on megatron-core."""

__version__ = "0.1.0"
