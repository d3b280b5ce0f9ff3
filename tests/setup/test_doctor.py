"""`labkit doctor`: what stops the course, what is only noted, and the command that mends each."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from typer.testing import CliRunner

from labkit import doctor
from labkit.environment import machine, packages, parts, processor
from labkit.environment.finding import Finding, State


def show(monkeypatch, *findings):
    """The exit code and output of the command when it finds `findings`."""
    monkeypatch.setattr(doctor, "examine", lambda: {"Part": list(findings)})
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(doctor.app)
    return result.exit_code, result.output


def test_exit_code_is_0_when_nothing_stops_the_course(monkeypatch):
    code, said = show(monkeypatch, Finding("torch", "2.13.0"), Finding("x", "y", State.NOTE, "z"))
    assert code == 0
    assert "The course can run." in said


def test_exit_code_is_1_and_the_reason_and_remedy_are_shown(monkeypatch):
    broken = Finding("torch", "missing", State.STOPS, "pip install [torch]")
    code, said = show(monkeypatch, broken, Finding("numba", "0.68"))
    assert code == 1
    assert "The course cannot run: torch." in said
    assert "pip install [torch]" in said  # and not read as rich's markup


def test_a_missing_package_stops_the_course_and_names_its_command():
    finding = packages.check_package(Requirement("no-such-package>=1.2"), {"torch": Version("1")})
    assert finding.state is State.STOPS
    assert 'install -c constraints.txt "no-such-package>=1.2"' in finding.advice


def test_a_version_outside_its_range_stops_the_course():
    finding = packages.check_package(Requirement("packaging<1"), {})
    assert finding.state is State.STOPS
    assert '"packaging<1"' in finding.advice


def test_an_untested_version_is_noted():
    finding = packages.check_package(Requirement("packaging>=1"), {"packaging": Version("1.5")})
    assert (finding.state, finding.advice) == (State.NOTE, "tested with 1.5")


def test_a_local_build_of_the_tested_version_is_fine(monkeypatch):
    monkeypatch.setattr(packages, "installed_version", lambda name: "2.13.0+cpu")
    finding = packages.check_package(Requirement("torch>=2.6"), {"torch": Version("2.13.0")})
    assert finding == Finding("torch", "2.13.0+cpu")


def test_required_and_extra_packages_are_told_apart():
    required = {item.name for item in packages.own_requirements()}
    tests = {item.name for item in packages.own_requirements("test")}
    assert {"torch", "transformers", "rich"} <= required
    assert {"pytest", "nbval"} <= tests
    assert not required & tests


def test_the_tested_set_pins_every_requirement():
    for name in ("constraints.txt", "constraints-card.txt"):
        pins = packages.tested_set(packages.ROOT / name)
        wanted = [*packages.own_requirements(), *packages.own_requirements("test")]
        for requirement in wanted:
            assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_doctor_works_where_torch_cannot_be_imported():
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from labkit.doctor import examine, table\n"
        "from rich.console import Console\n"
        "Console(width=200).print(table(examine()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("Python", "SIMD", "torch", "Progress"))


def test_the_table_has_one_row_a_finding_and_one_a_part():
    drawn = doctor.table({"A": [Finding("x", "1")], "B": [Finding("y", "2"), Finding("z", "3")]})
    assert drawn.row_count == 5
    console = Console(width=100, file=io.StringIO())
    console.print(drawn)
    lines = [line.split()[0] for line in console.file.getvalue().splitlines()[1:]]
    assert lines == ["A", "x", "B", "y", "z"]


@pytest.mark.parametrize("version, state", [((3, 10, 9), State.STOPS), ((3, 11, 0), State.FINE)])
def test_python_has_to_be_new_enough(version, state):
    assert machine.check_python(version).state is state


def test_progress_that_cannot_be_saved_is_noted(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "not" / "yet"))
    assert machine.check_home().state is State.FINE
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert machine.check_home().state is State.NOTE


def test_a_cpu_build_beside_a_gpu_is_noted_with_the_command(monkeypatch):
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: ["NVIDIA H100, 81559 MiB"])
    monkeypatch.setattr(machine, "installed_version", lambda name: "2.13.0+cpu")
    finding = machine.check_gpu()
    assert finding.state is State.NOTE
    assert finding.advice.endswith("--force-reinstall torch==2.13.0")
    monkeypatch.setattr(machine, "installed_version", lambda name: "2.13.0")
    assert machine.check_gpu().state is State.FINE


@pytest.mark.parametrize("script, gpus", [("echo 'A, 1 MiB'; echo 'B, 2 MiB'", 2), ("exit 9", 0)])
def test_gpus_are_those_that_the_driver_reports(monkeypatch, tmp_path, script, gpus):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(smi))
    assert len(machine.nvidia_gpus()) == gpus


def test_instructions_are_read_from_cpuinfo_and_sysctl():
    x86 = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nprocessor : 1\nflags : fpu\n"
    assert processor.instructions(processor.flags_of_cpuinfo(x86)) == ["AVX2", "AVX-512", "VNNI"]
    arm = "Features\t: fp asimd asimddp\n"
    assert processor.instructions(processor.flags_of_cpuinfo(arm)) == ["NEON", "dot product"]
    mac = "hw.optional.neon: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.avx2_0: 0\n"
    assert processor.instructions(processor.flags_of_sysctl(mac)) == ["NEON", "I8MM"]
    assert processor.flags_of_cpuinfo("") == set()


def test_a_missing_model_stops_the_course_unless_another_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "BUNDLED_MODEL", tmp_path / "model.safetensors")
    assert parts.check_model().state is State.STOPS
    monkeypatch.setenv("LABKIT_MODEL", "Qwen/Qwen2.5-0.5B")
    assert parts.check_model().state is State.FINE


def test_every_missing_optional_part_names_the_command_that_adds_it(monkeypatch):
    monkeypatch.setattr(parts.shutil, "which", lambda name: None)
    monkeypatch.setattr(parts, "installed_version", lambda name: None)
    monkeypatch.setattr(parts, "ROOT", parts.ROOT / "nowhere")
    findings = parts.check_optional()
    assert [finding.state for finding in findings] == [State.NOTE] * len(parts.OPTIONAL)
    commands = ("install -e", "apt-get install", "brew install", "xcode-select", "make card-env")
    assert all(any(word in finding.advice for word in commands) for finding in findings)
