import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report.fake_run import CONFIG, summary, write_image_run

from scrimp.errors import DataNotFoundError, FormatError
from scrimp.report import Point, RunStatus, RunWriter, Summary, read_run


def write_steps(writer, steps):
    for step in steps:
        writer.write("step", step=step, epoch=step / 10, seconds=step * 0.5, train_loss=1.0 / step)


@pytest.fixture
def run_dir(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        writer.write_config({"recipe": "digits", "unknown": [1, None]})
        write_steps(writer, range(1, 6))
    return tmp_path / "run"


def test_what_is_written_is_read_back(run_dir):
    with RunWriter(run_dir) as writer:
        writer.write("evaluation", step=5, epoch=0.5, seconds=2.5, test_accuracy=0.9, of_a_later_version="x")
    record = read_run(run_dir)
    assert record.config == {"recipe": "digits", "unknown": [1, None]}
    assert record.series("step", "train_loss")[1] == Point(step=2, epoch=0.2, seconds=1.0, value=0.5)
    assert len(record.events("step")) == 5
    assert record.last("evaluation", "test_accuracy") == 0.9
    assert record.last("evaluation", "absent") is None
    assert record.events("evaluation")[0]["of_a_later_version"] == "x"
    assert record.summary is None
    assert record.status is RunStatus.UNFINISHED


def test_every_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunWriter(tmp_path) as writer:
        for step in range(1, 4):
            write_steps(writer, [step])
            assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step


def test_opening_a_writer_changes_nothing(tmp_path):
    with RunWriter(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_strict_json_and_non_finite_values_come_back_as_nan(run_dir):
    with RunWriter(run_dir) as writer:
        writer.write("step", step=6, epoch=0.6, seconds=3.0, train_loss=math.inf, nested={"a": [math.nan]})

    def refuse(word):
        raise AssertionError(word)

    last = (run_dir / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=refuse)["nested"] == {"a": [None]}
    assert math.isnan(read_run(run_dir).series("step", "train_loss")[-1].value)


@pytest.mark.parametrize(("step", "num_kept"), [(0, 0), (3, 3), (5, 5), (99, 5)])
def test_truncation_keeps_exactly_the_lines_up_to_the_step(run_dir, step, num_kept):
    before = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with RunWriter(run_dir) as writer:
        assert writer.truncate_after(step) == 5 - num_kept
        assert (run_dir / "metrics.jsonl").read_bytes() == b"".join(before[:num_kept])
        write_steps(writer, [num_kept + 1])
    assert [line["step"] for line in read_run(run_dir).metrics] == list(range(1, num_kept + 2))


def test_truncation_drops_a_half_written_line_and_the_summary_of_the_longer_run(run_dir):
    with RunWriter(run_dir) as writer:
        writer.write_summary(summary())
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    with RunWriter(run_dir) as writer:
        assert writer.truncate_after(4) == 2
    record = read_run(run_dir)
    assert len(record.metrics) == 4
    assert record.summary is None


def test_truncation_of_a_run_without_metrics_does_nothing(tmp_path):
    assert RunWriter(tmp_path).truncate_after(3) == 0


def test_truncation_refuses_a_corrupt_file_and_leaves_it_alone(run_dir):
    path = run_dir / "metrics.jsonl"
    with RunWriter(run_dir) as writer:
        writer.write_summary(summary())
    damaged = path.read_bytes().replace(b'"step": 2', b'"step": x')
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=r"metrics\.jsonl, line 2"):
        RunWriter(run_dir).truncate_after(1)
    assert path.read_bytes() == damaged
    assert (run_dir / "summary.json").exists()


@settings(max_examples=30)
@given(cut=st.integers(min_value=0, max_value=10_000))
def test_a_run_killed_at_any_byte_can_be_read_and_continued(cut, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("killed")
    with RunWriter(run_dir) as writer:
        writer.write_config({})
        write_steps(writer, range(1, 5))
    path = run_dir / "metrics.jsonl"
    content = path.read_bytes()
    cut %= len(content) + 1
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n") + (content[cut : cut + 1] == b"\n")
    assert [line["step"] for line in read_run(run_dir).metrics] == list(range(1, whole + 1))
    with RunWriter(run_dir) as writer:
        write_steps(writer, [whole + 1])
    assert [line["step"] for line in read_run(run_dir).metrics] == list(range(1, whole + 2))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", "line 3"),
        ("[1, 2]", "not a JSON object"),
        ('{"event": "step", "epoch": 1, "seconds": 1}', "step is missing"),
        ('{"event": "step", "step": true, "epoch": 1, "seconds": 1}', "step is True"),
        ('{"event": "step", "step": 1.5, "epoch": 1, "seconds": 1}', r"step is 1\.5"),
        ('{"event": 3, "step": 1, "epoch": 1, "seconds": 1}', "event is 3"),
        ("", "line 3"),
    ],
)
def test_a_corrupt_line_is_named(run_dir, line, complaint):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(FormatError, match=complaint) as error:
        read_run(run_dir)
    assert f"{path}, line 3" in str(error.value)


