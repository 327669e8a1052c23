"""Models that are split into several files."""
import contextlib
import json
import os
import struct

import make_model
import pytest
from harness import names, wait_until, wire_error
from split_model import split_tensors, write_shard, write_split


def check_split(client, name, paths):
    """Every tensor's bytes are those of the shard that it stands in."""
    reply = client.call("Attach", name=name)
    assert [tensor["name"] for tensor in reply["tensors"]] == [f"blk.{i}.ffn_up.weight" for i in range(7)]
    fd = client.fds[reply["fd"]]
    for path, tensors in ((paths[1], reply["tensors"][:3]), (paths[2], reply["tensors"][3:])):
        data = path.read_bytes()
        for tensor in tensors:
            bytes_ = os.pread(fd, tensor["size"], tensor["offset"])
            assert len(bytes_) == tensor["size"] and data.count(bytes_) == 1
    client.call("Detach", lease=reply["lease"])


def test_split_by_path(daemon, split):
    paths = split()
    with daemon.client() as client:
        model = client.call("Load", path=str(paths[0]))["model"]
        assert model["size"] == sum(path.stat().st_size for path in paths)
        assert model["tensors"] == 7
        check_split(client, model["name"], paths)
        assert client.call("Verify", name=model["name"])["mismatches"] == []
        assert client.call("Plan", path=str(paths[0]))["model"]["id"] == model["id"]


def test_split_by_descriptors(daemon, split):
    paths = split()
    with daemon.client() as client, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(open(path, "rb")).fileno() for path in paths]
        first = client.call("Load", fds=fds, name="m")["model"]
        assert first["tensors"] == 7
        check_split(client, "m", paths)
        assert client.call("Load", path=str(paths[0]))["model"]["name"] == "m", "the same files, the same model"
        with wire_error("InvalidModel") as error:
            client.call("Load", fds=fds[:2], name="n")
        assert "3 files" in error["reason"]
        for order in ((0, 2, 1), (2, 1, 0)):
            again = client.call("Load", fds=[fds[i] for i in order], name="m")["model"]
            assert (again["name"], again["id"]) == ("m", first["id"]), "the same files in another order"
        with wire_error("InvalidModel") as error:
            client.call("Load", fds=[fds[0], fds[1], fds[1]], name="wrong")
        assert "as file 2 does" in error["reason"]
        with wire_error("InvalidModel") as error:
            client.call("Load", fds=fds[:1], name="wrong")
        assert "all are needed" in error["reason"]
        assert names(daemon) == ["m"]


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (2, 1, 0)])
def test_the_same_files_in_another_order(daemon, split, touched, order):
    paths = split()
    with daemon.client() as client, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(open(path, "rb")).fileno() for path in paths]
        first = client.call("Load", fds=fds, name="m")["model"]
        for path in paths if touched else ():
            os.utime(path, (1, 1))
        plan = client.call("Plan", fds=[fds[i] for i in order], name="m")
        assert plan["error"] is None and plan["model"]["id"] == first["id"]
        assert not daemon.models()[0]["changed"]
        assert client.call("Load", fds=[fds[i] for i in order], name="m")["model"]["id"] == first["id"]
        assert [(m["id"], m["changed"]) for m in daemon.models()] == [(first["id"], False)]
        assert client.call("Verify", name="m")["mismatches"] == []
        check_split(client, "m", paths)
        assert client.call("Load", fds=fds, name="m")["model"]["id"] == first["id"]


@pytest.mark.parametrize(
    "change",
    [
        {2: {"number": 1}},
        {0: {"count": 2}},
        {0: {"total": 8}},
        {0: {"keys": ("no", "count")}},
        {1: {"keys": ("count", "tensors.count")}},
        {0: {"keys": ("count", "tensors.count")}},
        {2: {"tensors": split_tensors(4)}},
        {0: {"keys": ()}},
    ],
    ids=["number", "count", "total", "no-total", "no-number", "first-no-number", "names", "nothing"],
)
def test_split_that_does_not_agree(daemon, split, change):
    paths = split(lambda number: change.get(number, {}))
    with daemon.client() as client:
        with wire_error("InvalidModel"):
            client.call("Load", path=str(paths[0]))
    assert names(daemon) == [] and daemon.used() == 0


def test_split_whose_later_files_do_not_count(daemon, split):
    """Loaders go by the first file's count."""
    paths = split(lambda number: {"keys": ("no",)} if number else {})
    with daemon.client() as client:
        client.call("Load", path=str(paths[0]), name="m")
        check_split(client, "m", paths)


