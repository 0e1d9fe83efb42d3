"""Networks that look at images, and the protocols that fix how."""
