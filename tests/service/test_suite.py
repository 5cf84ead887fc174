"""Suite files: what they may say, what their cases are, and what is refused."""

import json
import os
import tomllib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import engine
from service import suite
from service.suite import SuiteError, load, tensors

HEAD = "version = 1\n"
ONE = '[[case]]\nname = "a"\nop = "softmax"\nfamily = "gaussian"\nn = 4\nvariant = "shifted"\nformat = "float32"\n'


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    return root


def written(folder, text, name="softgauge.toml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cases(repository, text):
    return load(written(repository, HEAD + text)).cases


def refused(repository, text, *saying, head=HEAD):
    with pytest.raises(SuiteError) as raised:
        load(written(repository, head + text))
    for words in saying:
        assert words in str(raised.value)
    return str(raised.value)


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_the_template_runs_and_is_checked_by_the_published_schema(repository):
    import jsonschema

    found = load(written(repository, suite.TEMPLATE))
    assert len(found.cases) == 6
    assert found.baseline == repository / ".softgauge" / "baseline.json"
    jsonschema.Draft202012Validator.check_schema(suite.schema())
    jsonschema.validate(tomllib.loads(suite.TEMPLATE), suite.schema())
    uncommented = suite.TEMPLATE.replace("# [[case]]", "[[case]]").replace("# [case.grid]", "[case.grid]")
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in uncommented.splitlines())
    kernel = load(written(repository, uncommented)).cases[6:]
    assert [case.name for case in kernel] == ["attention[dtype=float16]", "attention[dtype=bfloat16]"]
    assert kernel[0].paths["output"][0].endswith("build/attention-float16.safetensors")
    assert kernel[0].source == ("kernels/attention.cu", 42)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": 1, "case": [{"name": "a", "opp": "softmax"}]}, suite.schema())


def test_defaults_hold_where_a_case_does_not_say_otherwise(repository):
    text = '[defaults]\nop = "softmax"\nfamily = "ramp"\ngate = "none"\nformat = "float16"\nvariant = "naive"\n'
    first, second = cases(
        repository, text + '[[case]]\nname = "a"\n[[case]]\nname = "b"\nvariant = "shifted"\ngate = {policy = "bound"}\n'
    )
    assert (first.variant, first.gate, second.variant, second.gate) == ("naive", None, "shifted", engine.Gate("bound"))


def test_a_grid_is_every_point_in_its_order(repository):
    text = (
        ONE
        + '[case.grid]\nsummation = ["pairwise", "sequential"]\n"axes.exp" = ["correct", "exp2"]\n"parameters.sigma" = [1, 2.5]\n'
    )
    found = cases(repository, text)
    assert len(found) == 8
    assert found[0].name == "a[summation=pairwise,exp=correct,sigma=1]"
    assert (found[-1].summation, found[-1].axes.exp, found[-1].parameters["sigma"]) == ("sequential", "exp2", 2.5)


def test_included_suites_are_read_from_where_they_are(repository):
    np.save(repository / "x.npy", np.zeros((1, 3), np.float32))
    (repository / "kernels").mkdir()
    np.save(repository / "kernels" / "y.npy", np.full((1, 3), 1 / 3, np.float32))
    inner = '[defaults]\nop = "softmax"\n[[case]]\nname = "inner"\nlogits = "../x.npy"\noutput = "y.npy"\n'
    written(repository, HEAD + inner, "kernels/suite.toml")
    found = cases(repository, 'include = ["kernels/suite.toml"]\n' + ONE)
    assert [case.name for case in found] == ["a", "inner"]
    problem, output = tensors(found[1])
    assert (problem.logits.tolist(), output.dtype) == ([[0, 0, 0]], np.float32)


@pytest.mark.parametrize("op", [row["name"] for row in engine.catalogue("ops")])
def test_what_a_family_needs_beside_logits_is_drawn_from_its_seed(repository, op):
    variant = next(row["name"] for row in engine.catalogue("variants") if row["op"] == op and row["stable"])
    text = ONE.replace('"softmax"', f'"{op}"').replace('"shifted"', f'"{variant}"')
    (case,) = cases(repository, text)
    problem, output = tensors(case)
    again, _ = tensors(case)
    assert output.shape == engine.output_shape(problem)
    assert output.dtype == problem.logits.dtype == np.float32
    for name in ("targets", "grad_output"):
        first, second = getattr(problem, name), getattr(again, name)
        assert (first is None) == (second is None)
        assert first is None or (first == second).all()


