"""A style is taught to an emoji model before, beside and after its distillation: what is gained, and what is kept."""
