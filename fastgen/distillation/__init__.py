"""The conductor: from a config to a verified student."""
