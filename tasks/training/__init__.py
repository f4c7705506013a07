"""From an archive's snapshot to a judged model: samples, the training loop, evaluation, the promotion gate."""
