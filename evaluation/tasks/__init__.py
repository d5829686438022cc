"""What is asked of labelled images: targets, labels, kinds of task and their metrics, leaks."""
