"""From YAML and overrides to a Config: what is read, what is refused, and in which words."""

import json
import math
import time
from pathlib import Path

import pytest
import tiny

from fastgen.cli import main
from fastgen.config.schema import Config
from fastgen.config.yaml_file import dump, fingerprint, load
from fastgen.distillation.plan import plan
from fastgen.errors import UserError
from fastgen.objectives.parts.guidance_laws import Fixed

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
PLAIN = """\
out: runs/x
teacher: {path: teachers/x}
data: {source: noise}
objective: {name: dmd2, gan: 0}
train: {images: 100}
"""
STAGED = """\
out: runs/x
teacher: {path: teachers/x}
data: {source: noise}
train: {batch: 32, ema: 0.9, optim: {lr: 1e-3, betas: [0.0, 0.99]}, roles: {generator: {lr: 1e-5}}}
stages:
  - objective: {name: kd}
    train: {images: 64, optim: {betas: [0.5, 0.9]}}
  - name: last
    objective: {name: dmd2, gan: 0}
    train: {images: 128, roles: {fake_score: {clip: 2}}}
"""


@pytest.fixture
def read(tmp_path):
    def read(text: str | bytes, *overrides: str) -> Config:
        file = tmp_path / "run.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(file, overrides)

    return read


@pytest.fixture
def refusal(read):
    """The words in which a text is refused; they come soon, on one screen, and name the file."""

    def refusal(text: str | bytes, *overrides: str) -> str:
        started = time.process_time()
        with pytest.raises(UserError) as refused:
            read(text, *overrides)
        assert time.process_time() - started < 3
        words = str(refused.value)
        assert "run.yaml" in words or "override" in words
        assert words.count("\n") <= 21
        return words

    return refusal


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001", "+1e-4"])
def test_numbers_are_read_as_people_write_them(read, text):
    assert read(PLAIN, f"train.optim.lr={text}").stages[0].train.optim.lr == 1e-4


def test_a_large_count_may_have_an_exponent(read):
    assert read(PLAIN.replace("images: 100", "images: 1E5")).stages[0].train.images == 100_000


@pytest.mark.parametrize("text", ["no", "off", "y", "Yes", "12:30", "0x10", "1_000", "010", "2026-01-01"])
def test_other_words_stay_text(read, text):
    assert read(f"{PLAIN}export: {text}\n").exported == Path(text)


@pytest.mark.parametrize("marks", [b"\xef\xbb\xbf%s", b"%s", b"---\n%s...\n"])
def test_byte_order_marks_and_line_ends_do_not_matter(read, marks):
    assert read(marks % PLAIN.encode()) == read(marks % PLAIN.replace("\n", "\r\n").encode()) == read(PLAIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLAIN + "seed: 1\nseed: 2\n", "'seed' is repeated (line 7, column 1)"),
        (PLAIN + "pairs: {count: 1, count: 2}\n", "'count' is repeated (line 6"),
        (PLAIN + "pairs: &a {count: 1}\nlog: *a\n", "aliases are not allowed (line 7, column 6)"),
        (PLAIN + "log:\n\tevery: 3\n", "(line 7, column 1)"),
        (PLAIN + "log: {every: 3\n", "(line 7"),
        (PLAIN + "seed: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system' (line 6"),
        (PLAIN + "seed: !!timestamp now\n", "(line 6"),
        (PLAIN + "seed: !!int many\n", "'many'"),
        (PLAIN + "5: 3\n", "name is not text (line 6"),
        (PLAIN + "? [a]\n: 3\n", "name is not text (line 6"),
        (PLAIN.encode() + b"out: \xff\n", "not text in UTF-8 (invalid start byte in line 6)"),
        (PLAIN.encode("utf-16"), "not text in UTF-8"),
        (PLAIN + "export: \0", "control character, 0x00"),
        (PLAIN + "---\n" + PLAIN, "another document (line 6"),
        ("", "holds nothing"),
        ("# only this\n", "holds nothing"),
        ("- a\n", "holds list"),
        ("out", "holds str"),
        (PLAIN + "log: " + "[" * 20_000, "nested too deeply"),
        (PLAIN + "#" * 2_000_000, "bytes, a config at most 200,000"),
        ("\n".join(f"k{i}: 1" for i in range(8_000)), "and 7,984 more"),
    ],
)
def test_what_is_no_config_is_refused_with_file_and_line(refusal, text, words):
    assert words in refusal(text)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "dmd2_1step.yaml").write_text(PLAIN)
    with pytest.raises(UserError, match=r"no config .*dmd2_1stp.yaml; did you mean .*dmd2_1step.yaml"):
        load(tmp_path / "dmd2_1stp.yaml")
    with pytest.raises(UserError, match="give the path of a YAML file"):
        load(tmp_path)


