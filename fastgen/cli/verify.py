"""Check that an export samples as it was trained.

  fastgen verify out/student
  fastgen verify out/student --push OWNER/NAME
  fastgen verify out/student-lora --base my-finetune --stack style.safetensors=0.8

A fresh process that knows only Diffusers samples the export, and fastgen's own sampler draws from the same noise. For
each step count that the export declares, the two must agree in float32 to 1e-5 of the largest value. A GPU that has no
room for the whole pipeline is given a part of its weights at a time. Of a folder of several students each is verified.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ..command import add_stack, device, place
from ..errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen verify`."""
    parser.add_argument("folder", type=place, help="an export: a pipeline, a LoRA, or several students")
    parser.add_argument("--lora", action="store_true", help="refuse a folder that holds no LoRA")
    add_stack(parser)
    parser.add_argument(
        "--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 (default auto)"
    )
    parser.add_argument(
        "--push", type=hub_id, metavar="OWNER/NAME", help="upload it to this hub repository once it is verified"
    )


def hub_id(text: str) -> str:
    """A repository that the hub could have: OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise ArgumentTypeError(" ".join(str(error).split())) from error
    if text.count("/") != 1:
        raise ArgumentTypeError(f"{text!r} is not OWNER/NAME, such as my-account/my-student")
    return text


def run(args: Namespace) -> None:
    """Verify, say how well it agrees, and push if asked."""
    _check(args)
    from ..export.export import push
    from ..export.rebuild import exports, verify_folder, verify_lora
    from ..models.pipelines.folders import is_lora
    from ..sampling.call import steps_in_words

    for folder in exports(args.folder):
        if args.lora or args.base or args.stack or is_lora(folder):
            agreements = verify_lora(folder, args.base, stacked=args.stack, device=args.device)
        else:
            agreements = verify_folder(folder, device=args.device)
        for agreement in agreements:
            steps = steps_in_words(agreement.steps)
            print(f"{folder} at {steps}: difference {agreement.difference:.1e} of the largest value")
    if args.push:
        print(f"pushed to {push(args.folder, args.push)}")


def _check(args: Namespace) -> None:
    """What is known to fail before anything is loaded."""
    if not args.folder.is_dir():
        raise UserError(
            f"there is no export {str(args.folder)!r}: give the folder that a run left, such as OUT/student"
        )
    if args.push and _token() is None:
        raise UserError(f"pushing to {args.push} needs an account: log in with `hf auth login`, or set HF_TOKEN")


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
