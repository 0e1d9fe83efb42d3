"""Settings that a config's header calls published are those of the authors' scripts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
RAMP = {"law": "karras", "low": 0.0, "high": 0.8}
ADAM = [0.0, 0.999]
PUBLISHED: dict[str, dict[str, Any]] = {
    # mingyuanzhou/SiD run_sid.sh, run_sida.sh (branch sida), a-little-hoof/Uni_Instruct run_uni_instruct.sh
    "cifar10/sid_1step": {"objective.times": RAMP, "optim.lr": 1e-5, "optim.betas": ADAM, "batch": 256},
    "cifar10/sida_1step": {
        "objective.times": RAMP,
        "objective.gan": {
            "weight": 1e-4,  # lsg_gan 0.01 / lsg 100
            "start": 200000,
            "learned": 0.0326,
            "joint": True,
            "paired": True,
            "even": True,
        },
        "optim.lr": 1e-5,
        "optim.betas": ADAM,
        "batch": 256,
    },
    "cifar10/uni_instruct_1step": {"objective.times": RAMP, "optim.lr": 1e-5, "optim.betas": ADAM, "batch": 256},
    # apple-aiml-research/ml-sid-dit training/sid_dit_training_loop.py
    "sdxl/sid_few_step_4step_lora": {"objective.gan": {"weight": 1e-3, "learned": 0.5, "joint": True, "paired": True}},
    # pkulwj1994/diff_instruct di_train.py: a half-life of 500,000 images at a batch of 128
    "cifar10/diff_instruct_1step": {"optim.betas": ADAM, "optim.lr": 1e-5, "ema": round(0.5 ** (128 / 5e5), 5)},
    # NVlabs/FastGen config_f_distill_cifar10.py and its bases; 100,000 updates, one in five the generator's
    "cifar10/f_distill_1step": {
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.01,
        "batch": 2048,
        "objective.gan": {"weight": 1e-3, "learned": 1.0, "joint": True},
        "discriminator": {"backbone": "real_score"},
        "objective.times": {"law": "karras"},
        "objective.fake_times": {"law": "karras"},
        "objective.ratio": 4,
        "images": 41_000_000,
    },
    # tianweiy/DMD2 ..._backsim_scratch_lora.sh and train_sd.py (lora_rank 64, lora_alpha 8)
    "sdxl/dmd2_4step_lora": {
        "lora": {"rank": 64, "alpha": 8},
        "optim.lr": 5e-5,
        "optim.clip": 10.0,
        "objective.guidance": 8.0,
        "objective.ratio": 5,
    },
    # byliutao/cdm losses.py
    "sdxl/decoupled_dmd_4step_lora": {"objective.floor": 0.1, "objective.augmentation": 8.0},
    # ModelTC/LightX2V wan2_2_t2v_a14b_phased_dmd.yaml
    "wan/phased_dmd_4step_lora": {
        "objective.weight": "l1",
        "objective.floor": 1e-4,
        "objective.guidance": 4.0,
        "objective.times": {"law": "uniform", "low": 0.02, "high": 0.98, "shift": 7.0},
        "objective.fake_times": {"law": "uniform", "low": 0.02, "high": 0.98, "shift": 7.0},
        "objective.ratio": 5,
        "optim.betas": ADAM,
        "optim.weight_decay": 0.01,
        "optim.clip": 1.0,
    },
    # openai/consistency_models cm_train.py with 18 points of the ramp
    "cifar10/cd_1step": {"objective.curriculum": {"law": "karras", "points": 18, "decay": 0.95}},
    # locuslab/ect run_ecm.sh: --tick 12.8 --double 250, -c left at 0, --duration 25.6
    "cifar10/ct_2step": {
        "objective.curriculum.images": 3_200_000,
        "objective.huber": 0.0,
        "images": 25_600_000,
        "batch": 128,
        "optim.lr": 1e-4,
    },
    # NVlabs/Sana SanaSprint_1600M_1024px_allqknorm_bf16_scm_ladd.yaml and train_scm_ladd.py
    "sana/sana_sprint_2step": {
        "objective.normaliser": 0.1,
        "objective.norm": "sample",
        "objective.warmup": 4000 * 512,
        "objective.gan.weight": 0.5,
        "objective.gan.learned": 0.5,
        "objective.gan.paired": "times",
        "optim": {"lr": 2e-6, "betas": [0.9, 0.999], "weight_decay": 0.0, "clip": 0.1, "warmup": 5000},
    },
    # G-U-N/Phased-Consistency-Model train_pcm_lora_sd15.sh; alpha is peft's default
    "sd15/pcm_4step_lora": {
        "lora": {"rank": 64, "alpha": 8},
        "objective.gan": {"weight": 0.1, "learned": 1.0, "kind": "hinge"},
        "optim": {"lr": 5e-6, "betas": [0.9, 0.999], "weight_decay": 1e-3, "clip": 1.0},
        "roles": {"discriminator": {"lr": 1e-5, "betas": ADAM}},
        "batch": 20,
    },
    # RedAIGC/Target-Driven-Distillation train/SDXL/train_tdd_adv.sh
    "sdxl/tdd_4step_lora": {
        "lora": {"rank": 64, "alpha": 8},
        "objective.window": 0.26,
        "optim": {"lr": 2e-6, "betas": [0.9, 0.999], "clip": 1.0},
        "roles": {"discriminator": {"lr": 1e-5, "betas": ADAM, "weight_decay": 1e-3}},
        "batch": 448,
    },
    # caitree/scfm scripts/train_flux_scfm.sh
    "flux/self_shortcut_4step_lora": {
        "lora": {"rank": 64},
        "objective.taught": 0.4,
        "objective.ema": 0.999,
        "optim": {"lr": 2e-5, "betas": [0.9, 0.999], "clip": 10.0},
        "batch": 8,
        "ema": None,
    },
    # NVIDIA/Model-Optimizer examples/diffusers/fastgen/pdd/configs/qwen_image.yaml
    "sdxl/pdd_4step_lora": {
        "objective.heads": 128,
        "objective.target": "euler",
        "optim": {"lr": 10 * 2e-5, "betas": [0.9, 0.999], "weight_decay": 0.01, "clip": 1.0},
        "batch": 256,
    },
    # google-research diffusion_distillation config/cifar_distill.py
    "cifar10/progressive_4step": {
        "optim.lr": 5e-5,
        "optim.clip": 1.0,
        "batch": 128,
        "ema": None,
        "images": 50_000 * 128,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_as_published(name: str):
    file = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    flat = {**file, **file["train"], "optim": file["train"]["optim"]}
    for place, value in PUBLISHED[name].items():
        found = flat
        for key in place.split("."):
            found = found[key]
        assert _numbers(found) == _numbers(value), f"{name}: {place}"


def test_wans_steps_are_the_trainers_two_on_each_side_of_the_boundary():
    """1, 0.9545, 0.875, 0.7 of shift 7; the third below 0.875, which the stock pipeline gives to the network above."""
    shift = yaml.safe_load((CONFIGS / "wan/phased_dmd_4step_lora.yaml").read_text())["student"]["shift"]
    steps = [shift * t / (1 + (shift - 1) * t) for t in (1, 0.75, 0.5, 0.25)]
    assert steps == pytest.approx([1, 7 * 0.75 / 5.5, 0.875, 0.7], abs=5e-4)
    assert steps[1] > 0.875 > steps[2]


def _numbers(value: Any) -> Any:
    """YAML reads 1e-5 as text."""
    if isinstance(value, dict):
        return {key: _numbers(x) for key, x in value.items()}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
