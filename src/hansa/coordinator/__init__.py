"""The untrusted side: it plans rounds, relays signed messages and adds ciphertexts that it cannot read."""
