"""Random views by modality, batched on tensors."""
