"""Imports run one way (the layers below); read from the syntax tree, so that nothing is imported to find out.

Every rule is a function from sources {path: text} to complaints. It runs over the tree, where it must stay silent, and over one
small source that breaks it, where it must speak.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
Sources = dict[str, str]
Rule = Callable[[Sources], Iterator[str]]

# Lowest first; names between two "<" are one layer and do not import each other. A name not listed has no place yet.
LAYERS = {
    "engine": """errors, model < figures, registry < formats, ops < parameters, plain, summation, elementary < recorder
        < arithmetic, bounds < variants, truth, inputs < measurement, screen, params < metrics, faults < survey, policies, mutants
        < outcome < limits, paper, sweep, compare, diagnosis, sampling < verdict < repro, tolerances < codec < __init__""",
    "service": """__init__ < client, reports, settings, errors, logs, split, exits, migrations < files, store
        < tensors, repro, suite, check_reports, access < baseline, history, admin < check < schemas, run_schemas, doors < runs
        < tasks, remote < compute < guard < bodies < routes < pages < app < cli""",
}
RANKS = {
    package: {name.strip(): rank for rank, layer in enumerate(text.split("<")) for name in layer.split(",")}
    for package, text in LAYERS.items()
}

# The world, as the standard library and the service's own dependencies show it.
IMPURE = set(
    re.findall(
        r"\w+",
        """asyncio concurrent ctypes datetime fileinput glob http importlib io logging mmap multiprocessing os pathlib pickle
        random secrets select shutil signal socket sqlite3 ssl subprocess tempfile threading time urllib uuid
        alembic click fastapi httpx jinja2 prometheus_client psycopg pydantic rich safetensors sqlalchemy starlette uvicorn""",
    )
)
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "breakpoint"}


def tree() -> Sources:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in LAYERS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def name_on_layer(path: str) -> tuple[str, str]:
    """'engine/truth/exact.py' -> ('engine', 'truth'); 'engine/__init__.py' -> ('engine', '__init__')."""
    package, name = PurePosixPath(path).parts[:2]
    return package, name.removesuffix(".py")


def imports(path: str, source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; the name is '' in `import module`; relative ones are resolved."""
    folder = PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def imported_layer(package: str, module: str, name: str) -> str | None:
    """Which name on package's layers an import reaches; None if it reaches another package."""
    parts = [*module.split("."), *([name] if name else [])]
    if parts[0] != package:
        return None
    if len(parts) > 1 and (len(module.split(".")) > 1 or parts[1] in RANKS[package]):
        return parts[1]
    return "__init__"


def public_names(sources: Sources) -> set[str]:
    """What engine/__init__.py lists in __all__; nothing where there is no such list."""
    for node in ast.walk(ast.parse(sources.get("engine/__init__.py", ""))):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def every_module_has_a_layer(sources: Sources) -> Iterator[str]:
    for path in sources:
        package, name = name_on_layer(path)
        if name not in RANKS[package]:
            yield f"{path}: {name!r} is on no layer of {package}"


def imports_go_down(sources: Sources) -> Iterator[str]:
    for path, source in sources.items():
        package, own = name_on_layer(path)
        ranks = RANKS[package]
        for module, name in imports(path, source):
            reached = imported_layer(package, module, name)
            if reached in (None, own):
                continue
            if ranks.get(reached, len(ranks)) >= ranks.get(own, -1):
                yield f"{path}: {own} imports {reached}, which is not below it"


def the_engine_knows_no_service(sources: Sources) -> Iterator[str]:
    for path, source in sources.items():
        for module, _ in imports(path, source):
            if path.startswith("engine/") and module.split(".")[0] == "service":
                yield f"{path}: imports {module}"


def the_service_takes_only_public_names(sources: Sources) -> Iterator[str]:
    """`import engine` and `from engine import evaluate`, but neither engine.truth nor engine.truth.certify."""
    private = RANKS["engine"].keys() - public_names(sources)
    for path, source in sources.items():
        if not path.startswith("service/"):
            continue
        for module, name in imports(path, source):
            if module.startswith("engine.") or (module == "engine" and name in private):
                yield f"{path}: imports {module} {name}".rstrip()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "engine" and node.attr in private:
                yield f"{path}:{node.lineno}: reaches into engine.{node.attr}"


def only_exact_truth_imports_mpmath(sources: Sources) -> Iterator[str]:
    for path, source in sources.items():
        for module, _ in imports(path, source):
            if module.split(".")[0] == "mpmath" and path != "engine/truth/exact.py":
                yield f"{path}: imports {module}"


def variants_never_see_the_truth(sources: Sources) -> Iterator[str]:
    for path, source in sources.items():
        if name_on_layer(path) != ("engine", "variants"):
            continue
        for module, name in imports(path, source):
            if imported_layer("engine", module, name) in ("truth", "__init__"):
                yield f"{path}: the thing judged must not see the judge"


