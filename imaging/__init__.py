"""Images to tensors: manifests, splits, readers, the tensor store, batched augmentation, modality presets."""
