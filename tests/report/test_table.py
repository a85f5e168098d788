import io

import pytest
from rich.console import Console
from tests.report.fake_run import summary

from scrimp.report import summary_panel, summary_text


def lines_of(**changes):
    return summary_text(summary(**changes), width=200).splitlines()


def test_plain_text_says_everything_in_human_units():
    assert lines_of() == [
        "cifar10-small: resnet9 on cifar10, cpu, seed 7",
        "  test accuracy             92.31 %  test loss 0.2714 nats",
        "  training time            6 m 47 s  24 epochs, 2,328 steps; 7 m 11 s in all",
        "  samples visited           866,412  of 1,200,000 in full training (72.2 %)",
        "  speed            2,127 examples/s  2 threads, bf16, peak memory 1.2 GB",
        "  model                      1.7 MB  1,651,624 bytes in float32; 412,906 parameters",
        "  checkpoints                7.3 MB  7,341,212 bytes, of 39.6 MB raw (5.4x smaller)",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test_accuracy": None, "test_loss_nats": 1.5712}, "1.571 nats per character  2.267 bits per character"),
        ({"sample_visits": 1_200_000}, "1,200,000  as many as training on all of the data"),
        (
            {"model_packed_bytes": 100_000},
            "100.0 KB  100,000 bytes packed, 16.5x smaller than float32; 412,906 parameters",
        ),
        ({"weights_kept_fraction": 0.5}, "412,906 parameters, 50.0 % of the weights kept"),
        ({"checkpoint_stored_bytes": 0}, "none were kept"),
        ({"checkpoint_stored_bytes": 39_638_976}, "39.6 MB  39,638,976 bytes, stored as they are"),
        ({"world_size": 2, "threads": 1, "peak_memory_bytes": None}, "2 processes, 1 thread, bf16"),
    ],
)
def test_what_a_run_did_shows(changes, expected):
    assert any(expected in line for line in lines_of(**changes))


def test_plain_text_keeps_to_its_width():
    text = summary_text(summary(), width=72)
    assert max(map(len, text.splitlines())) <= 72
    assert " ".join(text.split()) == " ".join(summary_text(summary(), width=200).split())


def test_the_panel_shows_the_same_words_and_takes_no_value_for_markup():
    output = io.StringIO()
    Console(file=output, width=140).print(summary_panel(summary(data="[red]cifar10[/red]")))
    shown = output.getvalue()
    assert "[red]cifar10[/red]" in shown
    for line in lines_of()[1:]:
        for part in line.strip().split("  "):
            assert part.strip() in shown
