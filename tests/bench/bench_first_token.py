#!/usr/bin/env python3
"""What it takes from a resident model to its first token with transformers, beside imports: CPU time of one thread's
process, and by the clock. Several runs, each in a process of its own; the least and the median are told. Then what the
tokenizer takes that transformers has, which encode() and decode() do without.

    ROCMFORGE_SOCKET=... ROCMFORGE_LIBRARY=BUILD bench_first_token.py MODEL.gguf [RUNS]

Modules that a first run has imported are imported before the clock starts. Needs torch and transformers.
"""
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "client" / "python" / "src"
PROMPT = "The capital of France is"


def child(name, modules):
    """One run. Prints the steps' times and the modules that are there at its end."""
    import torch

    import rocmforge.transformers

    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    steps, marks = {}, (time.process_time(), time.perf_counter())

    def step(what):
        nonlocal marks
        now = (time.process_time(), time.perf_counter())
        steps[what] = [b - a for a, b in zip(marks, now)]
        marks = now

    model = rocmforge.attach(name)
    step("attaching")
    architecture = model.metadata()["general.architecture"]
    step("metadata, with the vocabulary")
    resident = build(model, step)
    model.close(force=True)
    step("the parameters")
    ids = torch.tensor([resident.encode(PROMPT)])
    step("the prompt's tokens")
    with torch.no_grad():
        token = int(resident.model(input_ids=ids, logits_to_keep=1).logits[0, -1].argmax())  # as generate() does
    step("the first token")
    text = resident.decode([token])
    step("its text")
    steps["all of these"] = [sum(taken[i] for taken in steps.values()) for i in (0, 1)]
    marks = (time.process_time(), time.perf_counter())
    find = rocmforge.transformers.recipes(architecture)
    assert all(find(parameter) for parameter, _ in resident.model.named_parameters())
    step("again: the map of the parameters' names")
    tokenizer = resident.tokenizer
    step("besides: the whole tokenizer")
    assert tokenizer(PROMPT).input_ids == ids[0].tolist()
    print(json.dumps({"steps": steps, "text": text, "share": resident.report.share, "modules": sorted(sys.modules)}))


def build(model, step):
    """from_resident(), which is told of where the construction of transformers' model ends."""
    from rocmforge import transformers as ours

    construct = ours._construct

    def constructed(*arguments):
        made = construct(*arguments)
        step("configuration and modules of transformers")
        return made

    ours._construct = constructed
    return ours.from_resident(model)


def run(name, modules):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", name]
    done = subprocess.run(command, input=json.dumps(modules), env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.load(sys.stdin))
        return
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.path.insert(0, str(SOURCE))
    import rocmforge

    name = rocmforge.load(sys.argv[1], form="f32")["model"]["name"]
    modules = run(name, [])["modules"]
    runs = [run(name, modules) for _ in range(int(sys.argv[2]) if len(sys.argv) == 3 else 5)]
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    print(f"{len(runs)} runs{'':36} CPU: least  median    clock: least  median")
    for what in runs[0]["steps"]:
        cpu, clock = ([1e3 * one["steps"][what][i] for one in runs] for i in (0, 1))
        print(f"{what:42}{min(cpu):10.0f} {statistics.median(cpu):7.0f}    {min(clock):12.0f} {statistics.median(clock):7.0f} ms")
    print(f"the prompt and its next token: {PROMPT + runs[0]['text']!r}; {100 * runs[0]['share']:.2f} % of the bytes are views")


if __name__ == "__main__":
    main()
