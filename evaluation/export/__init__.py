"""A run's encoder as a folder that others can load without this project: timm and Hugging Face, ONNX, MONAI."""
