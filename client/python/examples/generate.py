#!/usr/bin/env python3
"""Text by a model of transformers, in two processes that share one copy of the weights.

    generate.py MODEL.gguf [PROMPT]

Then the same by transformers' own loading, in a process of its own; --only leaves that out, which for a model of 270
million parameters takes a minute. If the daemon has a GPU, the weights are there.
"""
import json
import sys

from measure import in_processes_of_their_own, memory_together, timed, told

PROMPT = "The capital of France is"
NEW_TOKENS = 16


def answer(times, model, tokenizer, prompt):
    import torch

    ids = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.no_grad(), timed(times, "the first token"):
        model(**ids)
    used = memory_together()
    with timed(times, f"{NEW_TOKENS} tokens"):
        out = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return used, tokenizer.decode(out[0], skip_special_tokens=True)


def gpu_bytes(device):
    """Bytes of the GPU's memory that torch has taken for this process; 0 for the host."""
    import torch

    return 0 if device == "host" else torch.cuda.memory_allocated()


def with_daemon(name, device, prompt):
    times = {}
    with timed(times, "importing"):
        import transformers

        import rocmforge.transformers

        transformers.AutoModelForCausalLM  # is imported when it is first named
    start(device)
    with timed(times, "the model, and importing its class"):
        resident = rocmforge.transformers.from_resident(name)
    taken = gpu_bytes(device)
    with timed(times, "the tokenizer"):
        tokenizer = resident.tokenizer
    used, text = answer(times, resident.model, tokenizer, prompt)
    return times, used, text, taken, str(resident.report)


def start(device):
    """What torch does once for a GPU is not the model's time."""
    import torch

    if device != "host":
        torch.ones(1, device="cuda")


def without_daemon(path, device, prompt):
    from pathlib import Path

    import torch

    times = {}
    with timed(times, "importing"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, file = Path(path).parent, Path(path).name
    start(device)
    with timed(times, "the model"):
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        model = model.to("cpu" if device == "host" else "cuda")
    taken = gpu_bytes(device)
    with timed(times, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    used, text = answer(times, model, tokenizer, prompt)
    return times, used, text, taken, ""


def told_of_gpu(device, taken):
    if device != "host":
        print(f"  memory of the GPU that torch took for the model: {taken / 1e6:.0f} MB")


def main():
    if sys.argv[1:2] == ["--with"]:
        print(json.dumps(with_daemon(*sys.argv[2:])))
        return
    if sys.argv[1:2] == ["--without"]:
        print(json.dumps(without_daemon(*sys.argv[2:])))
        return
    arguments = [argument for argument in sys.argv[1:] if argument != "--only"]
    if not arguments:
        sys.exit(__doc__)
    path, prompt = arguments[0], " ".join(arguments[1:]) or PROMPT

    import rocmforge

    times = {}
    with timed(times, "loading it, if it is not there"):
        model = rocmforge.load_attach(path, form="f32", progress=True)
    device = model.device
    told(f"The daemon, on {device}", times)
    texts = []
    with model:  # so that it stays until both processes have attached
        results = in_processes_of_their_own(2, "--with", model.name, device, prompt)
    for number, (times, used, text, taken, report) in enumerate(results, 1):
        told(f"Process {number}", times, used)
        told_of_gpu(device, taken)
        texts.append(text)
    print(report)
    if "--only" not in sys.argv:
        [(times, used, text, taken, _)] = in_processes_of_their_own(1, "--without", path, device, prompt)
        told("Without the daemon", times, used)
        told_of_gpu(device, taken)
        texts.append(text)
    print(f"The same text: {len(set(texts)) == 1}")
    print(texts[0])


if __name__ == "__main__":
    main()
