"""What is measured, and how; each module runs by itself: ``python -m benchmarks.augmentation``."""

from foundation.messages import print_messages

print_messages()