def test_split_from_a_later_file(daemon, split):
    paths = split()
    with daemon.client() as client, wire_error("InvalidModel") as error:
        client.call("Load", path=str(paths[1]))
    assert "first" in error["reason"]


def test_split_with_a_file_missing(daemon, split):
    paths = split()
    before = daemon.settled_fds()
    paths[2].unlink()
    with daemon.client() as client, wire_error("FileError") as error:
        client.call("Load", path=str(paths[0]))
    assert error["call"] == "open"
    wait_until(lambda: daemon.fds() == before)


@pytest.mark.parametrize("counts", [True, False])
def test_split_of_files_that_are_too_few(daemon, split, counts):
    """The sentence has what the file says, and how many files are given."""
    paths = split(lambda number: {} if counts or number == 0 else {"keys": ("no",)})
    for command in ("load", "plan", "inspect"):
        failed = daemon.rfctl(command, paths[2], paths[0], check=False)
        told = "file 1 says that it is number 3 of 3, but 2 files are given"
        assert failed.returncode == 1 and (told if counts else told.replace(" of 3", "")) in failed.stderr


@pytest.mark.parametrize("number", [False, True])
def test_a_count_of_files_that_is_a_text(daemon, folder, number):
    """Refused by all three."""
    text = make_model.string("split.count") + struct.pack("<I", 8) + make_model.string("2")
    first = make_model.string("split.no") + struct.pack("<IH", 2, 0) if number else b""
    tensor = make_model.string("a") + struct.pack("<IQIQ", 1, 8, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1 + number) + first + text + tensor
    path = folder / "m.gguf"
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(4096))
    for command in ("load", "plan", "inspect"):
        assert daemon.rfctl(command, path, check=False).returncode == 1, command


def test_split_in_any_order(daemon, split):
    """Each file says which one it is."""
    paths = split()
    with daemon.client() as client, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(open(paths[i], "rb")).fileno() for i in (2, 0, 1)]
        assert client.call("Load", fds=fds, name="m")["model"]["tensors"] == 7
        check_split(client, "m", paths)
        assert client.call("Verify", name="m")["mismatches"] == []
        assert client.call("Load", path=str(paths[0]), name="n")["model"]["name"] == "m"


NAMES = ["m-{:05}-of-{:05}.GGUF", "m-{:06}-of-{:06}.gguf", "m-{:03}-of-{:03}.gguf", "m-{}-of-{}", "sha256-{}f{}a0"]


@pytest.mark.parametrize("how", ["path", "rfctl"])
@pytest.mark.parametrize("form", NAMES)
def test_split_by_other_names(daemon, split, how, form):
    """Their names only help to find them: with those of a store of digests, they are found by what they say."""
    paths = [path.rename(path.with_name(form.format(i + 1, 3))) for i, path in enumerate(split())]
    with daemon.client() as client:
        if how == "path":
            client.call("Load", path=str(paths[0]), name="m")
        else:
            daemon.rfctl("load", paths[0], "--name", "m")
        check_split(client, "m", paths)


@pytest.mark.parametrize("how", ["path", "rfctl"])
def test_split_by_a_link_of_another_name(daemon, split, folder, how):
    paths = split()
    link = folder / "links" / "friendly.gguf"
    link.parent.mkdir()
    link.symlink_to(paths[0])
    with daemon.client() as client:
        if how == "path":
            name = client.call("Load", path=str(link))["model"]["name"]
        else:
            daemon.rfctl("load", link)
            (name,) = names(daemon)
            assert name == "friendly"
        check_split(client, name, paths)


def test_split_of_files_that_are_all_named(daemon, split, folder):
    """Where nothing tells what belongs together, whoever asks does."""
    paths = split()
    for i, path in enumerate(paths):
        (folder / f"dir{i}").mkdir()
        paths[i] = path.rename(folder / f"dir{i}" / f"part{i}.bin")
    failed = daemon.rfctl("load", paths[0], "--name", "m", check=False)
    assert failed.returncode == 1 and "the other files of its model are not there" in failed.stderr
    planned = daemon.rfctl("plan", paths[2], paths[0], paths[1]).stdout
    assert "7 tensors" in planned
    daemon.rfctl("load", paths[2], paths[0], paths[1], "--name", "m")
    with daemon.client() as client:
        check_split(client, "m", paths)
    failed = daemon.rfctl("load", paths[0], paths[1], "--name", "n", check=False)
    assert failed.returncode == 1 and "3 files, not 2" in failed.stderr


def digests(paths, prefix):
    """Gives the files names that tell nothing. Returns the paths in the old order."""
    return [path.rename(path.with_name(f"sha256-{prefix}{len(paths) - i}")) for i, path in enumerate(paths)]


