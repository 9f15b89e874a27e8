"""Errors in three parts, and what a PatchSpec takes."""

import pathlib
import pickle
import subprocess
import sys

import pytest

from patchhost import errors
from patchhost.spec import PatchSpec

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.Error)]


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_have_three_parts_and_pickle(cls):
    error = cls("tensor `w`", "it is lost", "send it", "special")
    assert str(error) == "refused: tensor `w`\n  why: it is lost\n  next: send it"
    assert (error.what, error.why, error.next, error.kind) == ("tensor `w`", "it is lost", "send it", "special")
    assert error.args == ("tensor `w`", "it is lost", "send it", "special")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == str(error) and again.kind == "special"


def test_errors_are_also_those_of_python():
    assert issubclass(errors.TensorError, ValueError) and issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.HostError, OSError) and issubclass(errors.ForkedError, RuntimeError)
    assert issubclass(errors.ContractError, errors.PatchError) and issubclass(errors.NonFiniteError, errors.RefitError)
    assert errors.HostError("a", "b", "c").errno is None


def test_kinds_name_their_classes():
    words = "refused patch contract refit non-finite swap tensor usage host forked internal".split()
    assert sorted(errors.KINDS) == sorted(words)
    for word, cls in errors.KINDS.items():
        made = errors.make(word, "a", "b", "c")
        assert type(made) is cls and made.kind == word
        assert cls("a", "b", "c").kind == word
    assert type(errors.make("news", "a", "b", "c")) is errors.InternalError
    assert errors.make("news", "a", "b", "c").kind == "news"


def test_findings_keep_their_report():
    error = errors.Findings("a", "b", "c")
    assert error.report is None and error.kind == "refused"
    error.report = {"findings": []}
    assert pickle.loads(pickle.dumps(error)).report == {"findings": []}


def test_a_spec_is_a_value():
    spec = PatchSpec(pathlib.Path("a/b.wasm"), "sha256:" + "AB" * 32, {"on": True, "n": 3, "x": 0.25, "s": "t"})
    assert spec.component == "a/b.wasm" and spec.sha256 == "ab" * 32
    assert spec.settings == (("on", "true"), ("n", "3"), ("x", "0.25"), ("s", "t"))
    same = PatchSpec("a/b.wasm", "ab" * 32, spec.settings)
    assert spec == same and hash(spec) == hash(same) and pickle.loads(pickle.dumps(spec)) == spec
    assert PatchSpec.of(spec) is spec and PatchSpec.of("x") == PatchSpec("x") and not hasattr(spec, "__dict__")
    assert "profile" in repr(PatchSpec("x", settings={"profile": "hf"}))
    with pytest.raises(AttributeError):
        spec.component = "other"


@pytest.mark.parametrize(
    "args",
    [
        (3,), (b"x",), (pathlib.Path,), ("",), ("a\0b",), ("x", "12"), ("x", "g" * 64), ("x", 5), ("x", None, 3),
        ("x", None, "profile"), ("x", None, {1: "a"}), ("x", None, {"": "a"}), ("x", None, {"a=b": "a"}),
        ("x", None, {"a": None}), ("x", None, {"a": float("nan")}), ("x", None, {"a": [1]}),
        ("x", None, [("a", 1), ("a", 2)]), ("x", None, ["abc"]),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused(args):
    with pytest.raises(errors.UsageError) as caught:
        PatchSpec(*args)
    assert caught.value.why and caught.value.next


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import patchhost; t = time.perf_counter() - t\n"
        "heavy = [m for m in ('torch', 'numpy', 'json', 'importlib.metadata', 'subprocess') if m in sys.modules]\n"
        "assert not heavy, heavy\nprint(t)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) for _ in range(3)
    ]
    assert min(times) < 0.05, times


def test_every_exported_name_is_known():
    import patchhost

    lazy = set(patchhost._WHERE)
    assert sorted(patchhost.__all__) == patchhost.__all__ or set(patchhost.__all__) <= lazy | set(vars(patchhost))
    assert set(patchhost.__all__) <= lazy | set(vars(patchhost))
    assert lazy <= set(patchhost.__all__)
    with pytest.raises(AttributeError):
        patchhost.__getattr__("nothing")
