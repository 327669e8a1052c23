"""Metrics: what Prometheus reads, in its own format, and who sees what in it."""
import json
import re
import shutil
import subprocess

import pytest
from harness import ROOT, TIMEOUT, USER, client_of, load_fd, sparse_model, wait_until, wire_error
from rfctl_rig import DONE, NO_DAEMON, program, rfctl

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
LISTED = dict(re.findall(r"^\| `(rocmforge_\w+)` \| (\w+) \|", PAGE, re.M))


def values(daemon):
    """{(name, labels): value} of the text."""
    found = {}
    for line in daemon.rfctl("metrics").stdout.splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
        key = (name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels or ""))))
        assert key not in found, line
        found[key] = float(value)
    return found


def value(daemon, name, **labels):
    return values(daemon).get((name, tuple(sorted(labels.items()))))


def http(daemon, request):
    """What `rfctl metrics --http` answers: status, headers, body."""
    done = subprocess.run(
        [program(), "--socket", str(daemon.socket), "metrics", "--http"],
        input=request, capture_output=True, timeout=TIMEOUT, check=False,
    )
    if not done.stdout:
        return None, "", ""
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    return int(head.split()[1]), head, body


def test_promtool_has_nothing_to_say(daemon, small_model):
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    daemon.rfctl("load", small_model, "--name", "m")
    daemon.rfctl("unload", "nobody", check=False)
    text = daemon.rfctl("metrics").stdout
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_all_are_documented(client):
    """And those that are documented are there, with samples or without."""
    told = {metric["name"]: metric["type"] for metric in client.call("Metrics")["metrics"]}
    assert told == LISTED


def test_the_dashboard_asks_for_what_there_is():
    text = (ROOT / "docs" / "grafana.json").read_text(encoding="utf-8")
    assert json.loads(text)["panels"]
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"rocmforge_\w+", text)}
    assert asked and asked <= set(LISTED) | {"rocmforge_"}
    page = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\brocmforge_\w+", PAGE)}
    assert page <= set(LISTED)


