"""The recipes under "From a test-suite" of README.md, each run as it stands there: a right kernel passes, a wrong one does not.

They meet a stand-in for the service (tests/service/fake.py), and the service. `make soak` installs the frameworks.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from service import client
from tests.service import fake

ROOT = Path(__file__).parent.parent.parent
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## From a test-suite\n")[1].split("\n## ")[0]
RECIPES = {name: text for text, name in re.findall(r"^```\w+\n((?:#|//) (\S+)\n.*?)^```$", SECTION, re.M | re.S)}
FRAMEWORKS = {"test_torch.py": ["torch==2.13.0"], "test_jax.py": ["jax[cpu]"], "test_triton.py": ["torch==2.13.0", "triton"]}
SERVICES = {
    "fake": f"import runpy; runpy.run_path({fake.__file__!r}, run_name='__main__')",
    "service": "from service.cli import main; main(prog_name='softgauge')",
}

# What a kernel that writes nothing would give, whatever library its output is of.
WRONG = """
_right = verify
def verify(op, logits, output, **options):
    return _right(op, logits, output * 0, **options)
"""


@pytest.fixture(
    params=["fake", "service"],
)
def folder(request, tmp_path):
    """A folder with every recipe, a copy of the client, and, in bin/, a `softgauge` that serves."""
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    shutil.copy(client.__file__, tmp_path / "softgauge.py")
    program = tmp_path / "bin" / "softgauge"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -P\nimport sys; sys.path.insert(0, {str(ROOT)!r})\n{SERVICES[request.param]}\n")
    program.chmod(0o755)
    return tmp_path


def run(folder, *command, **environment):
    """What a command prints in that folder, and its status."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    env = {"PATH": path, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=env, timeout=300, check=False, **pipes)
    return done.returncode, done.stdout


def passes_when_right_only(folder, name, python=sys.executable, **environment):
    """The recipe passes; with a kernel that writes nothing it fails, and says so."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    status, said = run(folder, *command, **environment)
    assert status == 0, said
    with (folder / "softgauge.py").open("a") as file:
        file.write(WRONG)
    status, said = run(folder, *command, **environment)
    assert status == 1, said
    assert "the verdict is fail, not pass" in said
    assert re.search(r"got -?0\.0", said)


def test_every_recipe_is_tested():
    assert RECIPES.keys() == {"conftest.py", "test_numpy.py", "softmax.cpp", "softmax.sh", *FRAMEWORKS}


def test_numpy_with_a_service_of_ones_own(folder):
    passes_when_right_only(folder, "test_numpy.py")


def test_cpp_and_curl(folder):
    if not (shutil.which("g++") and shutil.which("curl")):
        pytest.skip("there is no g++ or no curl here")
    with client.serving([str(folder / "bin" / "softgauge"), "serve"]) as url:
        status, said = run(folder, "bash", "-e", "softmax.sh", SOFTGAUGE_URL=url)
        assert status == 0, said
        wrong = RECIPES["softmax.cpp"].replace("/= sum", "/= 2 * sum")
        assert wrong != RECIPES["softmax.cpp"]
        (folder / "softmax.cpp").write_text(wrong)
        status, said = run(folder, "bash", "-e", "softmax.sh", SOFTGAUGE_URL=url)
        assert status == 1, said
        assert '"fail"' in said


@pytest.fixture(scope="session")
def python_with(tmp_path_factory):
    """The Python of a throw-away environment with those packages, made once for each set of them."""
    made = {}

    def make(packages):
        if packages not in made:
            place = tmp_path_factory.mktemp("framework")
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            made[packages] = place / "bin" / "python"
            pip = [made[packages], "-m", "pip", "-q", "--disable-pip-version-check", "install", "numpy", "pytest", *packages]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr.strip()[-200:]}")
        return made[packages]

    return make


# A transposed tensor of each dtype, as the client takes it.
TENSORS = {
    "torch": "import torch; made = [torch.tensor(rows, requires_grad=True).to(getattr(torch, name)).t() for name in names]",
    "jax": "import jax; made = [jax.numpy.array(rows).astype(name).T for name in names]",
}
DTYPES = ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int32", "int8", "bool"]
TAKEN = """
import json, softgauge
names, rows = {names}, {rows}
{made}
for tensor in made:
    taken = softgauge._tensor("logits", tensor, None)
    print(json.dumps([taken.dtype, taken.shape, bytes(taken.data).hex()]))
"""


@pytest.mark.soak
@pytest.mark.parametrize(("framework", "recipe"), [("torch", "test_torch.py"), ("jax", "test_jax.py")])
def test_tensors_of_frameworks(tmp_path, python_with, framework, recipe):
    rows = [[0.5, 2.0, -3.0], [1.0, 0.0, 64.0]]
    names = {"torch": [*DTYPES, "float64", "int64"], "jax": DTYPES}[framework]
    shutil.copy(client.__file__, tmp_path / "softgauge.py")
    (tmp_path / "taken.py").write_text(TAKEN.format(names=names, rows=rows, made=TENSORS[framework]))
    (tmp_path / "bin").mkdir()
    status, said = run(tmp_path, python_with(tuple(FRAMEWORKS[recipe])), "taken.py")
    assert status == 0, said
    wanted = [np.array(rows).astype(getattr(ml_dtypes, name, name)).T for name in names]
    assert list(map(json.loads, said.splitlines())) == [[x.dtype.name, [3, 2], x.tobytes().hex()] for x in wanted]


@pytest.mark.soak
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks(folder, python_with, name):
    passes_when_right_only(folder, name, python_with(tuple(FRAMEWORKS[name])), TRITON_INTERPRET="1")
