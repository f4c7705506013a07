"""What is learnt: tensors in, tensors out."""
