"""A Varlink client that others wrote, the PyPI package varlink, can use the daemon from its interface alone."""
import pytest
import varlink


@pytest.fixture
def foreign(daemon):
    with varlink.Client(address=f"unix:{daemon.socket}") as client:
        with client.open("io.rocmforge") as connection:
            yield connection


def test_service(daemon):
    with varlink.Client(address=f"unix:{daemon.socket}") as client:
        info = client.open("org.varlink.service").GetInfo()
        assert set(info["interfaces"]) == {"io.rocmforge", "org.varlink.service"}
        assert info["product"]
        interface = client.get_interface("io.rocmforge")
        assert {"Load", "Attach", "Watch"} <= set(interface.members)


def test_load_list_unload(foreign, real_model):
    loaded = foreign.Load(path=str(real_model), name="real")
    assert loaded["model"]["state"] == "resident"
    assert loaded["phases"]["total"] > 0
    (model,) = foreign.List()["models"]
    assert model["name"] == "real"
    assert model["tensors"] > 20
    shown = foreign.Show("real")
    assert len(shown["tensors"]) == model["tensors"]
    assert any(entry["key"] == "general.architecture" for entry in shown["metadata"])
    foreign.Unload("real")
    assert foreign.List()["models"] == []


def test_load_with_more(foreign, real_model):
    replies = list(foreign.Load(path=str(real_model), form="f32", _more=True))
    for reply in replies[:-1]:
        assert reply["progress"]["done"] <= reply["progress"]["total"]
    assert replies[-1]["model"]["state"] == "resident"
    assert replies[-1].get("progress") is None


def test_error(foreign):
    with pytest.raises(varlink.VarlinkError) as failure:
        foreign.Show("nobody")
    assert failure.value.error() == "io.rocmforge.ModelNotFound"
    assert failure.value.parameters() == {"name": "nobody"}


def test_several_at_once(daemon, small_model):
    """Each connection has its own."""
    clients = [varlink.Client(address=f"unix:{daemon.socket}") for _ in range(10)]
    connections = [client.open("io.rocmforge") for client in clients]
    connections[0].Load(path=str(small_model), name="small")
    for connection in connections:
        assert connection.List()["models"][0]["name"] == "small"
        connection.close()
