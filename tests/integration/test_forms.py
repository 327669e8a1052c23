"""Forms for some tensors, and what is the same model whatever it was asked for as."""
import json
import os
import threading

import make_model
import pytest
from harness import names, wait_until, wire_error
from make_model import Tensor

ALL = [{"match": "*", "form": "bf16"}]
NORMS = [{"match": "*norm*", "form": "f32"}]


@pytest.fixture(scope="module")
def types():
    return make_model.load_types()


def write(path, tensors, seed=5):
    make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 10), seed)
    return path


@pytest.fixture(scope="module")
def mixed(model_folder, types):
    """Norms and matrices, some of them quantised."""
    return write(
        model_folder / "mixed.gguf",
        [
            Tensor("token_embd.weight", types["q4_0"], (256, 32)),
            Tensor("blk.0.attn_norm.weight", types["f32"], (256,)),
            Tensor("blk.0.attn_q.weight", types["q8_0"], (256, 32)),
            Tensor("blk.0.attn_q.bias", types["f16"], (32,)),
            Tensor("blk.0.rope", types["f32"], (16, 4)),
            Tensor("output_norm.weight", types["q8_0"], (256,)),
        ],
    )


@pytest.fixture(scope="module")
def plain(model_folder, types):
    """Nothing quantised, nothing but f16 and a norm."""
    return write(
        model_folder / "plain.gguf",
        [Tensor("a.weight", types["f16"], (256, 64)), Tensor("a_norm.weight", types["f32"], (256,))],
    )


def forms_of(client, name):
    return [tensor["form"] for tensor in client.call("Show", name=name)["tensors"]]


@pytest.mark.parametrize(
    "form, rules, expected",
    [
        ("bf16", None, ["bf16", "f32", "bf16", "bf16", "bf16", "bf16"]),
        ("f16", [], ["f16", "f32", "f16", "f16", "f16", "f16"]),
        ("f32", None, ["f32"] * 6),
        ("auto", ALL, ["bf16"] * 6),
        ("bf16", NORMS, ["bf16", "f32", "bf16", "bf16", "bf16", "f32"]),
        ("native", NORMS + ALL, ["bf16"] * 6),
        ("native", ALL + NORMS, ["bf16", "f32", "bf16", "bf16", "bf16", "f32"]),
        ("native", [{"match": "blk.?.attn_[qk].*", "form": "auto"}], ["native", "f32", "f16", "f16", "f32", "native"]),
    ],
)
def test_forms_by_pattern(daemon, mixed, form, rules, expected):
    with daemon.client() as client:
        wanted = {"form": form} if rules is None else {"form": form, "forms": rules}
        plan = client.call("Plan", path=str(mixed), **wanted)
        model = client.call("Load", path=str(mixed), name="m", **wanted)["model"]
        assert forms_of(client, "m") == expected
        assert plan["bytes"] == model["bytes"]
        assert plan["form"] == model["form"] == form
        assert plan.get("forms") == model.get("forms") == (rules or None)
        assert client.call("Verify", name="m")["mismatches"] == []
        assert client.call("Plan", path=str(mixed), **wanted)["model"]["id"] == model["id"]


def test_norms_keep_their_bits(daemon, mixed):
    data = mixed.read_bytes()
    daemon.rfctl("load", mixed, "--name", "m", "--as", "bf16")
    dumped = daemon.rfctl("dump", "m", "blk.0.attn_norm.weight", text=False).stdout
    assert len(dumped) == 1024 and dumped in data


