"""The shared fine-tuner, its checkpoints and trajectories."""
