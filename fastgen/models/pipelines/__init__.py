"""Stock Diffusers pipelines: loaded, probed, tested and encoded. Only here are names of Diffusers' classes known."""
