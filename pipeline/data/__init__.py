"""What the stages read: sources, image files, manifest, splits, prepared images."""