@pytest.mark.parametrize(
    "rules",
    [
        [{"match": "a"}], [{"match": "", "form": "f32"}], [{"match": "a", "form": "q4_0"}], ["a"], {"a": "f32"}, "a=f32",
        [{"match": "a", "form": "f32", "x": 1}], [{"match": "a", "form": "f32"}] * 65,
        [{"match": "a" * 256, "form": "f32"}], [{"match": "[", "form": "f32"}], [{"match": "a[]", "form": "f32"}],
        [{"match": "[a-\\]", "form": "f32"}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["Load", "Plan"])
def test_rules_that_are_none(client, mixed, method, rules):
    with wire_error("org.varlink.service.InvalidParameter") as error:
        client.call(method, path=str(mixed), forms=rules)
    assert error == {"parameter": "forms"}
    assert client.fds == []


def test_a_bracket_that_is_no_set(daemon, client, mixed):
    client.call("Plan", path=str(mixed), forms=[{"match": "\\[[]][!]]", "form": "f32"}])
    refused = daemon.rfctl("load", mixed, "--as", "[=f32", check=False)
    assert refused.returncode != 0 and "forms" in refused.stderr, refused.stderr


def test_patterns_that_take_too_long(client, folder, types):
    path = write(folder / "long.gguf", [Tensor("a" * 4000 + str(i), types["f32"], (1,)) for i in range(400)])
    rules = [{"match": "*a" * 120 + "b", "form": "f32"}] * 64
    for method in ("Load", "Plan"):
        client.call("Plan", path=str(path), forms=rules[:2])
        with wire_error("LimitExceeded") as error:
            client.call(method, path=str(path), forms=rules * 1)
        assert error["limit"] == "forms"


def test_on_the_command_line(daemon, mixed):
    load = ("load", mixed, "--name", "m")
    daemon.rfctl(*load, "--as", "bf16", "--as", "*norm*=f32", "--as", "*.bias=native")
    model = json.loads(daemon.rfctl("--json", "ps").stdout)["models"][0]
    assert model["forms"] == [*NORMS, {"match": "*.bias", "form": "native"}]
    assert "bf16+2" in daemon.rfctl("ps").stdout
    assert "as bf16 *norm*=f32 *.bias=native, 6 tensors" in daemon.rfctl("show", "m").stdout
    assert "as bf16 *norm*=f32," in daemon.rfctl("plan", mixed, "--as", "bf16", "--as", "*norm*=f32").stdout
    daemon.rfctl("unload", "m")
    daemon.rfctl(*load, "--as", "all=bf16")
    with daemon.client() as client:
        assert forms_of(client, "m") == ["bf16"] * 6
    assert "all=bf16" in daemon.rfctl("ps").stdout
    for wrong in ("=f32", "*norm*=", "*norm*=f64", "a=b", ""):
        result = daemon.rfctl(*load, "--as", wrong, check=False)
        assert result.returncode == 2, wrong
        assert "PATTERN=" in result.stderr


# --- not twice ---


def test_same_outcome_is_the_same_model(daemon, plain):
    """A file in which a form changes nothing is resident once, whatever was asked for."""
    with daemon.client() as client:
        first = client.call("Load", path=str(plain), name="first", form="auto")["model"]
        used = daemon.used()
        for form, rules in (("native", []), ("f16", []), ("f32", [{"match": "a.*", "form": "native"}]), ("auto", NORMS)):
            plan = client.call("Plan", path=str(plain), form=form, forms=rules)
            assert plan["model"]["id"] == first["id"] and plan["evicts"] == []
            joined = client.call("Load", path=str(plain), name="other", form=form, forms=rules)["model"]
            assert (joined["id"], joined["name"], joined["form"]) == (first["id"], "first", "auto")
        assert names(daemon) == ["first"] and daemon.used() == used
        other = client.call("Load", path=str(plain), name="bf16", form="bf16")["model"]
        assert other["id"] != first["id"]


def test_same_outcome_by_the_file_s_own_name(daemon, plain):
    """The name that nobody asked for is in use by the model that is joined, and in nobody's way."""
    daemon.rfctl("load", plain)
    daemon.rfctl("load", plain, "--as", "native")
    assert names(daemon) == ["plain"]
    with daemon.client() as client, wire_error("NameInUse"):
        client.call("Load", path=str(plain), form="f32")
    assert names(daemon) == ["plain"]


def test_other_outcome_is_another_model(daemon, mixed):
    with daemon.client() as client:
        ids = {
            client.call("Load", path=str(mixed), name=f"m{i}", form=form, forms=rules)["model"]["id"]
            for i, (form, rules) in enumerate([("auto", []), ("native", []), ("f16", []), ("f16", NORMS), ("auto", ALL)])
        }
    assert len(ids) == 5


def test_loads_at_once_in_other_words(daemon, folder, types):
    """All that come to the same become one, though none knows at first what the others come to."""
    path = write(folder / "once.gguf", [Tensor(f"blk.{i}.w", types["f16"], (4096, 512)) for i in range(4)])
    for _ in range(5):
        replies = []

        def load(i):
            form = ["auto", "native", "f16", "bf16"][i % 4]
            with daemon.client() as client:
                replies.append((form, client.call("Load", path=str(path), name=f"m{i}", form=form)["model"]["id"]))

        threads = [threading.Thread(target=load, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == 8
        assert len({id_ for form, id_ in replies if form == "bf16"}) == 1
        assert len({id_ for form, id_ in replies if form != "bf16"}) == 1
        assert len(daemon.models()) == 2
        with daemon.client() as client:
            for name in names(daemon):
                client.call("Unload", name=name)


def test_cancelled_while_another_waits(slow_daemon, large_model):
    """Who joined a load in other words goes down with it when it is cancelled, as everybody who waits for it."""
    with slow_daemon.client() as first, slow_daemon.client() as second, slow_daemon.client() as other:
        first.send("Load", {"path": str(large_model), "name": "first", "form": "auto"})
        wait_until(lambda: [m["state"] for m in slow_daemon.models()] == ["filling"])
        told = second.more("Load", path=str(large_model), name="second", form="native")
        assert next(told)["model"]["name"] == "first"
        other.call("Cancel", name="first")
        with wire_error("Cancelled"):
            for _ in told:
                pass
        with wire_error("Cancelled"):
            first.reply()
    assert names(slow_daemon) == []


def test_private_models_are_compared_too(daemon, plain):
    with daemon.client() as client:
        shared = client.call("Load", path=str(plain), name="shared", form="auto")["model"]
        own = client.call("Load", path=str(plain), name="own", form="native", private=True)["model"]
        assert own["id"] == shared["id"] and own["private"]
        again = client.call("Load", path=str(plain), name="again", form="auto", private=True)["model"]
        assert again["id"] == own["id"]
    assert os.path.exists(plain)