def test_all_mistakes_are_told_at_once_with_their_paths(refusal):
    text = PLAIN.replace("images: 100", "images: many, optim: {lr: 0, cilp: 1}").replace("gan: 0", "gam: 0")
    words = refusal(text + "sead: 3\nstudent: {sampler: odd, steps: [1, 0]}\n", "teacher.null_label=-1")
    for line in [
        "stages.0.train.images: Input should be a valid integer",
        "stages.0.train.optim.lr: Input should be greater than 0 (got 0)",
        "stages.0.train.optim.cilp: no such setting; did you mean clip?",
        "stages.0.objective.gam: no such setting; did you mean gan?",
        "sead: no such setting; did you mean seed?",
        "student.sampler: Input should be 'renoise' or 'ode' (got 'odd')",
        "student.steps.1: Input should be greater than 0",
        "teacher.null_label: Input should be greater than or equal to 0",
    ]:
        assert f"\n  {line}" in words


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.name=dmd3", "stages.0.objective: there is no objective 'dmd3'; did you mean dmd?"),
        ("objective.name=[dmd]", "stages.0.objective: there is no objective \"['dmd']\""),
        ("objective=dmd2", "stages.0.objective: give a mapping with `name`, one of pretrain, vsd"),
        ("objective.times.low=0.1", "stages.0.objective.times: this needs a `law`"),
        ("data.source=nose", "data: there is no source 'nose'; did you mean noise?"),
        ("data.num_classes=ten", "data.num_classes: Input should be a valid integer"),
        ("images=5", "images: no such setting here; it belongs elsewhere"),
        ("objective={name: lcm, guidance: 3}", "objective.guidance: no such setting; did you mean teacher_guidance?"),
        ("objective={name: dmd2, teacher_guidance: 3}", "teacher_guidance: no such setting; did you mean guidance?"),
        ("objective={name: kd, guidance: 3}", "objective.guidance: no such setting here; it belongs elsewhere"),
        ("train=5", "stages.0.train: this must be a mapping (got 5)"),
        ("stages=5", "stages: this must be a list"),
        ("student.steps=4", "student.steps: this must be a list (got 4)"),
        ("teacher={}", "teacher: give either `path` (a pipeline to distil) or `new`"),
        ("train.roles.generater.lr=1", "names 'generater', but dmd2 trains generator, fake_score"),
        ("train.roles.generator.lrr=1", "stages.0.train.roles.generator.lrr: no such setting; did you mean lr?"),
        ("train.micro_batch=7", "batch 64 is not a multiple of micro_batch 7"),
        ("train={minutes: 1, images: 9, optim: {schedule: cosine}}", "cosine schedule reaches zero after `images`"),
        ("train={minutes: 1, images: 9, roles: {generator: {schedule: linear}}}", "use schedule constant"),
        ("device=gpu", "device: Input should be 'auto', 'cpu' or 'cuda'"),
        ("seed=99999999999999999999", "seed: Input should be less than"),
        ("train.optim.lr=nan", "stages.0.train.optim.lr: Input should be a valid number (got 'nan')"),
        ("train.optim.lr=1e999", "stages.0.train.optim.lr: Input should be a finite number"),
        ("objective.gan=nan", "stages.0.objective.gan: Input should be a finite number"),
        ("objective.guidance=-1e999", "stages.0.objective.guidance: Input should be a finite number"),
        ("pairs.guidance=nan", "pairs.guidance: Input should be a valid number (got 'nan')"),
    ],
)
def test_a_wrong_setting_is_told_with_its_rule(refusal, override, words):
    assert words in refusal(PLAIN, override)


