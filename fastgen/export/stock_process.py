"""What someone without fastgen gets from an export. `verify` runs this file as a script in a process of its own.

The job, a JSON file named on the command line, says what to load and which calls to make. Of each call the answer,
a safetensors file, holds the first sample that the scheduler was given, the last one that it left, its timesteps, and
whether the pipeline hands its generator to the scheduler.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from inspect import signature
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from safetensors.torch import save_file

KEYS = ("start", "end", "timesteps", "handed")


def loaded(job: dict[str, Any]) -> Any:
    """The pipeline, with the LoRAs and the scheduler that its card names, if any."""
    said: dict[str, Any] = (
        {"dtype": torch.float32, "variant": job["variant"]} if job["loras"] else {}
    )  # of a base we did not save
    if job["device"].startswith("cuda") and job["whole"]:  # without a copy of all weights in main memory
        said["device_map"] = "cuda"
    pipe = diffusers.DiffusionPipeline.from_pretrained(job["pipeline"], use_safetensors=True, **said)
    for i, lora in enumerate(job["loras"]):
        into = {"load_into_transformer_2": True} if lora["second"] else {}
        pipe.load_lora_weights(lora["folder"], weight_name=lora["file"], adapter_name=f"lora{i}", **into)
    if job["loras"]:
        names = [f"lora{i}" for i in range(len(job["loras"]))]
        pipe.set_adapters(names, [lora["weight"] for lora in job["loras"]])
    if job["scheduler"]:
        kind = getattr(diffusers, job["scheduler"]["kind"])
        pipe.scheduler = kind.from_pretrained(job["scheduler"]["folder"])
    pipe.set_progress_bar_config(disable=True)
    if job["whole"]:
        return pipe.to(job["device"])
    pipe.enable_sequential_cpu_offload(device=job["device"])
    return pipe


def watched(pipe: Any, seed: int, arguments: dict[str, Any], heads: str | None) -> dict[str, torch.Tensor]:
    """One call from one seed, which also seeds the global generators; `heads` is a file of last layers of steps.

    A scheduler to which the pipeline hands no generator gets one of the seed: its noise would be the device's own.
    """
    step, samples, timesteps, handed = pipe.scheduler.step, [], [], []
    noise = {"generator": torch.Generator().manual_seed(seed)} if "generator" in signature(step).parameters else {}

    @wraps(step)  # pipelines look into its signature
    def watching(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        samples.append(sample.clone())
        timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))
        handed.append(kwargs.get("generator") is not None)
        stepped = step(model_output, timestep, sample, *args, **(kwargs if handed[-1] else {**kwargs, **noise}))
        samples.append((stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample).clone())
        return stepped

    pipe.scheduler.step = watching
    torch.manual_seed(seed)
    output_type = "latent" if "vae" in pipe.components else "pt"
    with changing(pipe, heads, arguments["num_inference_steps"]) as change:
        pipe(**arguments, **change, generator=torch.Generator().manual_seed(seed), output_type=output_type)
    del pipe.scheduler.step
    kept = {"start": samples[0].float().cpu().contiguous(), "end": samples[-1].float().cpu().contiguous()}
    return {**kept, "timesteps": torch.tensor(timesteps, dtype=torch.float64), "handed": torch.tensor(all(handed))}


@contextmanager
def changing(pipe: Any, file: str | None, steps: int) -> Iterator[dict[str, Any]]:
    """Within, the first step of a call has its own last layer, and with these arguments so have the others."""
    if file is None or steps == 1:
        yield {}
        return
    with safe_open(file, framework="pt") as opened:
        heads, (component, _, name) = opened.get_tensor(str(steps)), opened.metadata()["layer"].partition(".")
    layer = pipe.components[component].get_submodule(name)

    def change(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        layer.weight.data.copy_(heads[(step + 1) % steps])
        return kwargs

    own = layer.weight.detach().clone()
    layer.weight.data.copy_(heads[0])
    yield {"callback_on_step_end": change}
    layer.weight.data.copy_(own)


def main(job: dict[str, Any]) -> None:
    """Makes the calls of a job and writes their answer."""
    torch.backends.cudnn.allow_tf32 = False
    answer: dict[str, torch.Tensor] = {}
    with torch.cuda.device(job["device"]) if job["device"].startswith("cuda") else nullcontext():
        pipe = loaded(job)  # to Diffusers, "cuda" is the current one
        for call in job["calls"]:
            seen = watched(pipe, call["seed"], call["arguments"], job["heads"])
            answer |= {f"{call['name']}/{key}": value for key, value in seen.items()}
    save_file(answer, job["answer"])


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
    assert "fastgen" not in sys.modules, "this process should know only Diffusers"
