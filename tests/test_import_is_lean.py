"""``import scrimp`` defines names and does nothing else; the check is shown to be able to fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import scrimp

CHECK = Path(__file__).parent / "reference" / "lean_import.py"
VIOLATIONS = {
    "optional packages": "import wandb",
    "CUDA": "import torch\ntorch.cuda._initialized = True",
    "torch's random state": "import torch\ntorch.rand(1)",
    "numpy's random state": "import numpy\nnumpy.random.rand()",
    "python's random state": "import random\nrandom.random()",
    "environment variables": "import os\nos.environ['OMP_NUM_THREADS'] = '17'",
    "logging": "import logging\nlogging.getLogger('some.library').setLevel(logging.DEBUG)",
    "warning filters": "import warnings\nwarnings.simplefilter('ignore')",
    "torch settings": "import torch\ntorch.set_default_dtype(torch.float64)",
    "threads": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    "signal handlers": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "working directory": "import os\nos.chdir('/')",
}


def side_effects(modules: list[str], *folders: Path) -> tuple[dict[str, list[str]], str]:
    """What each import changes, in one fresh interpreter; and what was written to stderr."""
    paths = [*map(str, folders), str(Path(scrimp.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, CHECK, *modules], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout), done.stderr


def test_importing_scrimp_has_no_side_effects() -> None:
    modules = [
        "scrimp", "scrimp.errors", "scrimp.steps", "scrimp.checkpoints", "scrimp.samples", "scrimp.bits",
        "scrimp.testing",
    ]  # fmt: skip
    found, stderr = side_effects(modules)
    assert found == {module: [] for module in modules}
    assert stderr == ""


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").touch()
    modules = {f"violation_{number}": what for number, what in enumerate(VIOLATIONS)}
    for module, what in modules.items():
        (tmp_path / f"{module}.py").write_text(VIOLATIONS[what])
    (tmp_path / "no_violation.py").write_text("import dataclasses\nimport logging\nlogging.getLogger(__name__)\n")
    found, _ = side_effects(["no_violation", *modules], tmp_path)
    assert found == {"no_violation": [], **{module: [what] for module, what in modules.items()}}


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys\nfrom scrimp.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(scrimp.__file__).parent.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compare [RECIPE]" in done.stdout


def test_names_that_are_looked_up_late_are_all_there() -> None:
    assert set(scrimp.__all__) <= set(dir(scrimp))
    assert all(getattr(scrimp, name) is not None for name in scrimp.__all__)
    assert not hasattr(scrimp, "InfoBath")