def two_quantisations(folder, keys=lambda number, quant: {}):
    """Two models in one folder that say the same of their places: as many files, and as many tensors of the same names.
    The files of one end at other tensors than those of the other."""
    types = make_model.load_types()
    models = []
    for quant, cuts, form in ((8, (1, 3), "q8_0"), (4, (2, 5), "q4_0")):
        tensors = [make_model.Tensor(f"blk.{i}.ffn_up.weight", types[form], (256, 64 + i)) for i in range(7)]
        shares = [tensors[: cuts[0]], tensors[cuts[0] : cuts[1]], tensors[cuts[1] :]]
        paths = [folder / f"q{quant}-{i}" for i in range(3)]
        for i, path in enumerate(paths):
            write_shard(path, i, 3, 7, shares[i], 10 * quant + i, extra=keys(i, quant))
        models.append(digests(paths, quant))
    return models


def test_split_of_two_quantisations_in_one_folder(daemon, start, folder):
    """The names of the tensors tell which files belong together: none stands in two, and the first file says how many
    there are."""
    place = folder / "blobs"
    place.mkdir()
    models = two_quantisations(place)
    for quant, paths in zip((8, 4), models):
        told = json.loads(daemon.rfctl("--json", "inspect", paths[2]).stdout)
        assert (told["file"], told["whole"], len(told["tensors"])) == (3, True, 7)
        assert "7 tensors" in daemon.rfctl("plan", paths[0]).stdout
        daemon.rfctl("load", paths[0], "--name", f"q{quant}", "--as", "native")
        with daemon.client() as client:
            assert client.call("Load", path=str(paths[0]), name="again", form="native")["model"]["name"] == f"q{quant}"
            assert {t["type"] for t in client.call("Show", name=f"q{quant}")["tensors"]} == {f"q{quant}_0"}
            client.call("Unload", name="again")
    daemon.stop()
    preloading = start("--preload", str(place))
    wait_until(lambda: [m["tensors"] for m in preloading.models() if m["state"] == "resident"] == [7, 7])


def test_split_of_two_models_whose_metadata_tells_them_apart(daemon, split, folder):
    """Writers that put all metadata into every file: it tells what belongs together even if the tensors have the same
    names in the same files."""
    models = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        extra = {"extra": {"general.name": name, "split.writer": name * 3}}
        paths = write_split(folder / name, lambda number, seed=name: {**extra, "seed": ord(seed) + number})
        models.append([path.rename(folder / path.name) for path in digests(paths, name)])
    for name, paths in zip("ab", models):
        daemon.rfctl("load", paths[0], "--name", name)
        with daemon.client() as client:
            check_split(client, name, paths)


def test_split_of_two_models_that_cannot_be_told_apart(daemon, split, folder, start):
    """Files that say the same of themselves: it is not guessed which belong together, and the error names them."""
    paths, copies = split(), []
    store = folder / "store"
    store.mkdir()
    for i, path in enumerate(paths):
        copies.append(store / f"copy{i}")
        copies[i].write_bytes(path.read_bytes())
        paths[i] = path.rename(store / f"blob{i}")
    for command in ("load", "plan"):
        failed = daemon.rfctl(command, paths[0], check=False)
        assert failed.returncode == 1 and "say that they are the same one" in failed.stderr
        assert "name all its files" in failed.stderr
        assert any(str(paths[i]) in failed.stderr and str(copies[i]) in failed.stderr for i in (1, 2))
    for method in ("Load", "Plan"):
        with daemon.client() as client, wire_error("AmbiguousFiles") as error:
            client.call(method, path=str(paths[0]))
        assert error["path"] == str(paths[0])
        assert error["files"] in [sorted([str(paths[i]), str(copies[i])]) for i in (1, 2)]
    told = json.loads(daemon.rfctl("--json", "inspect", paths[0]).stdout)
    assert (told["file"], told["files"], told["whole"]) == (1, 3, False)
    assert told["same"] in [sorted([str(paths[i]), str(copies[i])]) for i in (1, 2)]
    shown = daemon.rfctl("inspect", paths[0]).stdout
    assert "several files may be the same other one" in shown and "not here" not in shown
    daemon.rfctl("load", *paths, "--name", "m")
    with daemon.client() as client:
        check_split(client, "m", paths)
    daemon.stop()
    preloading = start("--preload", str(store))
    wait_until(lambda: preloading.log.count("skipped: several files may be the same one of this split model") == 2)


