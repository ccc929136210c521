"""The Mixture-of-Experts transformer, its LoRA adapters, the feature encoders and the training objectives."""