def test_a_value_that_is_no_number_is_named(run_dir):
    with RunWriter(run_dir) as writer:
        writer.write("step", step=7, epoch=0.7, seconds=4.0, train_loss="low")
    with pytest.raises(FormatError, match="train_loss of the step at step 7 is 'low'"):
        read_run(run_dir).series("step", "train_loss")


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="no such directory"):
        read_run(tmp_path / "absent")
    with pytest.raises(DataNotFoundError, match=r"no config\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_corrupt_file_is_named(run_dir, name, content):
    (run_dir / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=name) as caught:
        read_run(run_dir)
    assert str(caught.value).count(str(run_dir)) == 1


@pytest.mark.parametrize("status", [RunStatus.INTERRUPTED, RunStatus.FAILED])
def test_the_last_line_says_how_a_run_ended(run_dir, status):
    with RunWriter(run_dir) as writer:
        writer.note("stopped", step=5, epoch=0.5, seconds=3.0, status=status)
        assert read_run(run_dir).status is status
        writer.note("resumed from step 5", step=5, epoch=0.5, seconds=3.0)
        assert read_run(run_dir).status is RunStatus.UNFINISHED
        writer.write_summary(summary())
    assert read_run(run_dir).status is RunStatus.FINISHED


def test_summary_round_trip(tmp_path):
    record = read_run(write_image_run(tmp_path / "run", num_epochs=1))
    assert record.summary == summary()
    assert record.config == CONFIG
    assert Summary.from_dict(summary().to_dict() | {"of_a_later_version": 1}) == summary()


def test_summary_has_all_keys_of_the_published_format():
    published = {
        "recipe", "seed", "device", "test_accuracy", "test_loss_nats", "num_epochs", "num_steps", "sample_visits",
        "sample_visits_full", "train_seconds", "examples_per_second", "model_float32_bytes", "model_packed_bytes",
        "weights_kept_fraction", "checkpoint_raw_bytes", "checkpoint_stored_bytes", "versions", "num_parameters",
        "data", "model", "peak_memory_bytes", "threads", "precision", "world_size", "total_seconds", "phase_seconds",
    }  # fmt: skip
    assert published <= set(summary().to_dict())


def test_summary_stores_non_finite_numbers_as_null():
    values = summary(test_loss_nats=math.nan, examples_per_second=math.inf).to_dict()
    json.dumps(values, allow_nan=False)
    again = Summary.from_dict(values)
    assert again.test_loss_nats is None
    assert math.isnan(again.examples_per_second)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_steps": 1.5}, "num_steps = 1.5, which is not a whole number"),
        ({"recipe": None}, "recipe = None, which is not a text"),
        ({"train_seconds": "1"}, "train_seconds = '1', which is not a number"),
        ({"versions": {"torch": 2}}, "versions = .* not a table"),
        ({"test_accuracy": True}, "test_accuracy = True"),
    ],
)
def test_summary_refuses_values_of_the_wrong_type(change, complaint):
    with pytest.raises(FormatError, match=complaint):
        Summary.from_dict(summary().to_dict() | change)


def test_summary_names_what_is_missing(run_dir):
    (run_dir / "summary.json").write_text('{"recipe": "digits"}')
    with pytest.raises(FormatError, match=r"summary\.json: .*lacks data, model, seed"):
        read_run(run_dir)
