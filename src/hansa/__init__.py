"""hansa: institutions that may not share data fine-tune one Mixture-of-Experts model together."""
