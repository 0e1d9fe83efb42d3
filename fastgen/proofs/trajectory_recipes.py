"""How the consistency family is trained on the proof bed: without guidance, from the exact teacher or from data."""

from ..objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from ..objectives.curricula import Doubling, Ratio
from ..objectives.gan import GAN
from ..objectives.lcm import LatentConsistency
from ..objectives.meanflow import MeanFlow
from ..objectives.pcm import PhasedConsistency
from ..objectives.progressive import Progressive
from ..objectives.sana_sprint import SanaSprint
from ..objectives.scm import SimplifiedConsistency
from ..objectives.self_shortcut import SelfShortcut
from ..objectives.shortcut import Shortcut
from ..objectives.solvers import Guidance
from ..objectives.tdd import TargetDriven
from ..objectives.tscd import SegmentedConsistency
from ..process import LogNormal, Uniform
from .training import SIZE, Recipe

PLAIN, NO_GAN = Guidance(), GAN(0.0, kind="hinge")
WARMUP = 200 * SIZE
ANY_TIME = LogNormal(0.0, 1.6)

TRAJECTORY_RECIPES: dict[str, Recipe] = {
    "cd": Recipe(ConsistencyDistillation(), cycles=1000),
    "ict": Recipe(ConsistencyTraining(curriculum=Doubling(images=1000 * SIZE, last=160)), cycles=1000),
    "ect": Recipe(ConsistencyTraining(curriculum=Ratio(images=WARMUP, times=Uniform())), cycles=1000, share=0.5),
    "lcm": Recipe(LatentConsistency(guidance=PLAIN), cycles=1000),
    "lcm_2step": Recipe(LatentConsistency(guidance=PLAIN), steps=2, cycles=1000, share=0.5),
    "pcm_2step": Recipe(PhasedConsistency(guidance=PLAIN), steps=2, cycles=1000, share=0.5),
    "pcm_4step": Recipe(PhasedConsistency(guidance=PLAIN, gan=NO_GAN), steps=4, cycles=1000, share=0.75),
    "tscd_4step": Recipe(SegmentedConsistency(guidance=PLAIN, segments=4), steps=4, cycles=1000, share=0.75),
    "tdd_4step": Recipe(
        TargetDriven(guidance=PLAIN, gan=NO_GAN, dropout=0.0, jitter=0.0), steps=4, cycles=1000, share=0.9
    ),
    "scm": Recipe(SimplifiedConsistency(warmup=WARMUP, times=ANY_TIME), cycles=1000),
    "scm_2step": Recipe(SimplifiedConsistency(warmup=WARMUP, times=ANY_TIME), steps=2, cycles=1000, share=0.5),
    "sana_sprint": Recipe(SanaSprint(guidance=PLAIN, warmup=WARMUP), cycles=1000),
    "meanflow": Recipe(MeanFlow(diagonal=0.25, times=Uniform()), cycles=1000),
    "meanflow_2step": Recipe(MeanFlow(diagonal=0.25, times=Uniform()), steps=2, cycles=1000, share=0.5),
    "shortcut": Recipe(Shortcut(bootstrapped=0.75, ema=0.95, levels=5), cycles=1000),
    "shortcut_4step": Recipe(Shortcut(bootstrapped=0.75, ema=0.95, levels=3), steps=4, cycles=1000, share=0.75),
    "scfm_4step": Recipe(SelfShortcut(substeps=8, ema=0.95), steps=4, cycles=1000, share=0.9),
    "progressive": Recipe(Progressive(substeps=32), cycles=1000),
    "progressive_4step": Recipe(Progressive(substeps=8), steps=4, cycles=1000, share=0.75),
}
"""The mean velocity has no recipe but on the flow process, which alone it holds on ("linear" in its needs)."""
