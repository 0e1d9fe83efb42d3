"""Draw images from a student, or from any other stock Diffusers pipeline.

  fastgen sample out/student --num-images 64
  fastgen sample out/student --labels 0-9 --steps 2 --seed 100 --out digits
  fastgen sample owner/text-to-image --prompt "a red fox" --prompt "a blue jay" --num-images 8 --guidance 4
  fastgen sample owner/text-to-image --prompts prompts.txt --height 768 --width 1152 --negative-prompt blurry
  fastgen sample out/student-lora --base my-finetune --prompt "a red fox"
  fastgen sample out/student --prompts prompts.txt --dtype bfloat16 --weights fp8 --compile
  fastgen sample owner/text-to-video --prompt "a red fox runs" --num-images 1 --frames 33

A student is sampled as it was trained: its steps, size and guidance are in its notes (fastgen.json). An option that
this pipeline cannot use gives a warning and is not recorded as used. Image i has the seed SEED + i, whatever the batch
size.

DIR gets one lossless PNG per image (an animated one per video), grid.png with the first 100, and samples.json: the
arguments of the pipeline's call, the seed and the label or prompt of each image, and which images a safety checker
flagged, and so blackened.
"""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from pathlib import Path

from ..command import DTYPES, NUM, add_call, add_stack, device, finite, label_list, natural, place, positive, prompt
from ..errors import UserError, warn

ROUNDED = ("fp8", "int8", "nf4")
CALL = ("steps", "guidance", "negative_prompt", "height", "width", "frames")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen sample`."""
    _add_source(parser.add_argument_group("what to sample"))
    _add_sampling(parser.add_argument_group("how to sample"))
    _add_output(parser.add_argument_group("output"))


def _add_source(source: _ArgumentGroup) -> None:
    source.add_argument(
        "pipeline",
        nargs="?",
        help="a stock pipeline folder (model_index.json), the folder of a LoRA student or of several, or a hub id",
    )
    source.add_argument("--student", "--model", metavar="PIPELINE", help="the same, as an option")
    add_stack(source)
    source.add_argument(
        *NUM,
        dest="num",
        type=positive,
        metavar="N",
        help="number of images; labels and prompts are used in turn (default: one for each, or 16)",
    )
    source.add_argument("--seed", type=natural, default=0, metavar="S", help="image i has the seed S + i (default 0)")
    source.add_argument(
        "--labels",
        type=label_list,
        metavar="LIST",
        help="classes such as 0,1,2 or 0-9 (default: every real class in turn)",
    )
    source.add_argument("--prompt", action="append", type=prompt, metavar="TEXT", help="a prompt; may be repeated")
    source.add_argument(
        "--prompts", type=place, metavar="FILE", help="text file: line i is prompt i, an empty line the empty prompt"
    )


def _add_sampling(how: _ArgumentGroup) -> None:
    how.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="sampler steps (default: the first count that the student was trained for)",
    )
    how.add_argument("--guidance", type=finite, metavar="W", help="uncond + W (cond - uncond); 1 is none")
    add_call(how)
    how.add_argument("--batch-size", type=positive, default=16, metavar="B", help="images per call (default 16)")
    how.add_argument(
        "--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 (default auto)"
    )
    how.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default float32)")
    how.add_argument(
        "--compile", action="store_true", help="compile the denoiser's blocks: slower to start, then faster"
    )
    how.add_argument(
        "--weights", choices=ROUNDED, help="round the denoiser's weights to save memory; needs --dtype bfloat16"
    )


def _add_output(output: _ArgumentGroup) -> None:
    output.add_argument(
        "--out", type=place, default=Path("samples"), metavar="DIR", help="folder to write to (default: samples)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace files of the same name in DIR")


def run(args: Namespace) -> None:
    """Draw the images and say where they are."""
    pipeline = _pipeline(args)
    from ..sampling.call import Asked
    from ..sampling.faster import Faster
    from ..sampling.gallery import fill
    from ..sampling.order import Order

    asked = {name: getattr(args, name) for name in CALL}
    order = Order(
        pipeline=pipeline,
        out=args.out,
        base=args.base,
        stacked=args.stack,
        asked=Asked(**asked),
        num=args.num,
        seed=args.seed,
        labels=args.labels,
        prompts=_prompts(args),
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        overwrite=args.overwrite,
        faster=Faster(compile=args.compile, weights=args.weights),
    )
    record = fill(order, warn)
    if record.flagged:
        warn(
            f"{record.flagged} of {len(record.images)} images were blackened by the pipeline's own checker; their "
            f"`flags` are in {args.out / 'samples.json'}."
        )
    count = len(record.images)
    print(f"{count} image{'s' * (count > 1)}, a grid and the record are in {args.out}")


def _pipeline(args: Namespace) -> str:
    named = [name for name in (args.pipeline, args.student) if name is not None]
    if len(named) != 1:
        raise UserError(
            f"one pipeline is sampled at a time, and {len(named)} were named. Give a folder or hub id, as in "
            "`fastgen sample out/student` or `fastgen sample --student out/student`."
        )
    return str(named[0])


def _prompts(args: Namespace) -> tuple[str, ...] | None:
    from ..data.prompts import numbered_prompts

    listed = numbered_prompts(args.prompts) if args.prompts else ()
    return (*(args.prompt or ()), *listed) or None
