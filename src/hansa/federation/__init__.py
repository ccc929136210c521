"""What both sides of a network share: signed documents, certificates for TLS, and the services' message formats."""
