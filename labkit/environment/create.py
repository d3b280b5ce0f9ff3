"""Make a virtual environment with the tested set of packages. `make setup` runs this.

    python labkit/environment/create.py .venv --constraints constraints.txt
    python labkit/environment/create.py .venv-card --constraints constraints-card.txt \
        --environment environment.yml

Runs before anything is installed, so it imports the standard library alone. Every step may be
run again: what is there is kept, pip's cache holds what was downloaded and built, and the stamp
that tells make to skip all this is written last.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
STAMP = ".labkit-ready"
SLOW_BUILD = "llama-cpp-python"
"""The one package without a wheel on PyPI: 77 MB of C++, compiled while pip fetches the rest."""

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def stop(text: str) -> NoReturn:
    sys.exit(f"[setup] {text}")


def make_venv(venv: Path) -> Path:
    """The path of a working Python in `venv`; one that a killed run left half-made is remade."""
    python = venv / "bin" / "python"
    with contextlib.suppress(OSError):  # not there, or not whole
        works = [str(python), "-m", "pip", "--version"]
        if subprocess.run(works, capture_output=True, check=False).returncode == 0:
            return python
    say(f"creating {venv.name} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=False)
    if made.returncode:
        stop("Python could not create it. On Debian and Ubuntu: apt-get install python3-venv")
    return python


def pinned(constraints: Path, package: str) -> str:
    """The line of the constraints file that pins `package`, e.g. "torch==2.13.0"."""
    wanted = re.sub(r"[-_.]+", "-", package).lower()
    for line in constraints.read_text().splitlines():
        if re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() == wanted:
            return line
    stop(f"{constraints.name} does not pin {package}")


def requirements(environment: Path | None) -> list[str]:
    """pip's arguments: the lines under "- pip:" of a conda environment file, or labkit itself."""
    if environment is None:
        return ["-e", ".[test]"]
    _, _, pip = environment.read_text().partition("- pip:\n")
    lines = re.findall(r"^ +- (.+)$", pip, flags=re.MULTILINE)
    return [word for line in lines for word in shlex.split(line)]


def torch_index() -> str | None:
    """Where to get torch when not from PyPI, whose Linux wheels bring gigabytes of CUDA.

    $TORCH_INDEX decides if it is set (empty: PyPI). Else a Linux machine without an NVIDIA driver
    takes the CPU wheels of pytorch.org, if that answers.
    """
    if "TORCH_INDEX" in os.environ:
        return os.environ["TORCH_INDEX"] or None
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        return None
    try:
        urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=PROBE_SECONDS).close()
    except OSError as error:
        say(f"{CPU_INDEX} does not answer ({error}): torch comes from pip's usual index")
        return None
    return CPU_INDEX


class Build:
    """`pip wheel` for SLOW_BUILD in the background, its output in a log, one line of it shown."""

    def __init__(self, python: Path, venv: Path, requirement: str) -> None:
        self.log = venv / f"{SLOW_BUILD}.log"
        self.wheels = venv / "wheels"
        arguments = ["wheel", "--verbose", "--no-deps", "-w", str(self.wheels), requirement]
        say(f"building {requirement} in the background (a few minutes, then cached)")
        say(f"its log: {self.log}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", "pip", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.trimmed(),
                start_new_session=True,
            )

    def end(self) -> None:
        """Stop what still runs, compilers included."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()

    @staticmethod
    def trimmed() -> dict[str, str]:
        """CMake flags: the library and its Python binding, tuned to this CPU, and nothing else."""
        include = ROOT / "labkit" / "environment" / "llama_cpp.cmake"
        flags = [f"-DCMAKE_PROJECT_INCLUDE={include}", "-DLLAVA_BUILD=OFF", "-DLLAMA_OPENSSL=OFF"]
        given = os.environ.get("CMAKE_ARGS", "")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        return {
            "CMAKE_ARGS": f"{shlex.join(flags)} {given}".strip(),
            "CMAKE_BUILD_PARALLEL_LEVEL": jobs,
        }

    def progress(self) -> str:
        """The last step that ninja or make reported: "[41/83]" or "[ 50%]"."""
        steps = re.findall(r"^\s*(\[ *\d+(?:/\d+|%)\])", self.log.read_text(errors="replace"), re.M)
        return steps[-1] if steps else "fetching and configuring"

    def wait(self) -> None:
        """Show progress until the wheel is there; exits with the end of the log if it failed."""
        started, shown = time.monotonic(), None
        while self.process.poll() is None:
            now = self.progress()
            if now != shown:
                say(f"{SLOW_BUILD}: {now}, waited {time.monotonic() - started:.0f} s")
                shown = now
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        if self.process.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            stop(
                f"{tail}\n[setup] {SLOW_BUILD} did not build; the whole log is {self.log}.\n"
                "[setup] It needs a C and a C++ compiler. Debian and Ubuntu: apt-get install "
                "build-essential; macOS: xcode-select --install. Then run make again."
            )


def pip(python: Path, *arguments: str) -> None:
    # Byte-compiling torch and transformers here would take longer than doing it on first import.
    command = [str(python), "-m", "pip", "install", "--no-compile", *arguments]
    if subprocess.run(command, check=False).returncode:
        stop("pip failed (its message is above). Run make again: it goes on where it stopped.")


def without(package: str, wanted: list[str]) -> list[str]:
    """`wanted` as pip arguments in which labkit is replaced by its dependencies but `package`."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    others = [word for word in wanted if word not in ("-e", ".[test]")]
    return [word for word in [*others, *own] if not word.startswith(package)]


def install(python: Path, venv: Path, constraints: Path, wanted: list[str]) -> None:
    build = Build(python, venv, pinned(constraints, SLOW_BUILD))
    try:
        index = torch_index()
        if index:
            say(f"torch for the CPU from {index} (TORCH_INDEX= chooses another)")
            pip(python, "--no-deps", "--index-url", index, pinned(constraints, "torch"))
        say(f"installing the tested set of {constraints.name}")
        pip(python, "-c", str(constraints), *without(SLOW_BUILD, wanted))
        build.wait()
    finally:
        build.end()
    say("installing labkit itself")
    pip(python, "-c", str(constraints), "--find-links", str(build.wheels), *wanted)
    shutil.rmtree(build.wheels, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--constraints", type=Path, required=True)
    parser.add_argument("--environment", type=Path, help="a conda environment file")
    options = parser.parse_args()
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    os.chdir(ROOT)
    venv = options.venv.resolve()
    started = time.monotonic()
    python = make_venv(venv)
    # A killed or hung-up set-up ends like one stopped by Ctrl-C: its compilers end with it.
    for signalled in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signalled, signal.default_int_handler)
    try:
        install(python, venv, options.constraints, requirements(options.environment))
    except KeyboardInterrupt:
        stop("interrupted. Run make again: it goes on where it stopped.")
    (venv / STAMP).touch()
    say(f"{venv.name} is ready after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
