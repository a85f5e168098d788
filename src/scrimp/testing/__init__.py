"""Checks that anything with state, ours or yours, can be put through. They need no test framework.

``check_stateful`` is for one process, ``check_ranks_agree`` for several, ``check_codec`` for codecs of checkpoints,
``check_rule`` for rules of sample pruning. A
failure is an AssertionError that names what differs. ``resume_equivalence`` measures what restored checkpoints cost.
"""

from scrimp.testing.codec import check_codec
from scrimp.testing.ranks import check_ranks_agree, run_ranks
from scrimp.testing.resume_equivalence import (
    RestoreCost,
    ResumeReport,
    resume_equivalence,
    uninterrupted_losses,
)
from scrimp.testing.rule import check_rule
from scrimp.testing.stateful import (
    Stateful,
    assert_same_state,
    check_global_rng_untouched,
    check_resume,
    check_round_trip,
    check_stateful,
    copy_state,
)

__all__ = [
    "RestoreCost",
    "ResumeReport",
    "Stateful",
    "assert_same_state",
    "check_codec",
    "check_global_rng_untouched",
    "check_ranks_agree",
    "check_resume",
    "check_round_trip",
    "check_rule",
    "check_stateful",
    "copy_state",
    "resume_equivalence",
    "run_ranks",
    "uninterrupted_losses",
]