def test_overrides_reach_settings_lists_and_sections_that_are_not_there(read):
    config = read(STAGED, "student.steps=[1, 2]", "stages.1.objective.guidance=1.5", "checkpoints.every=5", "out=a=b")
    assert config.student.steps == (1, 2)
    assert config.stages[1].objective.guidance == Fixed(1.5)
    assert config.stages[0] == read(STAGED).stages[0]
    assert config.checkpoints.every == 5
    assert config.out == Path("a=b")
    assert read(PLAIN + "checkpoints:\n", "checkpoints.every=5") == read(PLAIN, "checkpoints.every=5")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr", "not of the form a.b=value"),
        ("=3", "not of the form a.b=value"),
        ("a..b=3", "not of the form a.b=value"),
        ("seed={", "the value in the override 'seed={' is not valid YAML"),
        ("stages.2.name=a", "needs a number below 2 in place of '2'"),
        ("stages.-1.name=a", "needs a number below 2 in place of '-1'"),
        ("stages.\u00b2=a", "needs a number below 2"),
        ("out.deeper=1", "looks into 'out', which is the value 'runs/x'"),
        ("train.optim.betas.0.x=1", "looks into '0', which is the value 0.0"),
        ("stages.1.name=../x", "stages.1.name: String should match pattern"),
    ],
)
def test_bad_overrides(refusal, override, words):
    assert words in refusal(STAGED, override)


def test_a_stage_changes_what_train_says_for_all(read):
    first, last = (stage.train for stage in read(STAGED).stages)
    assert (first.images, first.batch, first.ema) == (64, 32, 0.9)
    assert (last.images, last.batch, last.ema) == (128, 32, 0.9)
    assert first.optim.betas == (0.5, 0.9)
    assert last.optim.betas == (0.0, 0.99)
    assert first.optim.lr == last.optim.lr == 1e-3
    assert last.optim_of("generator") == last.optim.model_copy(update={"lr": 1e-5})
    assert last.optim_of("fake_score") == last.optim.model_copy(update={"clip": 2.0})


