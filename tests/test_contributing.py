"""CONTRIBUTING.md says how a variant is added; this does it, in a copy, and runs the generic tests on it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
(_, VARIANT), (_, SCRIPT), (_, SHOWN) = BLOCKS


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the example's variant in the file it names."""
    folder = tmp_path_factory.mktemp("contributing")
    for name in ("engine", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "engine" / "variants" / "softmax.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + VARIANT)
    return folder


def run(copy: Path, *arguments: str) -> str:
    # PYTHONPATH, because an installed project would come before the copy.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))} | {
        "PYTHONPATH": str(copy)
    }
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_run_as_shown(copy: Path) -> None:
    assert run(copy, "-c", SCRIPT) == SHOWN


def test_the_catalogue_and_the_generic_tests_find_it(copy: Path) -> None:
    told = "import engine; print([r['hazard'] for r in engine.catalogue('variants') if r['name'] == 'mean_shift'])"
    assert "further above the mean" in run(copy, "-c", told)
    summary = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engine/test_catalogue.py", "-k", "mean_shift")
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None
    assert int(passed[1]) >= 7  # a claim in each format, the axes
    assert "failed" not in summary
