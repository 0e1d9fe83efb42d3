"""What has to hold of every objective, on test beds small enough for a laptop: `prove NAME`."""