def test_a_single_objective_is_a_list_of_one(read):
    long = PLAIN.replace("objective: {name: dmd2, gan: 0}", "stages: [{name: dmd2, objective: {name: dmd2, gan: 0}}]")
    assert read(long) == read(PLAIN)
    carried = read(PLAIN, "carry.fake_score=teacher", "discriminator.layers=[mid_block]").stages[0]
    assert carried.carry == {"fake_score": "teacher"}
    assert carried.discriminator.layers == ("mid_block",)
    assert [stage.name for stage in read(STAGED).stages] == ["kd", "last"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_shipped_configs_survive_being_written_and_planned(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "resolved.yaml").write_text(dump(load(file)))
    assert load(tmp_path / "resolved.yaml") == load(file)
    assert fingerprint(load(file)) == json.loads(json.dumps(fingerprint(load(file))))
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    code = main(["train", "--config", str(file), "--dry-run"])
    printed, told = capsys.readouterr()
    assert code == (2 if "the run would be refused here:" in told else 0)  # data and teachers may be elsewhere
    assert printed.startswith(dump(load(file)))
    assert f"\nstage {len(load(file).stages) - 1}, " in printed
    assert not list(empty.iterdir())


def test_numbers_and_words_survive_being_written(read):
    config = read(STAGED, f"stages.1.objective.guidance={math.pi!r}", "export=no", "train.optim.eps=1e-12", "flip=true")
    assert read(dump(config)) == config
    assert config.stages[1].objective.guidance == Fixed(math.pi)
    assert config.exported == Path("no")


@pytest.mark.parametrize("build", [tiny.class_conditional, tiny.ddpm, tiny.stable_diffusion, tiny.dit])
def test_the_plan_counts_what_the_networks_hold(read, tmp_path, build):
    pipe = build()
    pipe.save_pretrained(tmp_path / "teacher")
    network = getattr(pipe, "transformer", None) or pipe.unet
    size = sum(p.numel() for p in network.parameters())
    text = plan(
        read(PLAIN, f"teacher.path={tmp_path / 'teacher'}", "train.ema=0.9", "train.batch=10"), recipes=tmp_path
    )
    assert f"denoiser {size / 1e6:.2f} M parameters" in text
    mib = {line.split("  ")[1]: float(line.split()[-2]) for line in text.splitlines() if line.endswith("MiB")}
    expected = {  # fp32 weight, gradient and two moments; average; the real score is the teacher itself
        "teacher's pipeline": 4 * size,
        "generator (trained)": 16 * size,
        "fake_score (trained)": 16 * size,
        "generator average": 4 * size,
        "sum, without activations": 40 * size,
    }
    assert mib == {name: pytest.approx(count / 2**20, abs=0.051) for name, count in expected.items()}
    assert "updates: generator 10, fake_score 50" in text
    half = plan(read(PLAIN, f"teacher.path={tmp_path / 'teacher'}", "train.precision=bf16"), recipes=tmp_path)
    frozen = next(line for line in half.splitlines() if "real_score" in line)
    assert float(frozen.split()[-2]) == pytest.approx(2 * size / 2**20, abs=0.051)
    told = ["train.precision=bf16", "train.masters=bf16", "train.gradients=bf16", "train.ema_device=cpu"]
    told += ["train.optim.name=adamw8bit", "train.optim.betas=[0.0,0.9]", "teacher.dtype=bf16"]
    lean = plan(read(PLAIN, f"teacher.path={tmp_path / 'teacher'}", *told), recipes=tmp_path)
    total = next(line for line in lean.splitlines() if "sum, without" in line)
    assert float(total.split()[-2]) == pytest.approx((2 + 2 * (2 + 2 + 1 + 4 / 256)) * size / 2**20, abs=0.2)


def test_the_plan_names_the_recipe_that_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs/digits/dmd2_1step.yaml"
    text = plan(load(file), recipes=file.parent)
    assert text.startswith("first, because runs/digits/teacher/pipeline does not exist yet")
    assert "  stage 0, pretrain: 32,000 images" in text
    assert "stage 1, dmd2: 3,200 images in batches of 32, fp32, reads images" in text


@pytest.mark.parametrize("text", ["010", "1_000", "0x10", "true", '"10"', "12:30", "off", "1e999"])
def test_text_and_booleans_are_no_numbers(refusal, text):
    for setting, where in {
        "train.images": "stages.0.train.images",
        "train.optim.lr": "stages.0.train.optim.lr",
        "objective.guidance.scale": "stages.0.objective.guidance.fixed.scale",
        "data.num_classes": "data.num_classes",
        "student.steps": "student.steps.0",
        "train.roles.generator.lr": "stages.0.train.roles.generator.lr",
    }.items():
        law = ["objective.guidance={law: fixed}"] if "guidance" in setting else []
        value = f"[{text}]" if setting == "student.steps" else text
        assert f"\n  {where}: Input should be a" in refusal(PLAIN, *law, f"{setting}={value}")


@pytest.mark.parametrize("text", ["1", "0", "no", "on", '"true"'])
def test_numbers_and_other_words_are_not_true(refusal, text):
    assert "\n  flip: Input should be a valid boolean" in refusal(PLAIN, f"flip={text}")


NESTED = {
    "guidance.sclae": ("{law: fixed}", "scale"),
    "guidance.drpout": ("{law: anti}", "dropout"),
    "times.hihg": ("{law: uniform}", "high"),
    "times.lowest": ("{law: uniform}", "low"),
    "gan.wieght": ("{}", "weight"),
    "gan.strat": ("{}", "start"),
}


@pytest.mark.parametrize("setting", NESTED)
def test_a_misspelt_setting_of_a_law_is_told_the_one_that_may_stand_there(refusal, setting):
    value, meant = NESTED[setting]
    name = setting.partition(".")[0]
    assert f"no such setting; did you mean {meant}?" in refusal(
        PLAIN, f"objective.{name}={value}", f"objective.{setting}=1"
    )


@pytest.mark.parametrize("text", [r'"a\0b"', r'"\ud83d"', r'"a\x1b[2J"'])
def test_what_is_no_text_is_refused_wherever_it_stands(refusal, text):
    for setting in ("out", "teacher.path", "data.path", "stages.0.name", "export.path"):
        assert "which is no text" in refusal(STAGED, f"{setting}={text}")
    assert "a setting's name" in refusal(PLAIN + f"{text}: 3\n")
    with pytest.raises(UserError, match="out of this mapping holds"):
        load({"out": "a\0", "teacher": {"path": "a"}})
