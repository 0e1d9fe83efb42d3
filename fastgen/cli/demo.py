"""Try a student out in the browser, beside its teacher: choose prompt or class, steps and seed, and see the times.

  fastgen demo runs/digits/dmd2_1step/student
  fastgen demo out/student --teacher my-finetune --teacher-guidance 5 --dtype bfloat16

Needs Gradio: pip install 'fastgen[demo]'. The page is served on this machine only; to see it from another one, use
`ssh -L 7860:127.0.0.1:7860 HOST`. Times are of a pipeline's whole call; the first call of each also warms up.
"""

import os
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from ..command import DTYPES, device, finite, port, positive
from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..sampling.drawer import Drawer

HOST = "127.0.0.1"
LEAST = 320
"""Longer side in pixels below which pictures are magnified."""
NEAREST = 0  # of PIL, which is loaded later
MOST_SEED = 2**31 - 1


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen demo`."""
    parser.add_argument(
        "student",
        metavar="STUDENT",
        help="a stock pipeline folder, the folder of a LoRA student or of several, or a hub id",
    )
    parser.add_argument(
        "--teacher", metavar="PIPELINE", help="pipeline to compare with (default: its teacher, if it is found)"
    )
    parser.add_argument("--base", metavar="PIPELINE", help="pipeline that a LoRA is put on (default: its teacher)")
    parser.add_argument("--teacher-steps", type=positive, metavar="N", help="steps of the teacher (default: its own)")
    parser.add_argument(
        "--teacher-guidance", type=finite, metavar="W", help="guidance of the teacher (default: its own)"
    )
    parser.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default float32)")
    parser.add_argument("--port", type=port, default=7860, metavar="N", help="port on 127.0.0.1 (default 7860)")


def run(args: Namespace) -> None:
    """Serves the demo until it is stopped.

    Raises:
        UserError: Gradio is not installed, the port is taken, or there is no such pipeline.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError("fastgen demo needs Gradio, which is not installed: pip install 'fastgen[demo]'") from error
    from ..sampling.drawer import side_by_side

    drawers = side_by_side(args.student, args.teacher, base=args.base, device=args.device, dtype=args.dtype)
    page = build(gradio, drawers, teacher_steps=args.teacher_steps, teacher_guidance=args.teacher_guidance)
    try:
        page.launch(
            server_name=HOST,
            server_port=args.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError as error:
        raise UserError(f"port {args.port} of {HOST} cannot be listened on: give another with --port") from error
    print(f"{args.student} is at http://{HOST}:{args.port}/\nCtrl-C ends it", flush=True)
    try:
        page.block_thread()
    finally:
        page.close()


def build(gradio: Any, drawers: "list[Drawer]", *, teacher_steps: int | None, teacher_guidance: float | None) -> Any:
    """The page, as Gradio's blocks: the student's column first, then the teacher's where there is one."""
    from ..sampling.call import steps_in_words
    from ..sampling.drawer import MOST_STEPS, Wish

    student, teachers = drawers[0], drawers[1:]
    name = student.opened.path.rstrip("/")

    def drawn(asked: Any, steps: float, seed: float, many: float = 0) -> list[Any]:
        label = int(asked) if student.kind == "label" else None
        prompt = str(asked) if student.kind == "prompt" else None
        shown: list[Any] = []
        for drawer, count, w in zip(drawers, (steps, many), (None, teacher_guidance), strict=False):
            wish = Wish(steps=int(count), seed=int(seed), label=label, prompt=prompt, guidance=w)
            try:
                timed = drawer.draw(wish)
            except UserError as error:
                raise gradio.Error(str(error)) from error
            shown += [_large(timed.image), f"{steps_in_words(wish.steps)}, {timed.seconds:.3g} s"]
        return shown

    with gradio.Blocks(title=f"fastgen: {name}", analytics_enabled=False) as page:
        gradio.Markdown(f"## {_plain(name)}" + (" beside its teacher" if teachers else ""))
        with gradio.Row():
            asked = _wish_box(gradio, student)
            trained = student.notes.steps if student.notes else (student.steps,)
            steps = gradio.Dropdown(
                [*trained], value=student.steps, label="student's steps", allow_custom_value=not student.notes
            )
            seed = gradio.Number(0, label="seed", precision=0, minimum=0, maximum=MOST_SEED)
            many = [
                gradio.Slider(1, MOST_STEPS, value=teacher_steps or teacher.steps, step=1, label="teacher's steps")
                for teacher in teachers
            ]
        button = gradio.Button("Draw", variant="primary")
        with gradio.Row():
            places = [place for title in ("student", "teacher")[: len(drawers)] for place in _column(gradio, title)]
        button.click(drawn, [asked, steps, seed, *many], places, concurrency_limit=1, api_visibility="private")
    return page


def _column(gradio: Any, title: str) -> tuple[Any, Any]:
    """A column of the page: a picture, and below it its steps and time."""
    with gradio.Column():
        image = gradio.Image(
            label=title,
            type="pil",
            format="png",
            interactive=False,
            height=384,
            buttons=["download", "fullscreen"],
        )
        return image, gradio.Textbox(label=f"{title}: steps and time", interactive=False)


def _wish_box(gradio: Any, student: "Drawer") -> Any:
    if student.kind == "prompt":
        return gradio.Textbox("a photograph of a red fox", label="prompt", lines=2, max_length=2000, scale=2)
    if student.kind == "label":
        return gradio.Dropdown([*student.classes], value=student.classes.start, label="class")
    return gradio.State(None)


def _large(image: "Image") -> "Image":
    """Small pictures with every pixel repeated, so that they are seen."""
    factor = max(1, LEAST // max(image.size))
    return image.resize((image.width * factor, image.height * factor), NEAREST)


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-.!|$~" else letter for letter in text)