def the_engine_is_pure(sources: Sources) -> Iterator[str]:
    """No files, clock, log, environment or network; engine/__init__.py may ask the package for its own version."""
    for path, source in sources.items():
        if not path.startswith("engine/"):
            continue
        for module, _ in imports(path, source):
            if module.split(".")[0] in IMPURE and (path, module) != ("engine/__init__.py", "importlib.metadata"):
                yield f"{path}: imports {module}"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                yield f"{path}:{node.lineno}: calls {node.func.id}()"


# Each rule with sources that break it exactly once each, and sources that come near it and do not.
CASES: list[tuple[Rule, list[tuple[str, str]], list[tuple[str, str]]]] = [
    (
        every_module_has_a_layer,
        [("engine/utils.py", ""), ("service/helpers/strings.py", "")],
        [("engine/truth/anything.py", ""), ("service/routes/ops.py", ""), ("engine/__init__.py", "")],
    ),
    (
        imports_go_down,
        [
            ("engine/formats.py", "from engine.verify import verify"),
            ("engine/formats.py", "from engine import arithmetic"),
            ("engine/formats.py", "def f():\n    import engine.arithmetic"),
            ("engine/formats.py", "from .arithmetic import Arithmetic"),
            ("engine/formats.py", "from . import arithmetic"),
            ("engine/truth/exact.py", "from ..metrics import measure"),
            ("engine/formats.py", "from engine.nowhere import f"),
            ("engine/errors.py", "from engine.model import Tensor"),
            ("engine/truth/exact.py", "from engine.inputs import gaussian"),
            ("engine/verify.py", "import engine"),
            ("engine/verify.py", "from engine import evaluate"),
            ("service/settings.py", "from service.app import create_app"),
            ("service/routes/ops.py", "from service import pages"),
            ("service/tasks.py", "from service.compute import Pool"),
        ],
        [
            ("engine/formats.py", "from engine.registry import Registry"),
            ("engine/truth/__init__.py", "from engine.truth.exact import certify\nfrom .exact import certify\nfrom . import exact"),
            ("engine/__init__.py", "from engine.codec import to_plain"),
            ("service/cli.py", "import service.app\nimport engine\nimport enginery.verify"),
            ("service/compute.py", "from service import tasks"),
        ],
    ),
    (
        the_engine_knows_no_service,
        [("engine/verify.py", "import service"), ("engine/verify.py", "from service.settings import Settings")],
        [("engine/verify.py", "import services"), ("service/app.py", "import service.settings")],
    ),
    (
        the_service_takes_only_public_names,
        [
            ("service/app.py", "import engine.truth"),
            ("service/app.py", "from engine.truth import certify"),
            ("service/app.py", "from engine import truth"),
            ("service/app.py", "import engine\nengine.truth.certify()"),
        ],
        [("service/app.py", "import engine\nfrom engine import evaluate\nengine.evaluate()")],
    ),
    (
        only_exact_truth_imports_mpmath,
        [("engine/truth/fast.py", "import mpmath"), ("service/app.py", "from mpmath.libmp import mpf_exp")],
        [("engine/truth/exact.py", "import mpmath")],
    ),
    (
        variants_never_see_the_truth,
        [
            ("engine/variants/softmax.py", "from engine.truth import certify"),
            ("engine/variants/softmax.py", "from ..truth.exact import certify"),
            ("engine/variants/__init__.py", "from engine import certify"),
        ],
        [("engine/variants/softmax.py", "from engine.arithmetic import Arithmetic"), ("engine/verify.py", "import engine.truth")],
    ),
    (
        the_engine_is_pure,
        [
            ("engine/codec.py", "import os"),
            ("engine/codec.py", "from os.path import join"),
            ("engine/codec.py", "from time import monotonic"),
            ("engine/codec.py", "import importlib.metadata"),
            ("engine/codec.py", "def f():\n    return open('x')"),
            ("engine/codec.py", "print(1)"),
        ],
        [("engine/__init__.py", "import importlib.metadata"), ("engine/codec.py", "import math"), ("service/app.py", "import os")],
    ),
]
RULES = [rule for rule, _, _ in CASES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_obeys(rule: Rule) -> None:
    assert list(rule(tree())) == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [pytest.param(rule, *broken, id=f"{rule.__name__}-{i}") for rule, bad, _ in CASES for i, broken in enumerate(bad)],
)
def test_a_breach_is_seen(rule: Rule, path: str, source: str) -> None:
    assert len(list(rule({path: source}))) == 1


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [pytest.param(rule, *near, id=f"{rule.__name__}-{i}") for rule, _, good in CASES for i, near in enumerate(good)],
)
def test_a_near_miss_is_let_through(rule: Rule, path: str, source: str) -> None:
    assert list(rule({path: source})) == []


def test_a_name_that_is_public_may_be_a_module_too() -> None:
    sources = {"engine/__init__.py": "__all__ = ['verify']", "service/app.py": "import engine\nengine.verify()"}
    assert list(the_service_takes_only_public_names(sources)) == []
    sources["service/app.py"] = "import engine\nengine.metrics()"
    assert len(list(the_service_takes_only_public_names(sources))) == 1


def test_there_is_a_tree_to_judge() -> None:
    assert {"engine/__init__.py", "service/app.py"} <= tree().keys()
