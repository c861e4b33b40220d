"""Training a backbone of one's own: distillation from a teacher, then DINO. `run.pretrain` does both."""
