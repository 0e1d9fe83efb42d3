"""The protocol of 8x8 handwritten digits, which needs no network."""