def test_files_of_kernels_keep_their_format(repository):
    x = np.array([[1, 2, 3]], ml_dtypes.bfloat16)
    save_file({"logits": x, "other": x}, repository / "x.safetensors")
    np.savez(repository / "y.npz", out=np.float16([[0.1, 0.2, 0.7]]))
    np.save(repository / "t.npy", np.array([2], np.int32))
    text = '[[case]]\nname = "k"\nop = "cross_entropy_grad"\nlogits = "x.safetensors"\ntargets = "t.npy"\noutput = "y.npz"\n'
    problem, output = tensors(*cases(repository, text))
    assert (problem.logits.dtype, problem.targets.dtype, output.dtype) == (ml_dtypes.bfloat16, np.int64, np.float16)
    (keyed,) = cases(repository, text + 'logits_key = "third"\n')
    with pytest.raises(
        SuiteError, match=r"k: logits: x.safetensors: no tensor 'third'; there are 'logits', 'other'; say logits_key"
    ):
        tensors(keyed)


@pytest.mark.parametrize(
    ("make", "saying"),
    [
        (lambda path: None, "no such file: the kernel that writes it has to run first"),
        (lambda path: path.write_bytes(b"no array"), "y.npy"),
        (lambda path: np.save(path, np.zeros((1, 4), np.int32)), "dtype int32; known: float16"),
        (lambda path: np.save(path, np.zeros((1, 4), object), allow_pickle=True), "y.npy"),
    ],
)
def test_a_file_that_is_none_is_told_with_the_case(repository, make, saying):
    np.save(repository / "x.npy", np.zeros((1, 4)))
    make(repository / "y.npy")
    (case,) = cases(repository, '[[case]]\nname = "k"\nop = "softmax"\nlogits = "x.npy"\noutput = "y.npy"\n')
    with pytest.raises(SuiteError, match=r"k: output: y\.npy: ") as raised:
        tensors(case)
    assert saying in str(raised.value)


