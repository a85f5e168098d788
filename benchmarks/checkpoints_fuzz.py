"""Claim: 10,000 tensors of every dtype and odd shape, with NaN, infinities, denormals and zeros, alone and with their
moments, with and without a base, come back from every codec within the bound that it promised.

How. ``scrimp.testing.check_codec`` with fresh random groups for each codec; a tensor counts once per codec.

    python benchmarks/checkpoints_fuzz.py                 # some minutes
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from environment import RESULTS, facts, write_result

from scrimp.checkpoints import Bound, Codec, ExCP, ExCPReference, Lossless, Residual
from scrimp.testing import check_codec
from scrimp.testing.codec_cases import codec_cases

CODECS: dict[str, Codec] = {
    "Lossless()": Lossless(),
    "Residual()": Residual(),
    "Residual.small()": Residual.small(),
    "Residual, tight": Residual(
        error=Bound.of_rms(1e-3), second_moment=Bound.factor(1.3), first_moment=Bound.of_root(0.05),
        momentum=Bound.absolute(1e-4),
    ),
    "ExCP()": ExCP(),
    "ExCP, paper": ExCP(elementwise=True, cap=None, half_codebook=True, reference=ExCPReference.ORIGINAL),
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Codecs on tensors that nobody would expect.")
    parser.add_argument("--cases", type=int, default=700, help="groups of tensors per codec")
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoints_fuzz.json")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    counts = {}
    for number, (name, codec) in enumerate(CODECS.items()):
        vectors_are_exact = getattr(codec, "vectors", Bound.exact()) == Bound.exact()
        # raises at the first that is wrong
        check_codec(codec, num_cases=options.cases, seed=1000 + number, vectors_are_exact=vectors_are_exact)
        counts[name] = sum(len(case.group.tensors) for case in codec_cases(options.cases, seed=1000 + number))
        print(f"{name}: {counts[name]} tensors")
    total = sum(counts.values())
    result = {"cases_per_codec": options.cases, "tensors": counts, "total_tensors": total, "failures": 0}
    write_result(options.out, {**facts(threads=1), **result, "claims": {"at_least_10000_tensors": total >= 10_000}})


if __name__ == "__main__":
    main()
