"""Where the images of a report come from: files, or pipelines sampled on the fly."""
