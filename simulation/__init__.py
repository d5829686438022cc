"""Public datasets turned into hospitals on one machine; runs the same apps, knows no training."""
