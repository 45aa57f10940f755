"""``python -m megatron_qwen3vl`` is ``megatron-qwen3vl``.

The guard matters: checkpoint writers and data workers are spawned.
"""

import sys

from megatron_qwen3vl.cli import main

if __name__ == "__main__":
    sys.exit(main())