def test_promtool_understands_the_queries(folder):
    """Those of the dashboard, and of the page."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    text = (ROOT / "docs" / "grafana.json").read_text(encoding="utf-8")
    asked = [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]
    asked += [line for line in PAGE.split("## What to look at")[1].split("```")[1].splitlines()
              if line and not line.startswith("#")]
    assert len(asked) > 15
    rules = [{"record": f"q{i}", "expr": expr.replace("$__rate_interval", "5m")} for i, expr in enumerate(asked)]
    (folder / "rules.yml").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}), encoding="utf-8")
    checked = subprocess.run(["promtool", "check", "rules", folder / "rules.yml"], capture_output=True, text=True,
                             check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_model(daemon, small_model):
    daemon.rfctl("load", small_model, "--name", "m")
    (model,) = daemon.models()
    labels = {"model": "m", "id": str(model["id"]), "device": "host"}
    assert value(daemon, "rocmforge_model_memory_bytes", **labels, form="auto", state="resident") == model["bytes"]
    assert value(daemon, "rocmforge_device_memory_models_bytes", device="host") == daemon.used()
    assert value(daemon, "rocmforge_model_leases", **labels) == 0
    with daemon.client() as client:
        client.call("Attach", name="m")
        assert value(daemon, "rocmforge_model_leases", **labels) == 1


def test_loads_are_counted(daemon, small_model, folder):
    daemon.rfctl("load", small_model, "--name", "m")
    daemon.rfctl("load", small_model, "--name", "m")
    broken = folder / "broken.gguf"
    broken.write_text("this is no model, but long enough to be one")
    daemon.rfctl("load", broken, check=False)
    seen = values(daemon)
    for outcome, n in {"loaded": 1, "joined": 1, "failed": 1, "cancelled": 0, "restored": 0}.items():
        assert seen["rocmforge_loads_total", (("outcome", outcome),)] == n, outcome
        assert seen["rocmforge_load_duration_seconds_count", (("outcome", outcome),)] == n
        buckets = [v for (name, labels), v in seen.items()
                   if name == "rocmforge_load_duration_seconds_bucket" and dict(labels)["outcome"] == outcome]
        assert buckets == sorted(buckets) and buckets[-1] == n
    assert 0 < seen["rocmforge_load_read_bytes_total", (("outcome", "loaded"),)] <= small_model.stat().st_size
    assert seen["rocmforge_load_duration_seconds_sum", (("outcome", "loaded"),)] > 0


def test_cancelled_load_is_counted(slow_daemon, slow_model):
    with slow_daemon.client() as client, slow_daemon.client() as other:
        client.send("Load", {"path": str(slow_model), "name": "slow"}, more=True)
        client.reply()
        other.call("Cancel", name="slow")
    assert value(slow_daemon, "rocmforge_loads_total", outcome="cancelled") == 1


def test_jobs_that_wait_are_counted(start, gate, gated_model):
    """A gate holds the only worker: the other parts of the file, and a second load, wait for it."""
    gate.close()
    daemon = start("--workers", "1", env=gate.env)
    assert value(daemon, "rocmforge_jobs_queued") == 0
    with daemon.client() as client:
        client.send("Load", {"path": str(gated_model), "name": "m"})
        wait_until(lambda: value(daemon, "rocmforge_jobs_queued") > 0)
        assert value(daemon, "rocmforge_loads_running") == 1
        gate.open()
        client.reply()
    wait_until(lambda: value(daemon, "rocmforge_jobs_queued") == 0)


def test_errors_are_counted(daemon):
    assert value(daemon, "rocmforge_errors_total", error="io.rocmforge.ModelNotFound") is None
    for _ in range(3):
        daemon.rfctl("pin", "nobody", check=False)
    assert value(daemon, "rocmforge_errors_total", error="io.rocmforge.ModelNotFound") == 3
    with daemon.client() as client:
        client.send("Pin", {"name": "nobody"}, oneway=True)
        client.call("List")
    assert value(daemon, "rocmforge_errors_total", error="io.rocmforge.ModelNotFound") == 4


def test_refusals_are_counted(start_for_all, small_model):
    daemon = start_for_all("--user-leases", "1")
    with client_of(daemon, USER) as user:
        load_fd(user, small_model, name="m")
        user.call("Attach", name="m")
        with wire_error("LimitExceeded"):
            user.call("Attach", name="m")
    assert value(daemon, "rocmforge_refusals_total", limit="user-leases") == 1
    assert value(daemon, "rocmforge_errors_total", error="io.rocmforge.LimitExceeded") == 1


def test_evictions_are_counted(start, folder):
    daemon = start("--budget", "8Mi")
    for name in ("first", "second"):
        daemon.rfctl("load", sparse_model(folder / f"{name}.gguf", 6 << 20), "--as", "native")
    assert value(daemon, "rocmforge_evictions_total") == 1
    assert value(daemon, "rocmforge_evicted_bytes_total") == 6 << 20


def test_private_names_are_not_told(start_for_all, small_model):
    daemon = start_for_all()
    with client_of(daemon, USER) as owner, client_of(daemon, USER + 1) as stranger:
        load_fd(owner, small_model, name="secret", private=True)
        assert '"secret"' in json.dumps(owner.call("Metrics"))
        told = stranger.call("Metrics")
        assert "secret" not in json.dumps(told)
        (used,) = [m for m in told["metrics"] if m["name"] == "rocmforge_device_memory_models_bytes"]
        assert used["samples"][0]["value"] > 0  # sizes are not secret


def test_http(daemon, small_model):
    daemon.rfctl("load", small_model, "--name", "m")
    status, head, body = http(daemon, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == 200 and 'model="m"' in body
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    assert f"Content-Length: {len(body)}\r\n" in head
    status, head, body = http(daemon, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert (status, body) == (200, "")


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics?name=m HTTP/1.1\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\0\xff\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n", 408),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\n\r\n", 404),
        (b"", None),
    ],
)
def test_http_request(daemon, request_, status):
    assert http(daemon, request_)[0] == status


def test_http_without_a_daemon(folder):
    done = rfctl("--socket", folder / "none", "metrics", "--http", input="GET /metrics HTTP/1.1\r\n\r\n")
    assert done.returncode == NO_DAEMON and done.stdout.startswith("HTTP/1.1 503 ")
    assert "no daemon" in done.stderr


def test_json(daemon):
    reply = json.loads(daemon.rfctl("--json", "metrics").stdout)
    assert {metric["name"] for metric in reply["metrics"]} == set(LISTED)
    assert daemon.rfctl("metrics").returncode == DONE
