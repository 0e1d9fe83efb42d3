"""Two short configs, of one objective and of two stages."""

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
