"""A student as a stock folder: scheduler, weights or LoRA, card, and the proof that it samples as it was trained."""
