"""The trusted side, at each institution: policy, data, private training, protection of the update."""
