"""Conversations that have to go the same way for ever: tests/golden/*.json.

A transcript is a list of steps on one connection: "call" is a request and "reply" what comes back, in order; "replies"
with `more`. In a reply "$int", "$number", "$string" and "$any" stand for any value of that kind; a list has to have the
same length; an object may have fields that the transcript does not know, for that is how the interface grows, but must
have all that it knows. $MODEL is the path of the model that make_model.py makes of seed 1. $lease is the last lease, $token the last token.

Transcripts are kept as they are, and only added to: clients that were built against them are out there.
"""
import json

import pytest
from harness import ROOT

TRANSCRIPTS = sorted((ROOT / "tests" / "golden").glob("*.json"))
KINDS = {"$int": int, "$number": (int, float), "$string": str, "$any": object}


def fill_in(value, variables):
    if isinstance(value, dict):
        return {key: fill_in(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_in(item, variables) for item in value]
    return variables.get(value, value) if isinstance(value, str) else value


def match(expected, seen, where="reply"):
    if isinstance(expected, str) and expected in KINDS:
        assert isinstance(seen, KINDS[expected]) and (expected == "$any" or not isinstance(seen, bool)), (where, seen)
    elif isinstance(expected, dict):
        assert isinstance(seen, dict), (where, seen)
        for key, value in expected.items():
            assert key in seen, f"{where}: no {key} in {seen}"
            match(value, seen[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(seen, list) and len(seen) == len(expected), (where, seen)
        for i, (a, b) in enumerate(zip(expected, seen)):
            match(a, b, f"{where}[{i}]")
    else:
        assert type(expected) is type(seen) and expected == seen, (where, seen)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(client, small_model, path):
    variables = {"$MODEL": str(small_model)}
    for step in json.loads(path.read_text(encoding="utf-8"))["steps"]:
        client.send_raw(json.dumps(fill_in(step["call"], variables)).encode() + b"\0")
        replies = step.get("replies", [step.get("reply")])
        for expected in replies:
            seen = client.receive()
            match(fill_in(expected, variables), seen)
            for name in ("lease", "token"):
                value = seen.get("parameters", {}).get(name)
                if value is not None:
                    variables["$" + name] = value


def test_there_are_some():
    assert TRANSCRIPTS
