"""What is refused of a YAML and of overrides, and in which words."""

import pytest
from config_texts import PLAIN, STAGED

from fastgen.config.yaml_file import load
from fastgen.errors import UserError


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


def test_of_several_sources_one_may_have_a_name_that_is_no_text(refusal):
    known, unnamed = "{source: noise, wdith: 1, weight: 1}", "{source: [a], weight: 1}"
    told = refusal(PLAIN.replace("{source: noise}", f"[{known}, {unnamed}]"))
    assert "data.wdith: no such setting" in told


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
        (
            "objective.name=[dmd]",
            "valid config:\n  stages.0.objective: give a mapping with `name`, one of pretrain, vsd",
        ),
        (
            "objective.name=dmd 2",
            "valid config:\n  stages.0.objective: there is no objective 'dmd 2'; did you mean dmd2?",
        ),
        ("objective.name=.", "valid config:\n  stages.0.objective: there is no objective '.'; known: pretrain"),
        ("objective.name=", "valid config:\n  stages.0.objective: give a mapping with `name`, one of pretrain, vsd"),
        ("objective=dmd2", "stages.0.objective: give a mapping with `name`, one of pretrain, vsd"),
        ("train.compile=some", "stages.0.train.compile: Input should be 'all' (got 'some')"),
        ("discriminator.layers=mid_block", "stages.0.discriminator.layers: this must be a list (got 'mid_block')"),
        ("objective.times.low=0.1", "stages.0.objective.times: this needs a `law`"),
        ("data={prompts: a.txt, path: b.txt}", "data: give a mapping with `source`"),
        ("data={source: prompts, prompts: a.txt, path: b.txt}", "data.prompts: no such setting"),
        ("data={prompts: a.txt, size: 32}", "data.size: no such setting"),
        (
            "data={source: folder, path: a, size: 8, prompts: b.txt}",
            "data.prompts: no such setting of this source; for these prompts in its place set data={source: prompts, "
            "path: b.txt}",
        ),
        ("data={source: folder, path: a, size: [8]}", "\n  data.size: Input should be a valid integer (got [8])\n"),
        (
            "stages=[{objective: {name: kd}}]",
            "objective: no such setting beside stages, each of which has its own: put",
        ),
        ("student.steps=[]", "student.steps: this must not be empty"),
        ("objective.stabilisers=3", "stabilisers: this must be a mapping (got 3)"),
        ("data=[{source: folder, path: a, size: 8, cache: 1}]", "data.cache: no such setting; did you mean cache_gib?"),
        ("teacher={new: {pipeline: a, parts: {}}, recipe: b}", "`recipe` belongs to a pipeline that is loaded"),
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
        ("out=", "out: this must be the path of a file or folder (got None)"),
        ("train.batch=100000000000000000000", "stages.0.train.batch: Input should be less than or equal to 1048576"),
        ("student.steps=[5000]", "student.steps.0: Input should be less than or equal to 1000 (got 5000)"),
        ("student.height=1000000", "student.height: Input should be less than or equal to 65536"),
        ("lora.rank=100000", "lora.rank: Input should be less than or equal to 65536"),
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


def test_a_setting_of_all_stages_is_refused_where_each_has_its_own(read, refusal):
    """Also one within another; not where a stage reads it, where it is what all have, or where overrides replace it."""
    words = "train.images is 5, but every stage has its own, so that it would be ignored: set stages.0.train.images"
    assert words in refusal(STAGED, "train.images=5")
    owns = "stages.0.train.roles={generator: {lr: 1}}", "stages.1.train.roles.generator.lr=2"
    assert [stage.train.roles["generator"]["lr"] for stage in read(STAGED, *owns).stages] == [1, 2]
    assert "train.roles.generator.lr is 3, but every stage" in refusal(STAGED, *owns, "train.roles.generator.lr=3")
    unread = "stages.0.train.reuse=true", "stages.1.train.reuse=true", "train.reuse=null"
    assert "train.reuse is None, but every stage" in refusal(STAGED, *unread)
    assert [stage.train.optim.betas for stage in read(STAGED, "train.optim.betas=[0.1, 0.2]").stages] == [
        (0.5, 0.9),
        (0.1, 0.2),
    ]
    assert read(STAGED, "train.images=64", "stages.1.train.images=64").stages[1].train.images == 64


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
