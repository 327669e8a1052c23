"""Exceptions: one for each error of the wire, with its parameters."""
import pickle
import re

import pytest
import rocmforge
from harness import ROOT
from rocmforge import errors

VARLINK = (ROOT / "proto" / "io.rocmforge.varlink").read_text()
TABLE = (ROOT / "proto" / "errors.h").read_text()


def test_each_error_has_its_class_and_sentence():
    sentences = dict(re.findall(r'X\((\w+), \w+, "(.*?)"\)', TABLE))
    assert {error.__name__: error.sentence for error in errors.BY_NAME.values()} == sentences
    assert {name.rpartition(".")[0] for name in errors.BY_NAME} == {"io.rocmforge", "org.varlink.service"}
    assert all(getattr(rocmforge, name) is error for name, error in
               ((error.__name__, error) for error in errors.BY_NAME.values()))


def test_each_error_has_its_parameters():
    for name, text in re.findall(r"^error (\w+) ?\((.*?)\)", VARLINK, re.M):
        fields = set(re.findall(r"(\w+):", text))
        assert fields == set(errors.BY_NAME[f"io.rocmforge.{name}"].__dict__.get("__annotations__", {})), name


def test_what_the_daemon_says(rf, small, folder):
    with pytest.raises(rocmforge.ModelNotFound, match="no model of this name: 'x'") as caught:
        rf.attach("x")
    assert caught.value.name == "x" and caught.value.error == "io.rocmforge.ModelNotFound"
    with rf.load_attach(small, name="m"):
        with pytest.raises(rocmforge.ModelBusy, match="held by process") as caught:
            rf.unload("m")
        assert caught.value.state == "resident" and caught.value.leases[0]["model"] == "m"
    broken = folder / "broken.gguf"
    broken.write_bytes(small.read_bytes()[:100])
    with pytest.raises(rocmforge.InvalidModel) as caught:
        rf.load(broken)
    assert caught.value.offset >= 0 and caught.value.reason in str(caught.value)
    with pytest.raises(rocmforge.DeviceNotFound, match="'hip:7'") as caught:
        rf.load(small, device="hip:7", name="n")
    assert caught.value.reason is None
    with pytest.raises(rocmforge.DeviceNotFound, match="'gpu', host memory has no GPU") as caught:
        rf.load(small, device="host", dequant="gpu", name="n")
    with pytest.raises(rocmforge.InvalidParameter, match="letters, digits") as caught:
        rf.load(small, name="a/b")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(rocmforge.MethodNotFound, match="Nothing"):
        rf.call("Nothing")
    with pytest.raises(rocmforge.NameInUse):
        rf.load(folder_copy(small, folder), name="m")
    for error in (FileNotFoundError, rocmforge.Error):
        with pytest.raises(error):
            rf.load(folder / "none.gguf") if error is FileNotFoundError else rf.unload("x")
    with pytest.raises(ValueError, match="no regular file"):
        rf.load(folder)


def folder_copy(path, folder):
    copy = folder / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    return copy


def test_unknown_errors_and_missing_parameters():
    error = errors.from_wire("io.rocmforge.Newer", {"some": 1})
    assert type(error) is rocmforge.WireError and error.some == 1 and "io.rocmforge.Newer" in str(error)
    for name, kind in errors.BY_NAME.items():
        assert str(errors.from_wire(name, {})).startswith(kind.sentence)  # a daemon that says less


@pytest.mark.parametrize(
    "when, words",
    [("while-read", " while it was read"), ("since-loaded", " since the model was loaded"), ("later", ""), (None, "")],
)
def test_when_a_file_changed(when, words):
    error = errors.from_wire("io.rocmforge.FileChanged", {"path": "/m.gguf", "when": when})
    assert str(error) == f"the file changed{words}: /m.gguf"


def test_errors_are_of_the_families_that_one_expects():
    assert issubclass(rocmforge.DeadlineExceeded, TimeoutError)
    assert issubclass(rocmforge.PermissionDenied, PermissionError)
    assert issubclass(rocmforge.LibraryNotFound, ImportError)


def test_errors_can_be_pickled():
    error = errors.from_wire("io.rocmforge.ModelBusy", {"name": "m", "state": "resident", "leases": []})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is rocmforge.ModelBusy and again.name == "m" and str(again) == str(error)
    busy = pickle.loads(pickle.dumps(rocmforge.InUse("m", 2)))
    assert busy.views == 2
    part = pickle.loads(pickle.dumps(rocmforge.IncompleteFiles("a", ["b", "c"])))
    assert (part.path, part.missing) == ("a", ["b", "c"]) and isinstance(part, ValueError)
