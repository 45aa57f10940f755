"""Pre-training of Qwen3-VL-class vision-language models on megatron-core."""

import warnings

__version__ = "0.1.0"

# megatron-core warns on import and on first use about things that are so by intention here; this runs before any
# import.
for _message in (
    ".*(Apex|Transformer Engine).* not installed",
    "full scope is deprecated",
    "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    ".*torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor).* is deprecated",
    "When using async grad allreduce it is recommended",
    ".*`sequence_parallel` is set to `True`, but tensor model parallel size is 1",
):
    warnings.filterwarnings("ignore", message=_message)
del _message
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch\.distributed|megatron\.core)\b")