def test_what_a_baseline_agrees_on_is_not_how_the_output_is_made(repository):
    asked = [cases(repository, ONE.replace("shifted", variant))[0].asked for variant in ("shifted", "naive")]
    assert asked[0] == asked[1] == {"op": "softmax", "gate": {"policy": "bound"}, "nonfinite": "ieee", "params": {}, "axis": -1}
    (scaled,) = cases(repository, ONE + 'params = { scale = 2.0 }\ngate = "none"\n')
    assert (scaled.asked["params"], scaled.asked["gate"]) == ({"scale": 2.0}, "none")
    json.dumps(scaled.asked)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("", "softgauge.toml has no cases: add a [[case]], or an include"),
        (ONE + "opp = 1\n", "case 0 ('a'): 'opp': Extra inputs are not permitted; known: op, family"),
        (ONE.replace('"a"', '"<b>"'), "case 0 ('<b>'): 'name': String should match pattern"),
        (ONE + ONE, "two cases are named a"),
        (ONE.replace("op =", "#"), "op is missing; known: softmax, "),
        (ONE.replace("family =", "#"), "the input is either of a family"),
        (ONE + 'logits = "x.npy"\n', "the input is either of a family"),
        (ONE.replace("variant =", "#"), "what is judged is either a variant"),
        (ONE.replace("format =", "#"), "format is missing, in which 'shifted' is to be run"),
        (ONE.replace('variant = "shifted"', 'output = "y.npy"'), "format has no place beside output: its dtype is the format"),
        (ONE.replace('"shifted"', '"shiftet"'), "shiftet"),
        (ONE.replace('"gaussian"', '"gauss"'), "gauss"),
        (ONE.replace('"float32"', '"fp8"'), "fp8"),
        (ONE.replace("n = 4", "n = 10000000\nrows = 2"), "rows = 2 times n = 10000000 is above 10000000 elements"),
        (ONE.replace("n = 4", "n = 0"), "greater than or equal to 1, not '0'"),
        (ONE + 'gate = { policy = "max_ulp" }\n', "max_ulp"),
        (ONE + 'gate = "all"\n', "gate"),
        (ONE + "slack = { ulps = 1.0 }\n", "ulps"),
        (ONE + "slack = { max_ulp = -1.0 }\n", "slack of max_ulp is -1.0"),
        (ONE + "params = { label_smoothing = 0.1 }\n", "label_smoothing"),
        (ONE + "[case.grid]\nn = []\n", "grid: n has no values"),
        (ONE + '[case.grid]\nm = [1]\n', "grid: 'm' is unknown: no path has {m} in it"),
        (ONE + '[case.grid]\nvariant = ["a|b`c"]\n', "cannot stand in a name"),
        (f"{ONE}[case.grid]\nseed = {list(range(101))}\nrows = {list(range(1, 101))}\n", "10100 points; a suite has at most 10000"),
        ('include = ["other.toml"]\n' + ONE, "other.toml: no such file; `softgauge init` writes one"),
        ('include = ["softgauge.toml"]\n' + ONE, "is read already; name each file once"),
        ("version = 2\n", "Cannot overwrite a value"),
        (ONE + "x = " + "[" * 2000, "is not TOML"),
        (ONE + "# " + "x" * (1 << 20), "more than 1048576 bytes; split it with include"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_way_out(repository, text, saying):
    refused(repository, text, saying)


def test_a_later_version_is_not_guessed_at(repository):
    refused(repository, ONE, "version", "Input should be 1, not '2'", head="version = 2\n")
    refused(repository, ONE, "version", "Field required", head="")


def test_bytes_that_are_no_text(repository):
    path = repository / "softgauge.toml"
    path.write_bytes(b"version = 1 # \xff")
    with pytest.raises(SuiteError, match="is not TOML: 'utf-8' codec"):
        load(path)


KERNEL = '[[case]]\nname = "k"\nop = "softmax"\nlogits = "{}"\noutput = "y.npy"\n'


@pytest.mark.parametrize("path", ["../x.npy", "/etc/x.npy", "link/x.npy", "a/../../x.npy", "x\\u0000.npy"])
def test_paths_stay_inside_the_repository(repository, path):
    (repository / "link").symlink_to(repository.parent)
    said = refused(repository, KERNEL.format(path), "case 0 (k): logits: ")
    assert "leads out of the repository, repository; nothing outside is read or written" in said or "null" in said


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ('baseline = "../b.json"\n' + ONE, "softgauge.toml: baseline: '../b.json' leads out"),
        ('include = ["../s.toml"]\n' + ONE, "softgauge.toml: include: '../s.toml' leads out"),
        (ONE + 'source = { file = "/etc/passwd" }\n', "source: '/etc/passwd' leads out"),
        (KERNEL.format("x.json"), "logits: 'x.json': files end in .npy"),
    ],
)
def test_every_path_does(repository, text, saying):
    refused(repository, text, saying)


def test_a_path_that_a_grid_fills_in_stays_inside_too(repository):
    text = KERNEL.format("x.npy").replace('"y.npy"', '"{kind}/y.npy"') + '[case.grid]\nkind = [".."]\n'
    refused(repository, text, "output: '../y.npy' leads out of the repository")


def test_outside_a_repository_the_folder_of_the_suite_is_the_root(tmp_path):
    assert load(written(tmp_path / "alone", HEAD + ONE)).root == tmp_path / "alone"


def test_files_that_include_each_other_end(repository):
    for name, other in (("b", "c"), ("c", "b")):
        written(repository, f'{HEAD}include = ["{other}.toml"]\n', f"{name}.toml")
    refused(repository, 'include = ["b.toml"]\n' + ONE, "is read already")


def test_no_more_files_and_cases_than_are_allowed(repository, monkeypatch):
    monkeypatch.setattr(suite, "MOST_FILES", 2)
    for name in "bc":
        written(repository, HEAD, f"{name}.toml")
    refused(repository, 'include = ["b.toml", "c.toml"]\n' + ONE, "more than 2 files; put them together")
    monkeypatch.setattr(suite, "MOST_CASES", 3)
    refused(
        repository,
        ONE + "[case.grid]\nseed = [1, 2]\n" + ONE.replace('"a"', '"b"') + "[case.grid]\nseed = [1, 2]\n",
        "more than 3 cases",
    )


def test_a_folder_named_as_a_suite_is_none(repository):
    os.mkdir(repository / "softgauge.toml")
    with pytest.raises(SuiteError, match=r"softgauge\.toml: no such file"):
        load(repository / "softgauge.toml")
