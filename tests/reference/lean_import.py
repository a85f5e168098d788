"""What importing a module does beside defining things: run as a script with module names, prints JSON.

torch and numpy are imported first: what they do is not ours. Each module is then imported in turn, and the state that
an import must leave alone is compared before and after.
"""

import hashlib
import importlib
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch

OPTIONAL = (
    "rich", "pyarrow", "PIL", "sklearn", "jinja2", "tensorboard", "wandb", "huggingface_hub", "matplotlib",
    "lightning", "transformers", "scipy", "pandas",
)  # fmt: skip


def state() -> dict[str, Any]:
    """Everything process-wide that an import of ours could touch."""
    root = logging.getLogger()
    loggers = [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    return {
        "optional packages": sorted({name.partition(".")[0] for name in sys.modules} & set(OPTIONAL)),
        "CUDA": torch.cuda.is_initialized(),
        "torch's random state": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "numpy's random state": repr(np.random.get_state()[1:]) + np.random.get_state()[1].tobytes().hex(),  # noqa: NPY002
        "python's random state": hash(random.getstate()),
        "environment variables": dict(os.environ),
        "logging": [
            (root.level, repr(root.handlers)),
            sorted((log.name, log.level, repr(log.handlers)) for log in loggers if log.level or log.handlers),
        ],
        "warning filters": repr(warnings.filters),
        "torch settings": (
            torch.get_num_threads(), str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
        ),
        "threads": threading.active_count(),
        "signal handlers": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "working directory": os.getcwd(),  # noqa: PTH109
    }  # fmt: skip


def side_effects(module: str) -> list[str]:
    """What of ``state()`` the import of ``module`` changes."""
    before = state()
    importlib.import_module(module)
    after = state()
    return [name for name in before if before[name] != after[name]]


if __name__ == "__main__":
    json.dump({module: side_effects(module) for module in sys.argv[1:]}, sys.stdout)
