"""What every room stands on: errors, randomness, schedules, atomic files. Knows nothing of images or training."""
