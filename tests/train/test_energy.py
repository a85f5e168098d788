"""Energy counters, with files in the place of the machine's."""

import torch

from scrimp.train.energy import EnergyMeter

CPU = torch.device("cpu")


def zone(folder, name, microjoules, span=1_000_000):
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", 100)
    zone(tmp_path, "intel-rapl:1", 200)
    zone(tmp_path, "intel-rapl:0:0", 50)
    meter = EnergyMeter(CPU, tmp_path)
    zone(tmp_path, "intel-rapl:0", 500_100)
    zone(tmp_path, "intel-rapl:1", 250_200)
    zone(tmp_path, "intel-rapl:0:0", 900_000)
    assert meter.joules() == 0.75
    assert meter.joules() == 0.75


def test_a_counter_that_began_anew(tmp_path):
    zone(tmp_path, "intel-rapl:0", 900_000)
    meter = EnergyMeter(CPU, tmp_path)
    zone(tmp_path, "intel-rapl:0", 100_000)
    assert meter.joules() == 0.2


def test_a_machine_that_does_not_tell(tmp_path):
    assert EnergyMeter(CPU, tmp_path).joules() is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number")
    assert EnergyMeter(CPU, tmp_path).joules() is None