def test_split_whose_name_another_file_has(daemon, split, folder):
    """A file of another model under the expected name does not hide the right one, which has another name."""
    paths = split()
    right = paths[1].rename(folder / "right.bin")
    types = make_model.load_types()
    for other in (
        lambda: write_shard(paths[1], 1, 3, 9, [make_model.Tensor("other", types["f32"], (8,))] * 1, 5),
        lambda: make_model.write_model(paths[1], split_tensors(3), make_model.metadata(1, 256, 256, 4, 100), 6),
        lambda: paths[1].write_bytes(b"no model"),
        lambda: write_shard(paths[1], 1, 3, 7, split_tensors(4), 5),
    ):
        other()
        assert json.loads(daemon.rfctl("--json", "inspect", paths[0]).stdout)["whole"]
        daemon.rfctl("load", paths[0], "--name", "m")
        with daemon.client() as client:
            check_split(client, "m", [paths[0], right, paths[2]])
            assert client.call("Load", path=str(paths[0]), name="m")["model"]["name"] == "m"
            client.call("Unload", name="m")
    right.unlink()
    with daemon.client() as client, wire_error("InvalidModel"):
        client.call("Load", path=str(paths[0]))
    failed = daemon.rfctl("load", paths[0], check=False)
    assert failed.returncode == 1 and "not a valid model" in failed.stderr


@pytest.mark.parametrize("how", ["path", "rfctl"])
def test_split_by_a_link_to_a_link(daemon, split, folder, how):
    """As in a cache of downloads: a link leads to a link whose name tells, and that one to a digest."""
    paths = split()
    (folder / "links").mkdir()
    snapshot = folder / "snapshot"
    snapshot.mkdir()
    for i, path in enumerate(paths):  # each file in a folder of its own
        blobs = folder / f"blobs{i}"
        blobs.mkdir()
        (snapshot / path.name).symlink_to(path.rename(blobs / f"{i:064}"))
    link = folder / "links" / "friendly.gguf"
    link.symlink_to("../snapshot/" + paths[0].name)
    again = folder / "links" / "again.gguf"
    again.symlink_to("friendly.gguf")
    files = [folder / f"blobs{i}" / f"{i:064}" for i in range(3)]
    with daemon.client() as client:
        for path in (again, link, snapshot / paths[0].name):
            if how == "path":
                name = client.call("Load", path=str(path))["model"]["name"]
            else:
                daemon.rfctl("load", path)
                (name,) = names(daemon)
            assert name == path.name[: -len(".gguf")]
            check_split(client, name, files)
            client.call("Unload", name=name)
    assert json.loads(daemon.rfctl("--json", "inspect", again).stdout)["whole"]
    for path in snapshot.iterdir():  # links whose names tell nothing, to files in several folders
        path.rename(snapshot / ("x" + path.name[6:11]))
    daemon.rfctl("load", snapshot / "x00001", "--name", "m")
    with daemon.client() as client:
        check_split(client, "m", files)


def test_all_named_links_give_the_name_of_the_first(daemon, split, folder):
    paths = split()
    links = []
    for i, path in enumerate(paths):
        blob = path.rename(folder / f"{i:064}")
        links.append(folder / f"llama-{i}.gguf")
        links[-1].symlink_to(blob)
    daemon.rfctl("load", *links)
    assert names(daemon) == ["llama-0"]


def test_name_that_promises_more(daemon, small_model, folder):
    """A file that is a whole model is one, though its name says otherwise."""
    path = folder / "small-00001-of-00003.gguf"
    path.write_bytes(small_model.read_bytes())
    daemon.rfctl("load", path, "--name", "m")
    with daemon.client() as client:
        assert client.call("Load", path=str(path), name="n")["model"]["name"] == "m"


def many_files(folder, n):
    paths = []
    types = make_model.load_types()
    for number in range(n):
        paths.append(folder / f"m-{number + 1:05}-of-{n:05}.gguf")
        tensor = make_model.Tensor(f"t{number}", types["f32"], (8,))
        write_shard(paths[-1], number, n, n, [tensor], number)
    return paths


