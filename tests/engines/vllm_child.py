"""One process of vLLM, for test_vllm.py. Reads a line of JSON from standard input and answers each with one:

    {"model": FOLDER, "options": {...}}      starts the engine: {"reports": [...], "seconds": ...}, a report for each rank
    {"generate": [PROMPT, ...]}              {"tokens": [[...], ...]}; a prompt is text, or a list of tokens
    {"memory": true}                         {"pss": BYTES, "rss": BYTES} of the mapping that is the daemon's memory, in this
                                             process
    {"reload": "files" or "parameters"}      {"refused": WHY or null}: gives the engine other weights while it runs
    {"weights": FOLDER, "options": {...}}    loads weights without an engine: {"report": {...}, "parameters": [NAME, ...],
                                             "image": what the model makes of an image, null if it takes none}
    {"outside": true}                        {"bytes": ...} that the loader would count as the weights' on a GPU
"""
import json
import os
import sys
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the model is in this process


def start(model, options):
    from vllm import LLM

    began = time.perf_counter()
    llm = LLM(model, **options)
    seconds = time.perf_counter() - began
    several = options.get("tensor_parallel_size", 1) > 1
    return llm, {"reports": llm.collective_rpc(report) if several else [report()], "seconds": seconds}


def report(_worker=None):
    """What became of the weights in this process. vLLM sends this function to its workers."""
    from rocmforge.vllm import reports

    told = [vars(one) for one in reports()]
    return told[-1] if told else None


def weights(model, options):
    """Of a model that takes images."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader

    config = EngineArgs(model=model, **options).create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{os.getcwd()}/ranks{os.getpid()}", 0, "gloo")
            initialize_model_parallel(1, 1)
        made = get_model_loader(config.load_config).load_model(vllm_config=config, model_config=config.model_config)
        image = None
        if config.model_config.multimodal_config.get_limit_per_prompt("image"):
            pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
            with torch.no_grad():
                image = torch.cat([one.flatten() for one in made.embed_multimodal(pixel_values=pixels)]).tolist()
    return {"report": report(), "parameters": [name for name, _ in made.named_parameters()], "image": image}


def generate(llm, prompts, tokens=32):
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    prompts = [{"prompt_token_ids": one} if isinstance(one, list) else one for one in prompts]
    done = llm.generate(prompts, sampling, use_tqdm=False)
    return {"tokens": [list(one.outputs[0].token_ids) for one in done]}


def memory():
    """Of the daemon's memory files that are mapped here."""
    sums = {"Pss": 0, "Rss": 0}
    ours = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
        for line in smaps:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                ours = "memfd:rocmforge" in line
            elif ours and words[0].rstrip(":") in sums:
                sums[words[0].rstrip(":")] += int(words[1]) * 1024
    return {"pss": sums["Pss"], "rss": sums["Rss"]}


def reload(llm, what):
    import torch

    given = {"weights_iterator": [("model.norm.weight", torch.zeros(256))], "is_checkpoint_format": False}
    try:
        llm.collective_rpc("reload_weights", kwargs=given if what == "parameters" else {})
    except RuntimeError as error:
        return {"refused": str(error)}
    return {"refused": None}


def outside(llm):
    import rocmforge
    from rocmforge.vllm._loader import RocmforgeLoader, _Load

    config = llm.llm_engine.vllm_config
    loader = RocmforgeLoader(config.load_config)
    assert loader.get_external_weight_memory(config) == 0  # this is a CPU
    with rocmforge.connect() as client, _Load(loader, client, config, config.model_config, "").outside() as resident:
        return {"bytes": resident.nbytes}


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is written to standard output belongs to the log
    llm = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "model" in asked:
            llm, answer = start(asked["model"], asked["options"])
        elif "weights" in asked:
            answer = weights(asked["weights"], asked["options"])
        elif "generate" in asked:
            answer = generate(llm, asked["generate"], asked.get("tokens", 32))
        elif "reload" in asked:
            answer = reload(llm, asked["reload"])
        elif "outside" in asked:
            answer = outside(llm)
        else:
            answer = memory()
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":  # vLLM's workers import this file, too
    main()
