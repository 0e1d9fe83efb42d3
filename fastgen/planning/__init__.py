"""What a run costs before it is one: memory and seconds, counted on networks without weights."""