def check_many(daemon, client, name, paths):
    assert client.call("Show", name=name)["model"]["tensors"] == len(paths)
    for i in (0, len(paths) // 2, len(paths) - 1):
        dumped = daemon.rfctl("dump", name, f"t{i}", text=False).stdout
        assert len(dumped) == 32 and dumped in paths[i].read_bytes()


@pytest.mark.parametrize("n", [254, 600])
def test_more_files_than_a_message_carries(daemon, folder, n):
    paths = many_files(folder, n)
    before = daemon.settled_fds()
    with daemon.client() as client:
        assert "not split" not in daemon.rfctl("plan", paths[0]).stdout
        daemon.rfctl("load", paths[0], "--name", "m", "--as", "native")
        check_many(daemon, client, "m", paths)
        assert client.call("Load", path=str(paths[0]), name="m", form="native")["model"]["name"] == "m"
        assert client.call("Verify", name="m")["mismatches"] == []
        client.call("Unload", name="m")
    wait_until(lambda: daemon.fds() == before)
    told = json.loads(daemon.rfctl("--json", "inspect", paths[0]).stdout)
    assert (len(told["tensors"]), told["files"], told["whole"]) == (n, n, True)


def add_files(client, paths):
    with contextlib.ExitStack() as stack:
        return client.call("AddFiles", [stack.enter_context(open(path, "rb")).fileno() for path in paths])["files"]


def test_files_that_are_added(daemon, split):
    paths = split()
    before = daemon.settled_fds()
    with daemon.client() as client, open(paths[0], "rb") as first:
        assert add_files(client, paths[2:]) == 1
        assert add_files(client, paths[1:2]) == 2
        assert client.call("Plan", [first.fileno()], added=2)["tensors"] == 7
        with wire_error("org.varlink.service.InvalidParameter") as error:  # they were that call's
            client.call("Load", [first.fileno()], added=2)
        assert error == {"parameter": "added"}
        assert add_files(client, paths[1:]) == 2
        with wire_error("InvalidModel"):  # those that no call asks for are none of its business
            client.call("Load", [first.fileno()])
        with wire_error("org.varlink.service.InvalidParameter"):
            client.call("Load", [first.fileno()], added=2)
        for wrong in (1, 3, -1):
            add_files(client, paths[1:])
            with wire_error("org.varlink.service.InvalidParameter"):
                client.call("Load", [first.fileno()], added=wrong)
        add_files(client, paths[1:])
        client.call("Load", [first.fileno()], added=2, name="m")
        check_split(client, "m", paths)
        client.call("Unload", name="m")
        add_files(client, paths[1:])
    wait_until(lambda: daemon.fds() == before)  # they go with the connection


def test_files_that_are_too_many(daemon, small_model):
    before = daemon.settled_fds()
    with daemon.client() as client:
        for n in range(253, 4096, 253):
            assert add_files(client, [small_model] * 253) == n
        with wire_error("LimitExceeded") as error:
            add_files(client, [small_model] * 253)
        assert error == {"limit": "files", "value": 4096}
        assert add_files(client, [small_model]) == 4049
    wait_until(lambda: daemon.fds() == before)


def test_inspect_of_one_of_several(daemon, split):
    paths = split()
    for number in (1, 2, 3):
        told = json.loads(daemon.rfctl("--json", "inspect", paths[number - 1]).stdout)
        assert (told["file"], told["files"], told["whole"]) == (number, 3, True)
        assert len(told["tensors"]) == 7
        assert [tensor["file"] for tensor in told["tensors"]] == [2] * 3 + [3] * 4
        assert told["size"] == sum(path.stat().st_size for path in paths)
    assert "file 2 of 3: all are here" in daemon.rfctl("inspect", paths[1]).stdout
    together = json.loads(daemon.rfctl("--json", "inspect", *reversed(paths)).stdout)
    assert len(together["tensors"]) == 7 and together["whole"]
    paths[0].unlink()
    told = json.loads(daemon.rfctl("--json", "inspect", paths[1]).stdout)
    assert (told["file"], told["files"], told["whole"], len(told["tensors"])) == (2, 3, False, 3)
    check_missing(daemon, paths[1], 2, [paths[0]])
    paths[2].unlink()
    check_missing(daemon, paths[1], 2, [paths[0], paths[2]])
    alone = paths[1].rename(paths[1].with_name("digest"))
    assert "missing" not in json.loads(daemon.rfctl("--json", "inspect", alone).stdout)
    assert "file 2 of 3: not all are here; the numbers" in daemon.rfctl("inspect", alone).stdout


def check_missing(daemon, path, number, missing):
    """inspect says which files are not there, and no others."""
    assert json.loads(daemon.rfctl("--json", "inspect", path).stdout)["missing"] == [str(one) for one in missing]
    lines = daemon.rfctl("inspect", path).stdout.splitlines()
    assert lines[1].startswith(f"file {number} of 3: not all are here; the numbers are those of this file. Missing:")
    assert lines[2 : 3 + len(missing)] == [*(f"  {one}" for one in missing), lines[2 + len(missing)]]
    assert lines[2 + len(missing)].startswith("architecture:")
